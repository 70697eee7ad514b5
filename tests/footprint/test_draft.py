"""What drafts tokens is counted with what it drafts for, under its own name."""

from __future__ import annotations

import dataclasses
import json

import pytest
from checkpoints import TINY, write_config, write_safetensors

from memplan.cli.main import run
from memplan.errors import UnsupportedModelError, UsageError
from memplan.footprint.defaults import complete
from memplan.footprint.draft import draft_lines
from memplan.footprint.estimate import estimate
from memplan.models.mtp import mtp_layers, split_mtp
from memplan.models.resolve import resolve
from memplan.placement.plan import make_plan
from memplan.types import Device, State, Tensor
from memplan.units import MIB

SMALL = {**TINY, "num_hidden_layers": 1, "intermediate_size": 48}


@pytest.fixture
def target(tmp_path):
    """Return a tiny model."""
    return resolve(str(write_config(tmp_path / "target", {**TINY, "dtype": "bfloat16"})))


@pytest.fixture
def draft(tmp_path):
    """Return a smaller one."""
    return resolve(str(write_config(tmp_path / "small", {**SMALL, "dtype": "bfloat16"})))


def parts(lines):
    """Return the bytes of each part."""
    found = {}
    for line in lines:
        found[line.part] = found.get(line.part, 0) + line.bytes
    return found


@pytest.mark.parametrize("engine", ["transformers", "vllm", "llama.cpp"])
def test_a_draft_adds_its_weights_and_a_cache_at_the_targets_context(target, draft, engine):
    """Its lines are those of a plan of its own with this context and batch, and name it."""
    options = {"context": 512, "batch": 3, "runtime": engine}
    own = estimate(draft, complete(options, draft))
    work = complete({**options, "draft": "small", "draft_tokens": 4}, target)
    lines = draft_lines(target, work, draft)
    found = parts(lines)
    assert found["weights"] == draft.weight_bytes
    assert found["kv_cache"] == own.part("kv_cache")
    assert all(line.source.startswith("draft ") for line in lines)
    larger = own.part("activations") if engine == "llama.cpp" else 0
    assert found["activations"] == larger


def test_without_a_draft_nothing_is_added(target):
    """And a number without a draft is a mistake."""
    assert draft_lines(target, complete({"context": 64}, target)) == ()
    with pytest.raises(UsageError, match="without what drafts"):
        complete({"draft_tokens": 3}, target)
    with pytest.raises(UsageError, match="no number of drafted tokens"):
        complete({"draft": "small", "runtime": "vllm"}, target)
    assert complete({"draft": "small"}, target).draft_tokens == 20


@pytest.mark.parametrize("gpus", [1, 2])
def test_a_plan_keeps_the_draft_whole_on_the_first_gpu(target, draft, gpus):
    """Every line of it is in the ledgers, once."""
    devices = [Device(name=f"cuda:{i}", kind="gpu", capacity_bytes=4096 * MIB) for i in range(gpus)]
    options = {"context": 512, "draft": "small"}
    work = complete(options, target)
    lines = draft_lines(target, work, draft)
    with_it = make_plan(target, work, devices, draft=draft)
    without = make_plan(target, complete({"context": 512}, target), devices)
    for part in ("weights", "kv_cache"):
        total = sum(ledger.parts.get(part, 0) for ledger in with_it.devices)
        before = sum(ledger.parts.get(part, 0) for ledger in without.devices)
        assert total - before == parts(lines)[part]
    assert with_it.devices[0].parts["weights"] >= draft.weight_bytes


@pytest.mark.parametrize(("engine", "wider"), [("llama.cpp", 0), ("vllm", 3)])
def test_states_keep_a_copy_for_each_drafted_token(target, engine, wider):
    """1 + n of them; vLLM's convolution is n inputs wider as well."""
    states = (State(kind="conv", elements=100, kernel=4), State(kind="recurrent", elements=1000))
    layer = dataclasses.replace(target.layers[0], kind="state", kv_heads=0, states=states)
    mamba = dataclasses.replace(target, layers=(layer, layer))
    options = {"context": 64, "runtime": engine}
    plain = estimate(mamba, complete(options, mamba)).part("state_cache")
    work = complete({**options, "draft": "small", "draft_tokens": 3}, mamba)
    copies = estimate(mamba, work).part("state_cache")
    assert copies == 4 * plain * (1000 + 100 * (3 + wider)) // (1000 + 100 * 3)


def test_transformers_cannot_take_tokens_back_from_a_state(target, draft):
    """Assisted generation refuses stateful models."""
    layer = dataclasses.replace(target.layers[0], states=(State(kind="conv", elements=8),))
    mamba = dataclasses.replace(target, layers=(layer,))
    with pytest.raises(UnsupportedModelError, match="cannot take tokens back"):
        draft_lines(mamba, complete({"draft": "small"}, mamba), draft)


NAMES = ("embed_tokens.weight", "eh_proj.weight", "mlp.up_proj.weight", "shared_head.head.weight")


@pytest.fixture
def checkpoint(tmp_path):
    """Write a checkpoint whose third layer guesses ahead, like DeepSeek-V3's 62nd."""
    import math

    import torch
    import transformers

    folder = tmp_path / "deep"
    config = {**TINY, "dtype": "bfloat16", "num_nextn_predict_layers": 1}
    write_config(folder, config)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.from_pretrained(folder), dtype=torch.bfloat16
    )
    tensors = {name: ("BF16", list(p.shape)) for name, p in model.named_parameters()}
    tensors |= {f"model.layers.2.{name}": ("BF16", [64, 32]) for name in NAMES}
    write_safetensors(folder / "model.safetensors", tensors)
    weights = sum(2 * math.prod(p.shape) for p in model.parameters())
    return folder, weights


def test_guessing_layers_are_counted_where_they_are_loaded(checkpoint):
    """Not by transformers; by vLLM with --draft mtp alone."""
    folder, weights = checkpoint
    spec = resolve(str(folder))
    assert spec.weight_bytes == weights
    assert (len(spec.mtp), spec.mtp_layers) == (4, 1)
    work = complete({"context": 64, "runtime": "vllm", "draft": "mtp", "draft_tokens": 1}, spec)
    lines = draft_lines(spec, work)
    assert parts(lines)["weights"] == 4 * 64 * 32 * 2
    assert lines[0].low_bytes == 2 * 64 * 32 * 2
    cache = estimate(spec, work).part("kv_cache")
    assert 2 * parts(lines)["kv_cache"] == cache


def test_guessing_layers_need_an_engine_that_loads_them_and_a_file_that_has_them(
    checkpoint, target
):
    """Two errors with what to do."""
    spec = resolve(str(checkpoint[0]))
    with pytest.raises(UsageError, match="does not load"):
        draft_lines(spec, complete({"draft": "mtp"}, spec))
    work = complete({"draft": "mtp", "draft_tokens": 1, "runtime": "vllm"}, target)
    with pytest.raises(UsageError, match="shows no layers"):
        draft_lines(target, work)


@pytest.mark.parametrize(
    ("names", "layers"),
    [
        (["mtp.fc.weight", "mtp.layers.0.mlp.up_proj.weight", "mtp.norm.weight"], 1),
        (["model.mtp_layers.0.a.weight", "model.mtp_layers.1.a.weight"], 2),
        (["model.layers.2.eh_proj.weight", "model.layers.3.eh_proj.weight"], 2),
        (["model.language_model.layers.2.eh_proj.weight"], 1),
    ],
)
def test_guessing_layers_are_told_by_their_names(names, layers):
    """By `mtp`, or by standing behind the last layer."""
    kept = ["model.layers.1.mlp.up_proj.weight", "vision.layers.7.mlp.weight", "lm_head.weight"]
    tensors = [Tensor(name=name, shape=(2,), dtype="float32", bytes=8) for name in kept + names]
    main, ahead = split_mtp({"num_hidden_layers": 2}, tensors)
    assert [tensor.name for tensor in main] == kept
    assert [tensor.name for tensor in ahead] == names
    assert mtp_layers(ahead) == layers


def test_the_command_line_reads_the_draft_model(tmp_path, capsys):
    """--draft FOLDER: its lines stand in the plan."""
    for name, config in (("big", TINY), ("small", SMALL)):
        write_config(tmp_path / name, config)
    plan = ["plan", str(tmp_path / "big"), "--device", "24GiB", "--context", "256", "--json"]
    assert run([*plan, "--draft", str(tmp_path / "small")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["workload"]["draft_tokens"] == 20
    sources = [line["source"] for line in found["footprint"]["lines"]]
    assert sum(source.startswith("draft small: ") for source in sources) == 3
