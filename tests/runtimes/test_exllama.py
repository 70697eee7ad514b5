"""memplan.runtimes.exllama against its source's layouts and published differences."""

from __future__ import annotations

import types

import pytest
from checkpoints import LLAMA_7B, write_config

from memplan.errors import UnsupportedModelError, UsageError
from memplan.footprint.defaults import complete
from memplan.footprint.estimate import estimate
from memplan.models.load import load_model
from memplan.models.resolve import resolve
from memplan.runtimes import exllama, runtime
from memplan.types import Layer, State, Workload
from memplan.units import GIB, MIB


def attention(kind="full_attention", **more):
    sizes = {"kv_heads": 8, "key_dim": 128, "value_dim": 128, "intermediate": 14336}
    return Layer(kind=kind, **(sizes | more))


def spec_of(*layers, **more):
    fields = {"layers": layers, "model_type": None, "hidden": 4096, "vocab": 128_256}
    return types.SimpleNamespace(name="model", **(fields | more))


def work(**more):
    return Workload(**({"runtime": "exllama", "kv_dtype": "float16", "context": 8192} | more))


def cache(spec, **more):
    return {line.part: line.bytes for line in exllama.cache_lines(spec, work(**more))}


def test_a_cache_is_whole_pages_of_256_tokens_for_each_sequence():
    """8 heads x (128 + 128) x 2 B = 4 KiB a token."""
    one = spec_of(attention())
    assert cache(one, context=1)["kv_cache"] == 256 * 4096
    assert cache(one, context=257, batch=3)["kv_cache"] == 3 * 512 * 4096


@pytest.mark.parametrize(
    ("name", "bits"), [("q2", 2.5), ("q4", 4.5), ("q6", 6.5), ("q8", 8.5), ("k8v4", 6.5)]
)
def test_a_packed_cache_has_a_float16_scale_for_32_values(name, bits):
    """Half a bit more than its name says."""
    one = spec_of(attention())
    assert cache(one, kv_dtype=name)["kv_cache"] == 8192 * 2048 * bits / 8


def test_a_pair_of_types_costs_what_the_web_ui_measured():
    """Textgen pull request 6903: cogito-32B at 8192 tokens, values in 8 bits instead of 4: 270 MiB.

    64 layers x 8192 x 1024 values x 4 bits = 256 MiB.
    """
    cogito = spec_of(*[attention()] * 64)
    more = cache(cogito, kv_dtype="k4v8")["kv_cache"] - cache(cogito, kv_dtype="q4")["kv_cache"]
    assert more == 256 * MIB
    assert more / MIB == pytest.approx(17_097 - 16_827, rel=0.06)


def test_gemma_3_keeps_all_of_its_context():
    """Issue 50 of exllamav3: 27B in q6 grows by 5834 MiB from 2k to 30k tokens.

    62 layers x 4096 values x 6.5 bits, and one layer unpacked: 214,528 B a token, 1 % from it.
    """
    sizes = {"kv_heads": 16, "window": 1024}
    gemma = spec_of(*[attention("sliding_attention", **sizes)] * 62, model_type="gemma3_text")
    first, last = (cache(gemma, kv_dtype="q6", context=k * 1024)["kv_cache"] for k in (2, 30))
    unpacked = 28 * 1024 * 4096 * 2
    assert (last - first + unpacked) / MIB == pytest.approx(23_238 - 17_404, rel=0.01)


@pytest.mark.parametrize(
    ("name", "row"), [("float16", 1152), ("q8", 672), ("q6", 544), ("q4", 416)]
)
def test_mla_packs_its_latent_and_keeps_its_rope(name, row):
    """512 values packed, 64 in float16: the figures of exllamav3's own source (mla.py)."""
    latent = attention("mla", kv_heads=1, key_dim=512, value_dim=64)
    assert cache(spec_of(latent), kv_dtype=name)["kv_cache"] == 8192 * row


def test_windows_of_newer_models_lie_in_rings_that_are_never_packed():
    """gpt-oss, W 128: ceil(639 / 256) pages = 768 tokens a slot; upper end 16 slots."""
    layer = attention("sliding_attention", window=128, key_dim=64, value_dim=64)
    spec = spec_of(layer, model_type="gpt_oss")
    line = exllama.cache_lines(spec, work(kv_dtype="q4", batch=2))[0]
    ring = 768 * 8 * 128 * 2
    assert (line.part, line.bytes, line.high_bytes) == ("state_cache", 2 * ring, 16 * ring)


def test_values_are_stored_as_wide_as_keys():
    """MiMo-V2: keys of 192 and values of 128; both take head_dim, rings of 768 tokens."""
    layer = attention("sliding_attention", window=128, key_dim=192, value_dim=128)
    assert cache(spec_of(layer, model_type="mimo_v2_flash"))["state_cache"] == 768 * 8 * 384 * 2
    full = attention(key_dim=192, value_dim=128)
    assert cache(spec_of(full))["kv_cache"] == 8192 * 8 * 384 * 2


def test_states_are_kept_for_each_slot():
    """Qwen3-Next: 8192 channels x 4 in 16 bits, and 32 x 128 x 128 in float32."""
    states = (State(kind="conv", elements=8192, kernel=4),)
    states += (State(kind="recurrent", elements=32 * 128 * 128, dtype="float32"),)
    spec = spec_of(Layer(kind="state", states=states))
    assert cache(spec, batch=3) == {"state_cache": 3 * (8192 * 8 + 2 * MIB)}


@pytest.mark.parametrize("name", ["q9", "q1", "int4", "fp8", "k8", "bfloat16"])
def test_a_type_that_exllama_does_not_have_is_refused(name):
    """With those that it has."""
    with pytest.raises(UsageError, match="no cache of type") as caught:
        cache(spec_of(attention()), kv_dtype=name)
    assert "k8v4" in caught.value.hint


@pytest.mark.parametrize(
    "layer",
    [
        attention("compressed_attention", window=128),
        attention(cross_tokens=10),
        attention("mla", index_dim=128),
    ],
)
def test_layers_without_a_rule_are_refused(layer):
    """Guessing would be worse."""
    with pytest.raises(UnsupportedModelError, match="in exllama"):
        cache(spec_of(layer))


def test_a_chunk_holds_gate_up_product_and_one_matrix():
    """T = 2048: 2048 x (10 x 4096 + 6 x 14336) B and 4096 x 14336 x 2 B = 360 MiB."""
    line = exllama.activation_line(spec_of(attention()), work())
    assert line.bytes == 2048 * (40_960 + 86_016) + 4096 * 14_336 * 2
    assert line.low_bytes < line.bytes < line.high_bytes
    short = exllama.activation_line(spec_of(attention()), work(context=100))
    assert short.bytes < line.bytes
    packed = exllama.activation_line(spec_of(attention()), work(kv_dtype="q4"))
    assert packed.high_bytes - line.high_bytes == 8192 * 4096


@pytest.fixture
def llama(tmp_path):
    return write_config(tmp_path, LLAMA_7B)


def test_a_plan_with_exllama_has_its_own_defaults(llama):
    """7B at 4096 tokens: 2 GiB in float16, 576 MiB in q4."""
    assert runtime("exllama") is exllama
    spec = resolve(str(llama))
    for options, size in (({}, 2 * GIB), ({"kv_dtype": "Q4"}, 576 * MIB)):
        workload = complete({"runtime": "exllama", **options}, spec)
        lines = {line.part: line for line in estimate(spec, workload).lines}
        assert lines["kv_cache"].bytes == size
        assert lines["overhead"].low_bytes == 192 * MIB
    assert complete({"runtime": "exllama"}, spec).cache is None


def test_exllama_needs_a_gpu(llama):
    """The host cannot compute with it."""
    spec = resolve(str(llama))
    with pytest.raises(UsageError, match="GPUs only"):
        estimate(spec, complete({"runtime": "exllama"}, spec), kind="cpu")


def test_only_its_own_quantization_goes_with_exllama(llama):
    """exl3-4bpw packs the blocks; nf4 belongs to others."""
    packed = load_model(
        str(llama), dtype=None, options={"quant": "exl3-4bpw", "runtime": "exllama"}
    )
    assert packed.weight_bytes < resolve(str(llama)).weight_bytes / 3
    with pytest.raises(UsageError, match="exllama has no quantization 'nf4'") as caught:
        load_model(str(llama), dtype=None, options={"quant": "nf4", "runtime": "exllama"})
    assert "exl3-4bpw" in caught.value.hint
