"""memplan.models.facts: shapes from configs of many families, held against transformers' own."""

from __future__ import annotations

import pytest

from memplan.errors import BadModelError
from memplan.models.facts import read_facts

BASE = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "intermediate_size": 128,
    "vocab_size": 100,
}


def kinds(**changes):
    return [layer.kind for layer in read_facts({**BASE, **changes}).layers]


def test_grouped_queries_are_read():
    """Cached heads are the key/value heads; without a word every head is cached."""
    assert read_facts({**BASE, "num_key_value_heads": 2}).layers[0].kv_heads == 2
    assert read_facts(BASE).layers[0].kv_heads == 4


def test_falcon_with_multi_query_caches_one_head():
    """The old decoder keeps one, the new one broadcasts to all."""
    assert read_facts({**BASE, "multi_query": True}).layers[0].kv_heads == 1
    new = read_facts({**BASE, "multi_query": True, "new_decoder_architecture": True})
    assert new.layers[0].kv_heads == 4


def test_a_latent_cache_is_its_rank_and_its_rotary_part():
    """MLA: kv_lora_rank + qk_rope_head_dim."""
    layer = read_facts({**BASE, "kv_lora_rank": 512, "qk_rope_head_dim": 64}).layers[0]
    assert (layer.kind, layer.key_dim, layer.value_dim) == ("mla", 512, 64)


def test_layer_types_of_the_config_win():
    """What the config lists is what is used."""
    stated = ["sliding_attention", "full_attention"] * 2
    assert kinds(layer_types=stated, sliding_window=16) == stated


def test_gemma_2_alternates_and_mistral_slides_everywhere():
    """Family rules where the config does not list its layers."""
    assert (
        kinds(model_type="gemma2", sliding_window=16)
        == [
            "sliding_attention",
            "full_attention",
        ]
        * 2
    )
    assert kinds(model_type="mistral", sliding_window=16) == ["sliding_attention"] * 4
    assert kinds(model_type="mistral", sliding_window=None) == ["full_attention"] * 4
    assert kinds(sliding_window=16, use_sliding_window=False) == ["full_attention"] * 4


def test_state_space_layers_are_not_taken_for_attention():
    """They keep states, whatever the length: Jamba has attention in one layer of eight."""
    jamba = kinds(attn_layer_period=8, attn_layer_offset=4, mamba_d_state=16, num_hidden_layers=8)
    assert jamba == ["state"] * 4 + ["full_attention"] + ["state"] * 3
    assert set(kinds(model_type="mamba", state_size=16)) == {"state"}


def test_layers_that_share_a_cache_keep_none_of_their_own():
    """Gemma 3n and 4."""
    assert kinds(num_kv_shared_layers=1)[-1] == "shared_kv"


def test_the_text_part_of_a_vision_model_counts():
    """Nested configs."""
    assert read_facts({"text_config": BASE}).hidden == 64


def test_experts_widen_the_feed_forward_part():
    """K experts and the shared ones."""
    facts = read_facts(
        {
            **BASE,
            "num_experts_per_tok": 2,
            "num_experts": 8,
            "moe_intermediate_size": 32,
            "n_shared_experts": 1,
        }
    )
    assert facts.layers[0].intermediate == 96
    assert (facts.experts, facts.experts_per_token) == (8, 2)


def test_a_missing_size_is_named():
    """No silent default for what decides the memory."""
    with pytest.raises(BadModelError, match="hidden_size"):
        read_facts({"num_hidden_layers": 2})
