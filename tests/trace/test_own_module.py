"""Models that the user's own code builds, trained in a trace."""

from __future__ import annotations

from pathlib import Path

import pytest

from memplan.errors import UnsupportedModelError, UsageError
from memplan.footprint.defaults import complete
from memplan.models.load import load_model
from memplan.trace.estimate import TraceEstimator, job_of
from memplan.trace.run import record_job

pytestmark = [
    pytest.mark.models,
    # PEFT calls transformers by names that are about to go.
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

CODE = """
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(500, 64)
        self.inner = torch.nn.Linear(64, 64)
        self.out = torch.nn.Linear(64, 500, bias=False)

    def forward(self, tokens):
        return self.out(torch.relu(self.inner(self.table(tokens))))

class Own(Model):
    def forward(self, input_ids, labels):
        logits = super().forward(input_ids)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

def plain():
    return Model()

def own_loss():
    return Own()

def frozen():
    model = Model()
    model.requires_grad_(False)
    model.out.requires_grad_(True)
    return model

def image():
    model = Model()
    model.main_input_name = "pixel_values"
    return model
"""
PARAMETERS = 500 * 64 + 64 * 64 + 64 + 500 * 64


@pytest.fixture
def code(tmp_path, monkeypatch):
    name = f"trained_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(CODE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return name


def planned(argument, **options):
    options = {"task": "train", "seq": 32, "batch": 2, **options}
    spec = load_model(argument, dtype=None, options=options)
    return spec, complete(options, spec)


def parts(footprint):
    sizes = {}
    for line in footprint.lines:
        sizes[line.part] = sizes.get(line.part, 0) + line.bytes
    return sizes


def real_peak(name, code):
    """Return the exact peak of the same loop over real tensors, in bytes."""
    import importlib

    import torch

    from memplan.measure.exact import MemoryTrace

    model = getattr(importlib.import_module(code), name)()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, foreach=False)
    base = sum(p.numel() * 4 for p in model.parameters())
    trace = MemoryTrace(torch)
    trace.start()
    ids = torch.zeros(2, 32, dtype=torch.long)
    labels = torch.zeros_like(ids)
    for _ in range(2):
        if name == "own_loss":
            loss = model(ids, labels)
        else:
            logits = model(ids).flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(logits, labels.flatten())
            del logits
        loss.backward()
        del loss
        optimizer.step()
        optimizer.zero_grad()
    return base + trace.stop()["cpu.peak_allocated"]


@pytest.mark.parametrize("name", ["plain", "own_loss", "frozen"])
def test_the_traced_peak_of_an_own_module_is_the_real_one(code, name):
    """Logits get a cross-entropy, a number is the loss itself; what is frozen stays so."""
    spec, workload = planned(f"{code}:{name}")
    job = job_of(spec, workload, kind="cpu")
    assert record_job(job).peak()[0] == pytest.approx(real_peak(name, code), rel=0.005)


def test_only_what_the_code_trains_has_gradients_and_states(code):
    """A module brings its own adapters by requires_grad."""
    found = parts(TraceEstimator()(*planned(f"{code}:frozen")))
    assert found["weights"] == 4 * PARAMETERS
    assert found["gradients"] == 4 * 500 * 64
    assert found["optimizer"] == 2 * 4 * 500 * 64 + 4


def test_adapters_of_peft_go_onto_named_linears(code):
    """Which parameters are linears, only names can say."""
    found = parts(TraceEstimator()(*planned(f"{code}:plain", method="lora", lora_targets="inner")))
    adapter = 4 * 8 * (64 + 64)
    assert found["weights"] == 4 * PARAMETERS + adapter
    assert found["gradients"] == adapter
    with pytest.raises(UsageError, match="linears"):
        planned(f"{code}:plain", method="lora")


def test_what_only_a_trace_can_answer_is_refused_without_one(code):
    """Nothing else knows the layers of such a model."""
    for options in ({"estimator": "formula"}, {"task": "infer", "seq": None}):
        with pytest.raises(UnsupportedModelError, match="no config"):
            TraceEstimator()(*planned(f"{code}:plain", **options))
    with pytest.raises(UnsupportedModelError, match="layers"):
        TraceEstimator()(*planned(f"{code}:plain", checkpointing="full"))
    with pytest.raises(UnsupportedModelError, match="pixel_values"):
        TraceEstimator()(*planned(f"{code}:image"))


def test_a_trace_of_own_code_is_never_kept(code):
    """The code may have changed since."""
    from memplan.config import cache_dir
    from memplan.trace.run import trace

    trace(job_of(*planned(f"{code}:plain"), kind="gpu"))
    assert not list((cache_dir() / "traces").glob("*.json"))


def test_paged_states_are_outside_of_what_torch_counts(code):
    """States of 100,000 elements and more lie in unified memory."""
    from memplan.footprint.optimizer import PAGED
    from memplan.trace.run import trace

    text = CODE.replace("500", "5000")
    module = f"{code}_large"
    Path(f"{module}.py").write_text(text, encoding="utf-8")
    spec, workload = planned(f"{module}:plain", optimizer="paged-adamw")
    paged = 2 * 2 * 4 * 5000 * 64
    lines = TraceEstimator()(spec, workload).lines
    assert [line.bytes for line in lines if line.source == PAGED] == [paged]
    usual = trace(job_of(spec, workload, kind="gpu"))
    assert usual.paged_bytes == paged
    assert usual.allocated_bytes < usual.peak_bytes
