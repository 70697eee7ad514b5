"""Caches of published models in transformers 5.23, bfloat16, one sequence: to the byte.

Slope and constant of two meta-device passes at 256 and 512 tokens.
"""

from __future__ import annotations

import pytest

from memplan.models.facts import read_facts
from memplan.runtimes.transformers import layer_kv_bytes, layer_state_bytes
from memplan.types import Workload


def cfg(hidden, layers, heads, kv_heads=None, head_dim=None, **more):
    config = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    config |= {"num_key_value_heads": kv_heads or heads, "vocab_size": 1000}
    config |= {"head_dim": head_dim} if head_dim else {}
    return config | {"intermediate_size": 4 * hidden} | more


MLA = {"kv_lora_rank": 512, "qk_rope_head_dim": 64}
GEMMA2 = {"model_type": "gemma2", "sliding_window": 4096}
GEMMA3 = {"model_type": "gemma3_text", "sliding_window": 1024}
GPT2 = {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "model_type": "gpt2"}
MAMBA = {"model_type": "mamba", "intermediate_size": 5120, "state_size": 16, "conv_kernel": 4}
MAMBA2 = {"model_type": "mamba2", "num_heads": 80, "head_dim": 64, "n_groups": 1}
MAMBA2 |= {"state_size": 128, "conv_kernel": 4}
JAMBA = {"model_type": "jamba", "attn_layer_period": 8, "attn_layer_offset": 4}
JAMBA |= {"mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2}
BAMBA = {"model_type": "bamba", "attn_layer_indices": [9, 18, 27], "mamba_n_heads": 128}
BAMBA |= {"mamba_d_head": 64, "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_conv": 4}
NEXT = {"model_type": "qwen3_next", "full_attention_interval": 4, "linear_conv_kernel_dim": 4}
NEXT |= {"linear_num_key_heads": 16, "linear_key_head_dim": 128}
NEXT |= {"linear_num_value_heads": 32, "linear_value_head_dim": 128}
LFM2 = {"model_type": "lfm2", "conv_L_cache": 3, "full_attn_idxs": [2, 5, 8, 10, 12, 14]}
ZAMBA2 = {"model_type": "zamba2", "attention_head_dim": 160, "n_mamba_heads": 8}
ZAMBA2 |= {"mamba_headdim": 640, "mamba_d_state": 64, "mamba_ngroups": 1, "mamba_d_conv": 4}
ZAMBA2 |= {"hybrid_layer_ids": [6, 12, 18, 24, 30, 36, 42, 47, 51]}
FALCON_H1 = {"model_type": "falcon_h1", "mamba_d_ssm": 1024, "mamba_n_heads": 128}
FALCON_H1 |= {"mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_conv": 4}
OLD_FALCON = {"model_type": "falcon", "multi_query": True, "num_key_value_heads": None}
NEW_FALCON = {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 8}

ROWS = [
    ("GPT-2 small", GPT2, 36_864, 0),
    ("Pythia-6.9B", cfg(4096, 32, 32), 524_288, 0),
    ("Falcon-7B", cfg(4544, 32, 71, **OLD_FALCON), 8_192, 0),
    ("Falcon-40B", cfg(8192, 60, 128, **NEW_FALCON), 1_966_080, 0),
    ("Phi-2", cfg(2560, 32, 32), 327_680, 0),
    ("Phi-3-mini", cfg(3072, 32, 32, sliding_window=2047), 393_216, 256),
    ("Llama-3.1-8B", cfg(4096, 32, 32, 8), 131_072, 0),
    ("Mistral-7B v0.1", cfg(4096, 32, 32, 8, sliding_window=4096), 131_072, 256),
    ("Qwen3-8B", cfg(4096, 36, 32, 8, 128), 147_456, 0),
    ("Qwen3-30B-A3B", cfg(2048, 48, 32, 4, 128), 98_304, 0),
    (
        "Gemma-2-9B",
        cfg(3584, 42, 16, 8, 256, model_type="gemma2", sliding_window=4096),
        344_064,
        168,
    ),
    (
        "Gemma-3-27B",
        cfg(5376, 62, 32, 16, 128, model_type="gemma3_text", sliding_window=1024),
        507_904,
        416,
    ),
    ("DeepSeek-V3", cfg(7168, 61, 128, 128, 64, **MLA), 70_272, 0),
    ("Mamba-2.8B", {"hidden_size": 2560, "num_hidden_layers": 64, **MAMBA}, 0, 23_592_960),
    ("Mamba2-2.7B", {"hidden_size": 2560, "num_hidden_layers": 64, **MAMBA2}, 0, 170_524_672),
    ("Jamba-v0.1", cfg(4096, 32, 32, 8, **JAMBA), 16_384, 16_515_072),
    ("Bamba-9B", cfg(4096, 32, 32, 8, **BAMBA), 12_288, 245_288_960),
    ("Qwen3-Next-80B", cfg(2048, 48, 16, 2, 256, **NEXT), 24_576, 77_856_768),
    ("LFM2-1.2B", cfg(2048, 16, 32, 8, **LFM2), 12_288, 122_880),
    ("Zamba2", cfg(2560, 54, 32, 32, **ZAMBA2), 184_320, 73_046_016),
    ("Falcon-H1", cfg(4096, 32, 32, 8, **FALCON_H1), 131_072, 33_947_648),
]


def cache(config, tokens):
    work = Workload(context=tokens, dtype="bfloat16", kv_dtype="bfloat16")
    layers = read_facts(config).layers
    return sum(layer_kv_bytes(x, work) + layer_state_bytes(x, work) for x in layers)


@pytest.mark.parametrize(("name", "config", "slope", "constant"), ROWS, ids=[r[0] for r in ROWS])
def test_slope_and_constant_are_those_measured(name, config, slope, constant):
    """Below every window."""
    del name
    short, long = cache(config, 256), cache(config, 512)
    assert (long - short) / 256 == slope
    assert short - 256 * slope == constant


def test_windows_stop_growing():
    """gpt-oss-20b past its window: 24,576 B a token and 3,121,248 B that stay."""
    config = cfg(2880, 24, 64, 8, 64, model_type="gpt_oss", sliding_window=128)
    assert cache(config, 512) - cache(config, 256) == 256 * 24_576
    assert cache(config, 256) - 256 * 24_576 == 3_121_248


def test_encoder_decoders_keep_both_sides():
    """T5-large: 98,304 B a decoder token and as much an encoder token; Whisper: 1500 frames."""
    t5 = {"model_type": "t5", "is_encoder_decoder": True, "d_model": 1024, "num_layers": 24}
    t5 |= {"num_decoder_layers": 24, "num_heads": 16, "d_kv": 64, "d_ff": 4096}
    assert cache(t5, 100) == 100 * (98_304 + 98_304)
    whisper = {"model_type": "whisper", "is_encoder_decoder": True, "d_model": 1280}
    whisper |= {"decoder_layers": 32, "decoder_attention_heads": 20, "max_source_positions": 1500}
    assert cache(whisper, 10) == 10 * 163_840 + 245_760_000
