"""memplan.runtimes.transformers_cache against the caches of transformers, to the byte.

Tiny models with random weights run on the host; every tensor of their caches is counted.
"""

from __future__ import annotations

import types

import oracle
import pytest
from checkpoints import LLAMA_7B, write_config

from memplan.errors import UnsupportedModelError, UsageError
from memplan.footprint.defaults import complete
from memplan.models.resolve import resolve
from memplan.placement.plan import make_plan
from memplan.runtimes import transformers as engine
from memplan.runtimes import transformers_cache as rules
from memplan.types import Device, Layer, Workload
from memplan.units import GIB, MIB

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
"""HQQ and quanto, where they are installed, use what torch is about to drop."""

COMMON = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FULL_AND_SLIDING = ["sliding_attention", "full_attention"] * 2
LATENT = {"q_lora_rank": None, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
LATENT |= {"v_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1}
LATENT |= {"topk_group": 1, "moe_intermediate_size": 16, "num_key_value_heads": 4}
NEXT = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16}
NEXT |= {"linear_value_head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2}
NEXT |= {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
NEXT |= {"layer_types": ["linear_attention", "full_attention"] * 2}
FALCON = {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False}

MODELS = {
    "llama": {},
    "mistral": {"sliding_window": 24},
    "gemma2": {"sliding_window": 24, "layer_types": FULL_AND_SLIDING},
    "gemma3_text": {"sliding_window": 24, "layer_types": FULL_AND_SLIDING},
    "gpt_oss": {
        "sliding_window": 24,
        "layer_types": FULL_AND_SLIDING,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "deepseek_v3": LATENT,
    "qwen3_next": NEXT,
    "falcon": FALCON,
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16},
}


def build(kind, dtype="bfloat16", **more):
    """Return (config, model) of a tiny model with random weights on the host."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {key: value for key, value in COMMON.items() if key not in more}
    if kind in ("deepseek_v3", "falcon"):
        del sizes["head_dim"]
    config = transformers.AutoConfig.for_model(kind, **sizes, **more, dtype=dtype)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return config, model.eval()


def feed(model, kept, lengths, batch=1):
    """Run passes of the given lengths."""
    import torch

    with torch.no_grad():
        for length in lengths:
            ids = torch.ones(batch, length, dtype=torch.long)
            model(input_ids=ids, past_key_values=kept, use_cache=True)


def tensor_bytes(value):
    found: dict[int, object] = {}
    oracle.collect(value, found, set())
    return sum(tensor.numel() * tensor.element_size() for tensor in found.values())


def planned(config, folder, **options):
    config.save_pretrained(folder)
    spec = resolve(str(folder / "config.json"), dtype="bfloat16")
    workload = complete(options, spec)
    return spec, workload, sum(line.bytes for line in rules.cache_lines(spec, workload))


@pytest.mark.models
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("tokens", "batch"), [(16, 1), (40, 2)])
def test_a_static_cache_is_allocated_for_the_whole_context(kind, tokens, batch, tmp_path):
    """Windows keep W tokens, states stay as they are, each layer counts in 8 bytes."""
    import transformers

    config, model = build(kind, **MODELS[kind])
    kept = transformers.StaticCache(config=config, max_cache_len=tokens)
    feed(model, kept, [5], batch)
    options = {"context": tokens, "batch": batch, "cache": "static"}
    assert planned(config, tmp_path, **options)[2] == tensor_bytes(kept)


@pytest.mark.models
@pytest.mark.parametrize("kind", MODELS)
def test_a_dynamic_cache_holds_what_was_fed(kind, tmp_path):
    """A prompt and some tokens, two sequences, beyond the window."""
    import transformers

    config, model = build(kind, **MODELS[kind])
    kept = transformers.DynamicCache(config=config)
    feed(model, kept, [36, 1, 1, 1, 1], batch=2)
    assert planned(config, tmp_path, context=40, batch=2)[2] == tensor_bytes(kept)


@pytest.mark.models
def test_an_encoder_decoder_keeps_two_static_caches(tmp_path):
    """T5: the decoder's own tokens, and those of the encoder."""
    import torch
    import transformers

    config = transformers.T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4, dtype="bfloat16"
    )
    config.architectures = ["T5ForConditionalGeneration"]
    model = transformers.T5ForConditionalGeneration._from_config(config).to(torch.bfloat16).eval()
    own = transformers.StaticCache(config=config, max_cache_len=24)
    cross = transformers.StaticCache(config=config, max_cache_len=24)
    kept = transformers.EncoderDecoderCache(own, cross)
    ids = torch.ones(1, 24, dtype=torch.long)
    with torch.no_grad():
        model(input_ids=ids, decoder_input_ids=ids[:, :3], past_key_values=kept)
    assert planned(config, tmp_path, context=24, cache="static")[2] == tensor_bytes(kept)


@pytest.mark.models
@pytest.mark.parametrize("lengths", [[100], [60, 40], [100, 1, 1]])
@pytest.mark.parametrize("kind", ["mistral", "gemma2"])
def test_a_sliding_layer_keeps_alive_what_its_view_was_cut_from(kind, lengths, tmp_path):
    """After a prompt in one pass the whole prompt; while tokens come one by one, W of them."""
    import transformers

    config, model = build(kind, **MODELS[kind])
    kept = transformers.DynamicCache(config=config)
    feed(model, kept, lengths)
    storages = {}
    for layer in kept.layers:
        for tensor in (layer.keys, layer.values):
            storages[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
    shown = sum(t.numel() * t.element_size() for x in kept.layers for t in (x.keys, x.values))
    last = lengths[-1]
    options = {"context": sum(lengths), "prefill_chunk": last}
    spec, workload, _ = planned(config, tmp_path, **options)
    moment = "decode" if last == 1 else "prefill"
    surplus = sum(
        rules.sliding_surplus_bytes(layer, workload, moment=moment) for layer in spec.layers
    )
    assert sum(storages.values()) - shown == surplus
    line = engine.activation_line(spec, workload)
    assert line.bytes > surplus


BACKENDS = [("hqq", "int8"), ("hqq", "int4"), ("hqq", "int2"), ("quanto", "int4")]
BACKENDS += [("quanto", "int2"), ("fp8", "fp8")]
MODULES = {"hqq": "hqq", "quanto": "optimum.quanto", "fp8": "torch"}


@pytest.mark.models
@pytest.mark.parametrize(("backend", "name"), BACKENDS)
@pytest.mark.parametrize("kind", ["llama", "falcon", "deepseek_v3"])
@pytest.mark.parametrize(("prompt", "generated", "batch"), [(96, 0, 1), (96, 27, 2), (128, 128, 1)])
def test_a_quantized_cache_packs_all_but_the_last_tokens(
    backend, name, kind, prompt, generated, batch, tmp_path
):
    """A prompt at once, then new tokens wait until there are 128."""
    pytest.importorskip(MODULES[backend])
    import transformers

    config, model = build(kind, **MODELS[kind])
    bits = {} if backend == "fp8" else {"nbits": int(name.removeprefix("int"))}
    kept = transformers.QuantizedCache(backend, config, **bits)
    feed(model, kept, [prompt, *[1] * generated], batch)
    options = {"context": prompt + generated, "batch": batch, "kv_dtype": name}
    spec, workload, most = planned(config, tmp_path, **options)
    waiting = generated % rules.RESIDUAL_TOKENS if generated else 0
    exact = sum(rules.quantised_bytes(layer, workload, kept=waiting) for layer in spec.layers)
    measured = tensor_bytes(kept)
    assert exact == measured
    assert rules.cache_lines(spec, workload)[0].low_bytes <= measured <= most


def layers(*kinds, **more):
    sizes = {"kv_heads": 8, "key_dim": 128, "value_dim": 128, "intermediate": 256}
    return [Layer(kind=kind, **(sizes | more)) for kind in kinds]


def spec_of(*found):
    return types.SimpleNamespace(layers=found)


def test_an_offloaded_cache_has_two_layers_on_the_device():
    """32 layers of 4096 tokens: 16 MiB a layer, 32 MiB there, 512 MiB in host memory."""
    spec = spec_of(*layers(*["full_attention"] * 32))
    for kind, counters in (("offloaded", 0), ("offloaded-static", 0)):
        work = Workload(context=4096, kv_dtype="bfloat16", cache=kind)
        device, host = rules.offloaded_lines(spec, work)
        assert device.bytes == 2 * 16 * MIB + counters
        assert device.high_bytes == 3 * 16 * MIB
        assert host.low_bytes == 512 * MIB
        assert host.bytes == 512 * MIB
        assert [line.bytes for line in rules.cache_lines(spec, work)] == [32 * MIB]


def test_pinned_memory_comes_in_powers_of_two():
    """4097 tokens of 2 KiB: 8 MiB and 2 KiB of keys, which take 16 MiB, and so do the values."""
    spec = spec_of(*layers("full_attention", "full_attention", "full_attention"))
    work = Workload(context=4097, kv_dtype="bfloat16", cache="offloaded")
    _, host = rules.offloaded_lines(spec, work)
    assert host.low_bytes == 3 * 4097 * 4096
    assert host.bytes == 3 * 2 * 16 * MIB


def test_a_static_cache_offloads_no_windows():
    """A dynamic one does (offload_only_non_sliding is False there, True here)."""
    kinds = layers("full_attention", "full_attention")
    kinds += layers("sliding_attention", "sliding_attention", window=1024)
    spec = spec_of(*kinds)
    work = Workload(context=4096, kv_dtype="bfloat16", cache="offloaded-static")
    resident, moving = rules.cache_lines(spec, work)
    assert resident.bytes == 2 * (1024 * 4096 + 8)
    assert moving.bytes == 2 * 4096 * 4096
    work = Workload(context=4096, kv_dtype="bfloat16", cache="offloaded")
    assert rules.offloaded_lines(spec, work)[1].low_bytes == sum(
        rules.layer_kv_bytes(layer, work) for layer in kinds
    )


@pytest.mark.models
@pytest.mark.parametrize("kind", ["offloaded", "offloaded-static"])
def test_the_real_cache_never_has_more_than_two_layers_there(kind, monkeypatch, tmp_path):
    """The order of fetching and putting back is transformers' own; the streams do nothing."""
    import torch
    import transformers

    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    still = type("Still", (), {"__enter__": lambda s: s, "__exit__": lambda s, *a: None})
    quiet = still()
    quiet.wait_stream = stream.wait_stream
    monkeypatch.setattr(torch, "Stream", lambda *a, **k: quiet)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device=None: quiet)
    config, model = build("gemma2", **MODELS["gemma2"])
    if kind == "offloaded":
        kept = transformers.DynamicCache(config=config, offloading=True)
    else:
        kept = transformers.StaticCache(config=config, max_cache_len=40, offloading=True)
    there: set[int] = set()
    peaks = []
    for i, layer in enumerate(kept.layers):
        monkeypatch.setattr(layer, "offload", lambda i=i: there.discard(i))
        monkeypatch.setattr(layer, "prefetch", lambda i=i: there.add(i))
        update = layer.update

        def watched(*args, i=i, update=update, **kwargs):
            there.add(i)
            peaks.append(frozenset(there))
            return update(*args, **kwargs)

        monkeypatch.setattr(layer, "update", watched)
    feed(model, kept, [36, 1, 1, 1, 1])
    spec, workload, found = planned(config, tmp_path, context=40, cache=kind)
    seen = [[spec.layers[i] for i in peak] for peak in peaks]
    most = max(sum(rules.layer_kv_bytes(x, workload) for x in each) for each in seen)
    counters = 8 * 4 if kind == "offloaded-static" else 0
    assert abs(most - found) <= counters


@pytest.mark.parametrize(
    ("cache", "layer", "message"),
    [
        ("static", {"kind": "compressed_attention", "window": 8, "compress": 4}, "StaticCache"),
        ("offloaded", {"kind": "compressed_attention", "window": 8}, "pooled cache"),
        ("offloaded", {"kind": "full_attention", "cross_tokens": 10}, "encoder-decoder"),
    ],
)
def test_a_cache_that_transformers_does_not_have_is_refused(cache, layer, message):
    """With a way out."""
    spec = spec_of(*layers(**{k: v for k, v in layer.items() if k != "kind"}), Layer(**layer))
    work = Workload(context=100, kv_dtype="bfloat16", cache=cache)
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        rules.cache_lines(spec, work)
    assert "dynamic" in caught.value.hint


@pytest.fixture
def llama(tmp_path):
    return resolve(str(write_config(tmp_path, LLAMA_7B)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache": "static", "runtime": "vllm"}, "belongs to transformers"),
        ({"cache": "static", "kv_dtype": "int4"}, "no static cache in int4"),
        ({"cache": "offloaded", "kv_dtype": "fp8"}, "no offloaded cache in float8"),
        ({"cache": "static", "task": "train"}, "belongs to --task infer"),
    ],
)
def test_a_cache_is_refused_where_it_does_not_exist(llama, options, message):
    """By name and with a hint."""
    with pytest.raises(UsageError, match=message) as caught:
        complete(options, llama)
    assert caught.value.hint


def test_the_default_cache_is_dynamic_and_said_to_be_assumed(llama):
    """Only transformers has a choice."""
    work = complete({}, llama)
    assert work.cache == "dynamic"
    assert "cache" in work.assumed
    assert complete({"runtime": "vllm"}, llama).cache is None


GPU = Device(name="gpu0", kind="gpu", capacity_bytes=80 * GIB)
HOST = Device(name="cpu", kind="cpu", capacity_bytes=64 * GIB)


@pytest.mark.parametrize("gpus", [1, 2])
def test_the_host_pays_for_what_is_offloaded(llama, gpus):
    """7B in float16, 4096 tokens: 64 MiB a layer; 128 MiB on each GPU and 2 GiB in the host."""
    work = complete({"context": 4096, "cache": "offloaded"}, llama)
    cards = [Device(name=f"gpu{i}", kind="gpu", capacity_bytes=80 * GIB) for i in range(gpus)]
    plan = make_plan(llama, work, [*cards, HOST])
    books = {ledger.name: ledger for ledger in plan.devices}
    assert books["cpu"].parts["kv_cache"] == 2 * GIB
    for card in cards:
        assert books[card.name].parts["kv_cache"] == 128 * MIB


def test_the_head_line_names_the_cache(llama):
    """Unless it is the usual one."""
    from memplan.report import plan_text

    for cache, shown in (("dynamic", False), ("static", True)):
        plan = make_plan(llama, complete({"context": 64, "cache": cache}, llama), [GPU, HOST])
        assert (f"{cache} cache" in plan_text(plan)) == shown


@pytest.mark.parametrize(("devices", "message"), [([HOST], "the host computes"), ([GPU], "none")])
def test_an_offloaded_cache_needs_a_gpu_and_a_host(llama, devices, message):
    """One computes, the other keeps."""
    work = complete({"context": 4096, "cache": "offloaded"}, llama)
    with pytest.raises(UsageError, match=message):
        make_plan(llama, work, devices)
