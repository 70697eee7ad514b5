"""memplan.footprint.defaults: what nobody set is filled in and echoed."""

from __future__ import annotations

import pytest
from checkpoints import TINY, write_llama

from memplan.errors import UsageError
from memplan.footprint.defaults import complete, weight_dtype
from memplan.models.resolve import resolve


@pytest.fixture
def spec(tmp_path):
    return resolve(str(write_llama(tmp_path, TINY)))


def test_every_default_is_named(spec):
    """What the user set is not assumed; everything else that has a value is."""
    work = complete({"context": 100, "batch": None}, spec)
    assert work.context == 100
    assert "context" not in work.assumed
    assert {"batch", "dtype", "runtime", "attention", "kv_dtype"} <= set(work.assumed)
    assert "seq" not in work.assumed


def test_the_context_is_never_longer_than_the_model_allows_unasked(spec):
    """256 positions, although 4096 is the usual default."""
    assert complete({}, spec).context == 256
    assert complete({"context": 1000}, spec).context == 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [({"seq": 5}, "--seq belongs to --task train"), ({"task": "train", "context": 5}, "--context")],
)
def test_an_option_of_the_other_task_is_refused(spec, options, message):
    """Ignoring it would answer another question."""
    with pytest.raises(UsageError, match=message):
        complete(options, spec)


def test_mixed_precision_keeps_float32_weights():
    """Whatever the file holds."""
    assert weight_dtype({"task": "train", "precision": "bf16-mixed"}) == "float32"
    assert weight_dtype({"task": "infer", "dtype": "bf16"}) == "bfloat16"
    assert weight_dtype({"task": "train"}) is None


@pytest.mark.parametrize(
    "options",
    [
        {"task": "train", "precision": "bf16", "dtype": "float32"},
        {"task": "train", "dtype": "float16"},
    ],
)
def test_a_dtype_that_contradicts_the_precision_is_refused(options):
    """With a hint that says what to leave out."""
    with pytest.raises(UsageError) as caught:
        weight_dtype(options)
    assert "--dtype" in caught.value.hint
