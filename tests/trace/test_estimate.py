"""Plans by a trace: what the lines say, what is kept, and what answers where there is none."""

from __future__ import annotations

import dataclasses
import json

import pytest
from checkpoints import TINY

from memplan.errors import UsageError
from memplan.footprint.defaults import complete
from memplan.footprint.estimate import estimate, trained_tensors
from memplan.models.load import load_model
from memplan.trace import run
from memplan.trace.estimate import TraceEstimator, job_of
from memplan.trace.keep import _path
from memplan.trace.run import NotTracedError, record_job, summarise, trace

pytestmark = pytest.mark.models


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMPLAN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    config = {**TINY, "vocab_size": 1000, "hidden_size": 64}
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def planned(folder, **options):
    options = {"task": "train", "precision": "bf16", "seq": 64, "batch": 2, **options}
    spec = load_model(str(folder), dtype="bfloat16", options=options)
    return spec, complete(options, spec)


def traced(folder, **options):
    spec, work = planned(folder, **options)
    return trace(job_of(spec, work, kind="gpu"))


def test_the_lines_add_up_to_the_traced_peak(folder):
    """Weights, gradients and states exact; the rest of the peak is the activations' line."""
    spec, work = planned(folder)
    assert work.estimator == "trace"
    foot = TraceEstimator()(spec, work)
    seen = trace(job_of(spec, work, kind="gpu"))
    own = [line for line in foot.lines if line.part != "overhead"]
    assert sum(line.bytes for line in own) == seen.allocated_bytes >= seen.peak_bytes
    assert foot.part("weights") == seen.weights_bytes == spec.weight_bytes
    assert foot.part("gradients") == seen.gradients_bytes == spec.weight_bytes
    line = next(line for line in foot.lines if line.part == "activations")
    assert line.basis == "trace"
    assert "peak in" in line.source
    closed = estimate(spec, work)
    for part in ("weights", "gradients", "optimizer", "buffers"):
        assert foot.part(part) == closed.part(part)


@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_adapters_of_the_closed_form_are_those_that_peft_makes(folder, method, dtype):
    """Weights, gradients and optimizer states to the byte."""
    options = {"method": method, "lora_rank": 4, "lora_dtype": dtype}
    spec, work = planned(folder, **options)
    seen = trace(job_of(spec, work, kind="gpu"))
    trained = trained_tensors(spec, work)
    assert spec.weight_bytes == seen.weights_bytes
    assert sum(tensor.bytes for tensor in trained) == seen.gradients_bytes
    assert estimate(spec, work).part("optimizer") == seen.optimizer_bytes


def test_what_costs_memory_costs_it_in_the_trace(folder):
    """Each option moves the peak the way it does in life."""
    plain = traced(folder).peak_bytes
    assert traced(folder, attention="eager").peak_bytes > plain
    assert traced(folder, data="padded").peak_bytes > plain
    assert traced(folder, grad_accum=4).peak_bytes > plain
    assert traced(folder, seq=128).peak_bytes > plain
    assert traced(folder, loss="chunked").peak_bytes < plain
    checkpointed = traced(folder, checkpointing="full", optimizer="sgd").peak_bytes
    selective = traced(folder, checkpointing="selective", optimizer="sgd").peak_bytes
    without = traced(folder, optimizer="sgd").peak_bytes
    assert checkpointed < selective < without < plain


def test_the_shares_of_the_peak_are_all_of_it_and_the_largest_comes_first(folder):
    """By category, module and operator."""
    spec, work = planned(folder)
    recording = record_job(job_of(spec, work, kind="gpu"))
    peak, event = recording.peak()
    shares = recording.shares(event)
    assert sum(share.bytes for share in shares) == sum(recording.parts(event).values()) == peak
    assert [share.bytes for share in shares] == sorted((x.bytes for x in shares), reverse=True)
    assert any("mlp" in share.module for share in shares)
    names = [phase.name for phase in recording.phases()]
    assert names == [
        "load",
        "forward 1",
        "backward 1",
        "step 1",
        "forward 2",
        "backward 2",
        "step 2",
    ]
    assert max(phase.peak_bytes for phase in recording.phases()) == peak
    assert summarise(recording).peak_bytes == peak


def test_nothing_but_weights_and_states_outlives_a_step(folder):
    """Else the tracker would miss what is freed."""
    spec, work = planned(folder)
    recording = record_job(job_of(spec, work, kind="gpu"))
    left = {recording.part(block) for block in recording.alive(len(recording.events))}
    assert left <= {"weights", "buffers", "optimizer", "inputs"}


def test_a_trace_is_kept_by_content(folder, monkeypatch):
    """The second plan runs nothing; another length is another job; a damaged file is a miss."""
    spec, work = planned(folder)
    job = job_of(spec, work, kind="gpu")
    first = trace(job)
    monkeypatch.setattr(run, "record_job", lambda _: pytest.fail("it was kept"))
    assert trace(job) == first
    other = dataclasses.replace(work, seq=32)
    assert job_of(spec, other, kind="gpu").key() != job.key()
    assert job_of(spec, work, kind="cpu").key() != job.key()
    monkeypatch.undo()
    monkeypatch.setenv("MEMPLAN_CACHE", str(folder.parent / "cache"))
    _path(job).write_text('{"peak_bytes": 1}', encoding="utf-8")
    assert trace(job).peak_bytes == first.peak_bytes


def test_what_cannot_be_traced_is_answered_by_the_closed_form_and_says_why(folder, monkeypatch):
    """With the operator and the line of code that failed."""
    spec, work = planned(folder)
    from transformers.models.llama import modeling_llama

    def looks_at_values(self, x):
        return self.down_proj(x.sum().item() * x)

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", looks_at_values)
    with pytest.raises(
        NotTracedError, match=r"_local_scalar_dense.*test_estimate.py:\d+"
    ) as caught:
        trace(job_of(spec, work, kind="gpu"))
    assert "--estimator formula" in caught.value.hint
    foot = TraceEstimator()(spec, work)
    assert foot.total_bytes == estimate(spec, work).total_bytes
    line = next(line for line in foot.lines if line.part == "activations")
    assert line.basis == "formula"
    assert "not traced" in line.source


def test_a_model_without_a_config_is_not_traced(folder):
    """Headers alone build nothing."""
    spec, work = planned(folder)
    foot = TraceEstimator()(dataclasses.replace(spec, config=""), work)
    assert "no config.json" in next(x for x in foot.lines if x.part == "activations").source


def test_prefill_and_decoding_are_traced_on_demand(folder):
    """The cache is what the formulas say, to the byte."""
    options = {"task": "infer", "context": 64, "estimator": "trace", "precision": None}
    options |= {"seq": None, "batch": 3}
    spec, work = planned(folder, **options)
    foot = TraceEstimator()(spec, work)
    seen = trace(job_of(spec, work, kind="gpu"))
    assert foot.part("kv_cache") == seen.cache_bytes == estimate(spec, work).part("kv_cache")
    assert next(x for x in foot.lines if x.part == "activations").basis == "trace"


def test_a_prompt_is_answered_by_a_kept_trace_and_else_by_the_closed_form(folder, monkeypatch):
    """In a blink either way: nothing is traced that nobody asked for."""
    options = {"task": "infer", "context": 64, "precision": None, "seq": None, "batch": 1}
    spec, work = planned(folder, **options)
    plain = TraceEstimator()(spec, work)
    assert plain == estimate(spec, work)
    exact = TraceEstimator()(*planned(folder, **options, estimator="trace"))
    monkeypatch.setattr(run, "record_job", None)
    assert TraceEstimator()(spec, work) == exact != plain
    for own in ({"estimator": "formula"}, {"runtime": "vllm"}):
        other = planned(folder, **{**options, **own})
        assert TraceEstimator()(*other) == estimate(*other)


def test_adapters_that_fit_no_module_are_refused(folder):
    """Before anything is traced."""
    with pytest.raises(UsageError, match="no linear called nothing"):
        planned(folder, method="lora", lora_targets="nothing")
    with pytest.raises(UsageError, match="without adapters"):
        planned(folder, lora_rank=8)
