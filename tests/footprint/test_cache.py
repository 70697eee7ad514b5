"""memplan.footprint.cache and the transformers runtime: caches to the byte."""

from __future__ import annotations

import pytest
from checkpoints import save_tiny

from memplan.errors import UnsupportedModelError
from memplan.footprint import cache
from memplan.footprint.defaults import complete
from memplan.models.resolve import resolve
from memplan.runtimes.transformers import cache_lines, layer_kv_bytes
from memplan.types import Layer, Workload


def per_token(layers, **layer):
    work = Workload(context=1, dtype="bfloat16", kv_dtype="bfloat16")
    return layers * layer_kv_bytes(Layer(**layer), work)


@pytest.mark.parametrize(
    ("name", "layers", "layer", "expected"),
    [
        ("GPT-2 small", 12, {"kv_heads": 12, "key_dim": 64, "value_dim": 64}, 36_864),
        ("Llama-3.1-8B", 32, {"kv_heads": 8, "key_dim": 128, "value_dim": 128}, 131_072),
        ("Falcon-7B", 32, {"kv_heads": 1, "key_dim": 64, "value_dim": 64}, 8_192),
        ("Falcon-40B", 60, {"kv_heads": 128, "key_dim": 64, "value_dim": 64}, 1_966_080),
        ("Phi-2", 32, {"kv_heads": 32, "key_dim": 80, "value_dim": 80}, 327_680),
        ("Qwen3-8B", 36, {"kv_heads": 8, "key_dim": 128, "value_dim": 128}, 147_456),
        ("DeepSeek-V3", 61, {"kind": "mla", "key_dim": 512, "value_dim": 64}, 70_272),
    ],
)
def test_bytes_per_token_are_those_measured_in_transformers(name, layers, layer, expected):
    """Published figures of meta-device forward passes, bf16, batch 1."""
    del name
    assert per_token(layers, **{"kind": "full_attention", **layer}) == expected


def test_a_sliding_layer_keeps_one_token_less_than_its_window_and_a_counter():
    """gpt-oss-20b: 12 sliding layers of window 128 keep 3,121,248 B beside the full ones."""
    work = Workload(context=4096, dtype="bfloat16", kv_dtype="bfloat16")
    layer = Layer(kind="sliding_attention", kv_heads=8, key_dim=64, value_dim=64, window=128)
    assert 12 * layer_kv_bytes(layer, work) == 3_121_248


def test_a_short_context_does_not_fill_the_window():
    """min(S, W - 1)."""
    sizes = {"batch": 1, "kv_heads": 1, "key_dim": 1, "value_dim": 1, "element_bytes": 1}
    assert cache.window_cache_bytes(tokens=5, window=128, **sizes) == 10
    assert cache.window_cache_bytes(tokens=500, window=128, **sizes) == 254


def test_a_layer_without_a_rule_is_an_error_and_no_guess():
    """State-space layers have another cache: saying nothing beats a wrong number."""
    layer = Layer(kind="state_space", kv_heads=8, key_dim=64, value_dim=64)
    with pytest.raises(UnsupportedModelError, match="state_space"):
        layer_kv_bytes(layer, Workload(context=10))


@pytest.mark.models
@pytest.mark.parametrize("kind", ["llama", "gemma3", "mixtral"])
@pytest.mark.parametrize("tokens", [16, 100])
def test_planned_caches_equal_real_ones(tmp_path, kind, tokens):
    """A real forward pass on a tiny checkpoint, every tensor of its cache counted."""
    import torch
    import transformers

    folder = save_tiny(tmp_path, kind)
    spec = resolve(str(folder))
    lines = cache_lines(spec, complete({"context": tokens, "batch": 2}, spec))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    kept = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.ones(2, tokens, dtype=torch.long), past_key_values=kept)
    measured = 0
    for layer in kept.layers:
        tensors = [value for value in vars(layer).values() if isinstance(value, torch.Tensor)]
        measured += sum(t.numel() * t.element_size() for t in tensors)
    assert sum(line.bytes for line in lines) == measured
    assert {line.basis for line in lines} == {"exact"}
