"""Every causal language model that transformers can build: parameters and caches to the byte.

The model itself is the oracle: built on the meta device with its default config, run once, every
tensor of its cache counted. What cannot be held against it is listed here with its cause.
"""

from __future__ import annotations

import pytest

from memplan.footprint.defaults import complete
from memplan.models.resolve import resolve
from memplan.runtimes.transformers import cache_lines

pytestmark = [pytest.mark.models, pytest.mark.sweep]

NO_BUILD = {
    "cohere_compass_text": "its default rope parameters lack full_attention",
    "dbrx": "its attention config lacks rope_theta",
    "dots1": "its default config has no number of shared experts",
    "gemma3n": "its vision tower needs timm and Pillow",
    "gemma4_assistant": "its validator refuses its own defaults",
    "gemma4_unified_assistant": "its default layers cache what none uses",
    "hunyuan_v1_dense": "its default head size is None",
    "hunyuan_v1_moe": "its default head size is None",
    "lfm2_moe": "its default layer types are None",
    "ministral": "its default head size is None",
    "musicgen": "the composite config is not that of its decoder",
    "musicgen_melody": "the composite config is not that of its decoder",
    "nemotron": "its default number of key/value heads is None",
    "qwen4_exp": "its default sizes are None",
    "qwen4_exp_text": "its default sizes are None",
    "reformer": "its default config is no decoder",
}
"""Types whose default config builds no model."""

NO_ORACLE = {
    "blenderbot": "it looks at values, and is too large for the host",
    "blt": "its default config has no num_hidden_layers, which its cache asks for",
    "deepseek_v2": "its default config has no number of experts per token",
    "gemma4": "it looks at values",
    "gemma4_unified": "it looks at values",
    "jetmoe": "its router copies values to the host",
    "longcat_flash": "its router needs torch.nonzero, which meta does not have",
    "moshi": "it looks at values, and is too large for the host",
    "recurrent_gemma": "its states are in the modules, not in a cache",
    "rembert": "it mixes float32 and bfloat16 on the host",
    "xlm": "it looks at values",
    "xlnet": "it mixes float32 and bfloat16",
    "xlstm": "it also keeps one int64 for the whole model, 8 bytes",
    "xmod": "it needs the name of a language",
}
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
    config = oracle.default_config(model_type)
    model = oracle.build(config)
    config.save_pretrained(tmp_path)
    spec = resolve(str(tmp_path / "config.json"), dtype="bfloat16")
    assert spec.weight_bytes == oracle.parameter_bytes(model)
    if model_type in NO_ORACLE:
        pytest.skip(NO_ORACLE[model_type])
    for tokens in (24, 40):
        workload = complete({"context": tokens}, spec)
        planned = sum(line.bytes for line in cache_lines(spec, workload))
        assert planned == oracle.cache_bytes(model, tokens), tokens
