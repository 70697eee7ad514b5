"""The band of a compiled model, and an evaluation between steps, in the closed form."""

from __future__ import annotations

import pytest

from memplan.footprint.compiled import compiled
from memplan.footprint.defaults import complete
from memplan.footprint.estimate import estimate
from memplan.models.load import load_model

MODEL = "qwen2.5-7b"


def activations(**options):
    given = {"task": "train", "estimator": "formula", "seq": 512, "method": "lora", **options}
    spec = load_model(MODEL, dtype="bfloat16", options=given)
    lines = estimate(spec, complete(given, spec)).lines
    return next(line for line in lines if line.part == "activations")


def test_torch_compile_keeps_the_estimate_and_widens_the_band():
    """Both ends, and the line says why."""
    plain, made = activations(), activations(compile=True)
    assert made.bytes == plain.bytes
    assert made.low_bytes < plain.low_bytes
    assert made.high_bytes >= max(plain.high_bytes, int(1.2 * plain.bytes))
    assert "torch.compile" in made.source
    assert compiled(plain) == made


def test_an_evaluation_decides_where_its_batch_is_large():
    """By its logits: batch x tokens x vocabulary x (2 + 8) bytes."""
    plain, small, large = (activations(eval_batch=n) for n in (None, 1, 64))
    assert plain.bytes == small.bytes < large.bytes
    assert large.bytes == pytest.approx(64 * 512 * 152064 * 10, rel=0.02)


@pytest.mark.parametrize("option", [{"eval_batch": 2}, {"compile": True}])
def test_both_belong_to_training(option):
    """With the option's name as it is typed."""
    from memplan.errors import UsageError

    spec = load_model(MODEL, dtype="bfloat16", options=option)
    with pytest.raises(UsageError, match="belongs to --task train"):
        complete(option, spec)
