"""Optimizers: what they keep, against the real libraries, and on tensors without memory."""

from __future__ import annotations

import pytest

from memplan.errors import UsageError
from memplan.footprint.optimizer import OPTIMIZERS, optimizer_bytes
from memplan.models.meta import module_tensors
from memplan.trace.fake import fake_mode, materialise
from memplan.trace.optimizers import make_optimizer, state_tensors, take_step
from memplan.trace.tracker import Tracker

pytestmark = pytest.mark.models


def small(device="cpu"):
    import torch

    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed_tokens = torch.nn.Embedding(300, 64)
            self.up_proj = torch.nn.Linear(64, 257, bias=False)
            self.norm = torch.nn.LayerNorm(257)
            self.lm_head = torch.nn.Linear(257, 300, bias=False)

        def forward(self, ids):
            return self.lm_head(self.norm(self.up_proj(self.embed_tokens(ids))))

    with torch.device(device):
        return Small()


def stepped(model, optimizer):
    import torch

    model(torch.ones(2, 4, dtype=torch.long)).sum().backward()
    take_step(optimizer)
    return held_bytes(state_tensors(optimizer))


def held_bytes(tensors):
    """Return the bytes of the storages: a view keeps all of what it looks at."""
    return sum(
        s.nbytes()
        for s in {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors}.values()
    )


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("target", ["gpu", "cpu"])
def test_states_on_fakes_are_those_of_the_formula(name, target):
    """Every optimizer that has a rule steps without looking at a value."""
    mode = fake_mode()
    model = small("meta")
    tensors = module_tensors(model)
    materialise(model, mode)
    with mode:
        optimizer = make_optimizer(name, model, target=target)
        held = stepped(model, optimizer)
        optimizer.zero_grad()
    assert held == optimizer_bytes(name, tensors)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adamw-8bit", "AdamW8bit"),
        ("paged-adamw", "AdamW32bit"),
        ("lion", "Lion32bit"),
        ("lion-8bit", "Lion8bit"),
        ("ademamix", "AdEMAMix"),
        ("ademamix-8bit", "AdEMAMix8bit"),
    ],
)
def test_states_are_those_of_bitsandbytes(name, kind):
    """One real step; the embedding's 32 bits are registered as transformers' Trainer does."""
    bnb = pytest.importorskip("bitsandbytes")
    import torch

    model = small()
    manager = bnb.optim.GlobalOptimManager.get_instance()
    manager.register_module_override(model.embed_tokens, "weight", {"optim_bits": 32})
    options = {"is_paged": False} if kind.startswith("AdamW3") else {}
    optimizer = getattr(bnb.optim, kind)(model.parameters(), lr=1e-3, **options)
    model(torch.ones(2, 4, dtype=torch.long)).sum().backward()
    optimizer.step()
    found = {}
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                found[value.data_ptr()] = value.numel() * value.element_size()
    tensors = module_tensors(model)
    assert sum(found.values()) == pytest.approx(optimizer_bytes(name, tensors), abs=2048)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("torchao-adamw-8bit", "AdamW8bit"),
        ("torchao-adamw-4bit", "AdamW4bit"),
        ("torchao-adamw-fp8", "AdamWFp8"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_states_are_those_of_torchao(name, kind, dtype):
    """What its optimizers make before their compiled step."""
    optim = pytest.importorskip("torchao.optim")
    import torch

    model = small().to(getattr(torch, dtype))
    optimizer = getattr(optim, kind)(model.parameters())
    found = 0
    for parameter in model.parameters():
        for signed in (True, False):
            made = optimizer._new_buffer(parameter, signed)
            names = getattr(made, "tensor_attrs", None)
            parts = [getattr(made, x) for x in names] if names else [made]
            found += sum(t.numel() * t.element_size() for t in parts)
        found += 4
    assert found == optimizer_bytes(name, module_tensors(model))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rank", [16, 512])
def test_states_are_those_of_galore(dtype, rank):
    """One real step: in float32 the projection keeps the whole decomposition alive."""
    galore = pytest.importorskip("galore_torch")
    import torch

    model = small().to(getattr(torch, dtype))
    low = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    rest = [p for p in model.parameters() if all(p is not q for q in low)]
    group = {"params": low, "rank": rank, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}
    optimizer = galore.GaLoreAdamW([{"params": rest}, group], no_deprecation_warning=True)
    model(torch.ones(2, 4, dtype=torch.long)).sum().backward()
    optimizer.step()
    tensors = []
    for state in optimizer.state.values():
        tensors += [state["exp_avg"], state["exp_avg_sq"]]
        if "projector" in state:
            tensors.append(state["projector"].ortho_matrix)
    assert held_bytes(tensors) == optimizer_bytes(f"galore-r{rank}", module_tensors(model))


@pytest.mark.parametrize("name", ["adamw-for-loop", "adamw-foreach", "adamw-fused", "muon", "sgd"])
def test_the_peak_of_a_step_on_fakes_is_that_on_real_tensors(name):
    """Temporaries, too."""
    import torch

    def peak(model):
        optimizer = make_optimizer(name, model, target="cpu")
        tracker = Tracker()
        tracker.recording.begin("step 1")
        with tracker.watching(model):
            model(torch.ones(2, 4, dtype=torch.long)).sum().backward()
            optimizer.step()
        return tracker.recording.peak()[0]

    mode = fake_mode()
    fake = small("meta")
    materialise(fake, mode)
    with mode:
        traced = peak(fake)
    assert traced == peak(small())


def test_an_optimizer_that_is_not_known_is_refused():
    """With the names that are."""
    with pytest.raises(UsageError, match="lamb") as caught:
        make_optimizer("lamb", small(), target="gpu")
    assert "adamw-8bit" in caught.value.hint
