"""What a rank's activations answer to: torch.compile, and an evaluation between steps."""

from __future__ import annotations

import pytest

from memplan.footprint.defaults import complete
from memplan.footprint.estimate import trained_tensors
from memplan.footprint.optimizer import OPTIMIZERS
from memplan.models.load import load_model
from memplan.parallel.moments import closed_moments, rank_line
from memplan.parallel.shard import shard

MODEL = "qwen2.5-7b"


def line(strategy, gpus, **options):
    given = {
        "task": "train",
        "estimator": "formula",
        "seq": 512,
        "strategy": strategy,
        "gpus": gpus,
        **options,
    }
    spec = load_model(MODEL, dtype="bfloat16", options=given)
    work = complete(given, spec)
    whole = sum(tensor.bytes for tensor in trained_tensors(spec, work))
    one = shard(spec.tensors, work, OPTIMIZERS["adamw"][0], rank=0)
    moments = closed_moments(spec, work, gradients=whole)
    return rank_line(moments, one, work, layers=len(spec.layers), whole=whole), one


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero3"])
def test_torch_compile_widens_a_ranks_band(strategy):
    """As on one GPU: the same estimate, both ends further away."""
    plain, made = (line(strategy, 4, batch=16, compile=c)[0] for c in (None, True))
    assert made.bytes == plain.bytes
    assert made.low_bytes < plain.low_bytes
    assert made.high_bytes >= max(plain.high_bytes, int(1.2 * plain.bytes))
    assert "torch.compile" in made.source


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero3"])
def test_each_rank_evaluates_a_batch_of_its_own(strategy):
    """Logits of the whole evaluation batch, beside no gradient; a small one changes nothing."""
    plain, small, large = (line(strategy, 4, eval_batch=n)[0] for n in (None, 1, 64))
    own = line(strategy, 4)[1].gradients.bytes
    assert plain.bytes == small.bytes < large.bytes
    assert large.bytes + own == pytest.approx(64 * 512 * 152064 * 10, rel=0.02)
