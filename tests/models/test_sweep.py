"""Every causal language model that transformers can build: parameters and caches to the byte.

The model itself is the oracle: built on the meta device with its default config, run once, every
tensor of its cache counted. What cannot be held against it is listed here with its cause.
"""

from __future__ import annotations

import pytest

from memplan.errors import MemplanError
from memplan.footprint.defaults import complete
from memplan.models.resolve import resolve
from memplan.runtimes.transformers import cache_lines

pytestmark = pytest.mark.models

NO_BUILD = {}
"""Types whose default config builds no model."""

NO_ORACLE = {}
"""Types whose model cannot run without weights, or keeps its cache elsewhere."""


def model_types():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


@pytest.mark.parametrize("model_type", model_types())
def test_parameters_and_cache_are_those_of_the_model(model_type, tmp_path):
    """Two lengths, one below the window and one above."""
    import oracle

    if model_type in NO_BUILD:
        with pytest.raises(Exception):  # noqa: B017, PT011 (each fails in a way of its own)
            oracle.build(oracle.default_config(model_type))
        pytest.skip(NO_BUILD[model_type])
    model = oracle.build(oracle.default_config(model_type))
    model.config.save_pretrained(tmp_path)
    spec = resolve(str(tmp_path / "config.json"), dtype="bfloat16")
    assert spec.weight_bytes == oracle.parameter_bytes(model)
    if model_type in NO_ORACLE:
        pytest.skip(NO_ORACLE[model_type])
    for tokens in (24, 40):
        workload = complete({"context": tokens}, spec)
        planned = sum(line.bytes for line in cache_lines(spec, workload))
        assert planned == oracle.cache_bytes(model, tokens), tokens
