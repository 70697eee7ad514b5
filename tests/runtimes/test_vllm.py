"""memplan.runtimes.vllm against what vLLM prints and what follows by hand from its block tables."""

from __future__ import annotations

import types

import pytest

from memplan.models.facts import read_facts
from memplan.runtimes import vllm
from memplan.types import Layer, State, Workload
from memplan.units import GIB, MIB

PAGE = vllm.BLOCK_TOKENS


def spec_of(*layers, **more):
    fields = {"layers": layers, "model_type": None, "hidden": 4096, "vocab": 1000, "name": "model"}
    return types.SimpleNamespace(**(fields | more))


def config_spec(config):
    return spec_of(*read_facts(config).layers, model_type=config["model_type"])


def attention(kind="full_attention", **more):
    sizes = {"kv_heads": 8, "key_dim": 128, "value_dim": 128, "intermediate": 14336}
    return Layer(kind=kind, **(sizes | more))


def work(**more):
    return Workload(**({"runtime": "vllm", "kv_dtype": "bfloat16", "context": 8192} | more))


def cache(spec, **more):
    return {line.part: line.bytes for line in vllm.cache_lines(spec, work(**more))}


LLAMA_8B = spec_of(*[attention()] * 32)


@pytest.mark.parametrize(("gib", "blocks", "free"), [(3.81, 1952, 0.0025), (2.89, 1478, 0.0033)])
def test_llama_8b_fits_as_many_blocks_as_vllm_counted(gib, blocks, free):
    """Issue 10517 of vLLM, RTX 3090: 3.81 GiB are 1952 blocks of 16 tokens, 2.89 GiB 1478."""
    planned = cache(LLAMA_8B, context=blocks * PAGE)["kv_cache"]
    assert planned == blocks * 2 * MIB
    assert planned / GIB == pytest.approx(gib, abs=free)


def test_a_page_holds_whole_blocks_of_tokens():
    """16 tokens x 8 heads x (128 + 128) x 2 B = 64 KiB; a seventeenth token takes a second one."""
    one = spec_of(attention())
    assert cache(one, context=1)["kv_cache"] == 64 * 1024
    assert cache(one, context=17, batch=3)["kv_cache"] == 3 * 2 * 64 * 1024


def test_fp8_halves_a_page():
    """One byte a value, and no scales in the page."""
    assert cache(LLAMA_8B, kv_dtype="float8_e4m3fn")["kv_cache"] == 512 * MIB
    assert cache(LLAMA_8B)["kv_cache"] == 1024 * MIB


@pytest.mark.parametrize(("tp", "share"), [(1, 8), (2, 4), (8, 1), (16, 1)])
def test_a_rank_keeps_at_least_one_head(tp, share):
    """8 heads over 16 ranks: every head is there twice."""
    assert cache(LLAMA_8B, tp=tp)["kv_cache"] == 32 * 8192 * share * 512


@pytest.mark.parametrize(
    ("kv_dtype", "row"), [("bfloat16", 1152), ("float8_e4m3fn", 656)], ids=["576 x 2 B", "fp8"]
)
@pytest.mark.parametrize("tp", [1, 8])
def test_mla_keeps_one_row_on_every_rank(kv_dtype, row, tp):
    """512 + 64 values; fp8_ds_mla: 512 e4m3, 4 float32 and 64 bfloat16 = 656 B."""
    latent = attention("mla", kv_heads=1, key_dim=512, value_dim=64)
    assert cache(spec_of(latent), kv_dtype=kv_dtype, tp=tp)["kv_cache"] == 8192 * row


def test_an_indexer_adds_its_key():
    """128 B in fp8 and a float32."""
    latent = attention("mla", kv_heads=1, key_dim=512, value_dim=64, index_dim=128)
    assert cache(spec_of(latent))["kv_cache"] == 8192 * (1152 + 132)


@pytest.mark.parametrize(
    ("chunk", "context", "blocks"),
    [
        (16_384, 131_072, 2_081),  # ceil((511 + 32768) / 16) + 1
        (2_048, 131_072, 289),  # ceil((511 + 4096) / 16) + 1
        (2_048, 4_096, 256),  # never more than the whole context
    ],
)
def test_a_window_needs_room_for_what_is_in_flight(chunk, context, blocks):
    """Two batches are in flight: vLLM issue 54703 has 1041 blocks of 32 tokens for W = 512."""
    assert -(-(511 + 2 * 16_384) // 32) + 1 == 1_041
    spec = spec_of(attention("sliding_attention", window=512))
    planned = cache(spec, context=context, prefill_chunk=chunk)["kv_cache"]
    assert planned == blocks * PAGE * 4096


def test_chunked_attention_needs_its_chunk_and_what_is_in_flight():
    """Llama 4, chunk 8192 and 2 x 2048 in flight: 768 blocks of 8192 at 131,072 tokens."""
    spec = spec_of(attention("chunked_attention", window=8192))
    assert cache(spec, context=131_072)["kv_cache"] == 768 * PAGE * 4096
    assert cache(spec, context=1_000)["kv_cache"] == 63 * PAGE * 4096


def test_cross_attention_keeps_the_encoder():
    """Whisper: 1500 frames in 94 blocks beside the decoder's own tokens."""
    whisper = attention(kv_heads=20, key_dim=64, value_dim=64, cross_tokens=1500)
    assert cache(spec_of(whisper), context=448)["kv_cache"] == (28 + 94) * PAGE * 20 * 128 * 2


@pytest.mark.parametrize("kind", ["shared_kv", "encoder_only", "none"])
def test_layers_without_a_cache_take_nothing(kind):
    """Neither pages nor states."""
    assert cache(spec_of(Layer(kind=kind))) == {}


GATED = {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 8}
GATED |= {"num_key_value_heads": 2, "head_dim": 256, "full_attention_interval": 4}
GATED |= {"linear_conv_kernel_dim": 4, "linear_num_key_heads": 16, "linear_key_head_dim": 128}
GATED |= {"linear_num_value_heads": 16, "linear_value_head_dim": 128, "vocab_size": 1000}
GATED |= {"intermediate_size": 3584, "model_type": "qwen3_5"}
NEXT = GATED | {"model_type": "qwen3_next", "linear_num_value_heads": 32}
NINE = GATED | {"linear_num_value_heads": 32, "num_key_value_heads": 4}

LOGS = [
    ("Qwen3-Next-80B", NEXT, 1, 544, 1.49),
    ("Qwen3.5-0.8B", GATED, 1, 544, 2.64),
    ("Qwen3.5-9B", NINE, 2, 528, 0.76),
]
"""Model, tensor-parallel degree, "Setting attention block size to N tokens" and "Padding mamba page
size by P %" of vLLM's logs (0.11 and later; the last in pull request 37467)."""


@pytest.mark.parametrize(("name", "config", "tp", "tokens", "percent"), LOGS)
def test_pages_of_hybrid_models_are_those_of_the_logs(name, config, tp, tokens, percent):
    """The attention's page grows until it holds a state, and the state's is padded to it."""
    del name
    spec = config_spec(config)
    workload = work(tp=tp)
    assert vllm.block_tokens(spec, workload) == tokens
    state = next(layer for layer in spec.layers if layer.states)
    page = vllm.layer_cache_bytes(spec, state, workload)
    attends = next(layer for layer in spec.layers if not layer.states)
    kv_page = vllm.layer_cache_bytes(spec, attends, work(tp=tp, context=1))
    assert page == kv_page
    line = next(x for x in vllm.cache_lines(spec, workload) if x.part == "state_cache")
    waste = int(line.source.split(", ")[1].split()[0])
    assert 100 * waste / (line.bytes - waste) == pytest.approx(percent, abs=0.005)


def test_a_model_of_states_alone_has_no_pages_to_pad_to():
    """Mamba-2.8B: 64 layers x 5120 x (3 + 16) in bfloat16."""
    states = (State(kind="conv", elements=5120, kernel=4), State(kind="recurrent", elements=81920))
    spec = spec_of(*[Layer(kind="state", states=states)] * 64)
    assert cache(spec) == {"state_cache": 64 * 5120 * (3 + 16) * 2}
    assert cache(spec, batch=2, context=100_000)["state_cache"] == 2 * 64 * 5120 * 19 * 2


def test_the_shares_of_the_layers_add_up():
    """What placement charges per layer is what the lines say."""
    spec = config_spec(NEXT)
    workload = work(batch=3)
    lines = vllm.cache_lines(spec, workload)
    shares = sum(vllm.layer_cache_bytes(spec, layer, workload) for layer in spec.layers)
    assert shares == sum(line.bytes for line in lines)


def test_the_profile_run_holds_gate_up_and_product():
    """Llama-3-8B, 8192 tokens: (3 x 14336 + 4 x 4096) x 2 B a token = 928 MiB."""
    spec = spec_of(attention(), vocab=128_256)
    line = vllm.activation_line(spec, work(prefill_chunk=8192))
    assert line.bytes == 8192 * (3 * 14_336 + 4 * 4_096) * 2
    measured = 1_352_914_698  # vLLM pull request 10511
    assert line.low_bytes < measured < line.high_bytes


def test_a_small_batch_is_dominated_by_the_sampler():
    """256 sequences x 128,256 logits x 4 B, three times."""
    spec = spec_of(attention(), vocab=128_256)
    line = vllm.activation_line(spec, work(prefill_chunk=256))
    assert line.bytes == 3 * 256 * 128_256 * 4
