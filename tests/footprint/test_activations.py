"""Prefill activations: the formula's band holds what a real pass allocates."""

from __future__ import annotations

import pytest
from checkpoints import LLAMA_7B, write_config, write_llama

from memplan.footprint import activations as act
from memplan.footprint.defaults import complete
from memplan.footprint.estimate import estimate
from memplan.models.resolve import resolve
from memplan.units import MIB

LLAMA_3 = act.LayerShape(hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_dim=128)


def test_the_mlp_moment_is_that_of_llama_3():
    """4096 tokens in bf16: 464 MiB by the rule, 466 MiB measured."""
    assert act.mlp_moment_bytes(LLAMA_3, tokens=4096, element_bytes=2) == 464 * MIB


def test_eager_attention_adds_its_scores():
    """4096 x 4096 x 32 heads x 10 B = 5120 MiB."""
    size = act.scores_bytes(batch=1, heads=32, queries=4096, keys=4096, element_bytes=2)
    assert size == 5120 * MIB


@pytest.mark.models
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_real_prefill_lies_inside_the_band(tmp_path, attention):
    """Allocator events of torch.profiler on a small Llama, cache left out."""
    import torch
    import transformers
    from torch.profiler import ProfilerActivity, profile

    config = transformers.LlamaConfig(
        vocab_size=1000,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        dtype="float32",
    )
    model = transformers.LlamaForCausalLM._from_config(config, attn_implementation=attention)
    model.save_pretrained(tmp_path)
    spec = resolve(str(tmp_path))
    work = complete({"context": 512, "attention": attention}, spec)
    kept = transformers.DynamicCache(config=config)
    tokens = torch.ones(1, 512, dtype=torch.long)
    with (
        torch.no_grad(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof,
    ):
        model(tokens, past_key_values=kept, logits_to_keep=1)
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    running = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        running += event.nbytes()
        peak = max(peak, running)
    lines = {line.part: line for line in estimate(spec, work, kind="cpu").lines}
    measured = peak - lines["kv_cache"].bytes
    assert lines["activations"].low_bytes <= measured <= lines["activations"].high_bytes
    # The 64 MiB of slack would hide a wrong rule on so small a model.
    assert measured == pytest.approx(lines["activations"].bytes, rel=0.35)


def test_bytes_grow_with_what_people_turn(tmp_path):
    """More tokens, more sequences, eager attention: never less."""
    spec = resolve(str(write_config(tmp_path, LLAMA_7B)))
    base = estimate(spec, complete({"context": 1024}, spec)).total_bytes
    for change in ({"context": 2048}, {"context": 1024, "batch": 2}):
        assert estimate(spec, complete(change, spec)).total_bytes > base
    chunked = complete({"context": 1024, "prefill_chunk": 128}, spec)
    assert estimate(spec, chunked).total_bytes < base


def test_a_model_without_a_config_says_what_is_missing(tmp_path):
    """Headers alone show no heads."""
    from memplan.errors import UnsupportedModelError

    folder = write_llama(tmp_path)
    (folder / "config.json").unlink()
    spec = resolve(str(folder))
    with pytest.raises(UnsupportedModelError) as caught:
        estimate(spec, complete({}, spec))
    assert "config.json" in caught.value.hint
