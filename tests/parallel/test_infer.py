"""memplan.parallel.infer: what one rank of a tensor-parallel engine loads."""

from __future__ import annotations

import json

import pytest

from memplan.cli.main import run
from memplan.errors import UsageError
from memplan.footprint.defaults import complete
from memplan.models.catalog import find_model
from memplan.parallel.infer import rank_spec


def rank(name, tp, runtime="vllm"):
    spec = find_model(name)
    work = complete({"runtime": runtime, "tp": tp, "gpus": tp}, spec)
    return spec, rank_spec(spec, work)


def shape(spec, name):
    return next(tensor.shape for tensor in spec.tensors if tensor.name.endswith(name))


@pytest.mark.parametrize(("tp", "rows"), [(2, 512), (8, 128), (16, 128), (32, 128)])
def test_vllm_keeps_one_key_head_where_there_are_fewer_than_ranks(tp, rows):
    """Llama-3.1-8B: 8 heads of 128; queries are always divided."""
    _, own = rank("llama-3.1-8b", tp)
    assert shape(own, "layers.0.self_attn.k_proj.weight") == (rows, 4096)
    assert shape(own, "layers.0.self_attn.q_proj.weight") == (4096 // tp, 4096)
    assert shape(own, "layers.0.self_attn.o_proj.weight") == (4096, 4096 // tp)
    assert shape(own, "layers.0.mlp.down_proj.weight") == (4096, 14336 // tp)
    assert shape(own, "layers.0.input_layernorm.weight") == (4096,)
    assert shape(own, "embed_tokens.weight") == (128256 // tp, 4096)


def test_the_parts_add_up():
    """Llama-3.1-8B on two ranks of transformers: (P - norms) / 2 + norms (facts: measured)."""
    spec, own = rank("llama-3.1-8b", 2, "transformers")
    norms = sum(t.bytes for t in spec.tensors if "norm" in t.name and t.kind == "parameter")
    assert own.weight_bytes == (spec.weight_bytes - norms) // 2 + norms


def test_vllm_pads_the_vocabulary():
    """GPT-2's 50257 rows become 50304."""
    _, own = rank("gpt2", 4)
    assert shape(own, "wte.weight")[0] == 50304 // 4


def test_experts_are_divided_and_routers_are_not():
    """Mixtral-8x7B: each expert's inner size over the ranks."""
    spec, own = rank("mixtral-8x7b-v0.1", 4)
    routers = [t for t in own.tensors if t.name.endswith("gate.weight")]
    whole = {t.name: t.bytes for t in spec.tensors}
    assert routers
    assert all(t.bytes == whole[t.name] for t in routers)
    experts = [t for t in own.tensors if ".experts." in t.name]
    assert sum(t.bytes for t in experts) * 4 == sum(whole[t.name] for t in experts)


def test_a_latent_cache_is_on_every_rank():
    """DeepSeek-V3: 8 GPUs hold the same latent cache, an eighth of the projections."""
    one = planned("deepseek-v2-lite", 1)
    four = planned("deepseek-v2-lite", 4)
    assert four["kv_cache"] == one["kv_cache"]
    assert 0.2 < four["weights"] / one["weights"] < 0.3


def planned(model, tp):
    import contextlib
    import io

    text = io.StringIO()
    words = ["--runtime", "vllm", "--device", "h100", "--tp", str(tp), "--disk", "0", "--json"]
    with contextlib.redirect_stdout(text):
        assert run(["plan", model, *words]) == 0
    plan = json.loads(text.getvalue())
    gpus = [x for x in plan["devices"] if x["kind"] == "gpu"]
    assert len(gpus) == tp == plan["workload"]["gpus"]
    assert all(x["parts"] == gpus[0]["parts"] for x in gpus)
    assert plan["placement"]["decode_tokens_per_s"]["value"] > 0
    if tp > 1:
        assert plan["placement"]["device_map"] == {}
    return gpus[0]["parts"]


def test_a_cache_of_heads_is_divided():
    """Qwen2.5-7B: 4 key/value heads over up to as many ranks."""
    one, two, four = (planned("qwen2.5-7b", tp) for tp in (1, 2, 4))
    assert one["kv_cache"] == 2 * two["kv_cache"] == 4 * four["kv_cache"]


@pytest.mark.parametrize(
    ("name", "tp", "runtime", "text"),
    [
        ("llama-3.1-8b", 3, "vllm", "do not divide"),
        ("llama-3.1-8b", 16, "transformers", "key/value heads"),
        ("llama-3.1-8b", 2, "llama.cpp", "not for llama.cpp"),
    ],
)
def test_what_an_engine_refuses_is_refused(name, tp, runtime, text):
    """With the engine's own condition."""
    with pytest.raises(UsageError, match=text):
        rank(name, tp, runtime)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--tp", "2", "--gpus", "4"], "needs as many GPUs"),
        (["--pp", "2"], "training alone"),
        (["--strategy", "tp"], "with --tp"),
    ],
)
def test_the_command_line_says_what_it_cannot_do(words, text, capsys):
    """Exit code 2 and a hint."""
    assert run(["plan", "qwen2.5-7b", "--runtime", "vllm", "--device", "h100", *words]) == 2
    assert text in capsys.readouterr().err
