"""memplan.emit.llamacpp: argument lines, and llama.cpp's own word on them."""

from __future__ import annotations

import re
import shlex
import subprocess

import gguf_files
import pytest
from llamacpp_pairs import PAIRS, Pair, judge, path_of, plan_of

from memplan.emit.llamacpp import arguments, files
from memplan.errors import UsageError
from memplan.footprint.defaults import complete
from memplan.models.load import load_model
from memplan.placement.plan import make_plan
from memplan.types import Device
from memplan.units import GIB, MIB


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Where files are written once: header-only and sparse."""
    return tmp_path_factory.mktemp("gguf")


def emitted(pair, folder):
    spec, plan = plan_of(pair, path_of(pair, folder))
    return arguments(plan, spec)


def value(words, option):
    return words[words.index(option) + 1]


def test_the_whole_workload_is_in_the_line(folder):
    """Context of all sequences, padded; slots, micro-batch, cache type, flash attention, file."""
    options = {"context": 1000, "batch": 3, "prefill_chunk": 4096, "kv_dtype": "q8_0"}
    pair = Pair("gpt-oss-20b mxfp4", (24,), options)
    words = emitted(pair, folder)
    assert value(words, "-m").endswith(".gguf")
    assert value(words, "-c") == str(3 * 1024)
    assert value(words, "-np") == "3"
    assert value(words, "-ub") == value(words, "-b") == "4096"
    assert value(words, "-ctk") == value(words, "-ctv") == "q8_0"
    assert value(words, "-fa") == "on"
    assert value(words, "-fit") == "off"
    assert value(words, "-lm") == "none"
    assert value(words, "-ngl") == "25"
    assert "-ot" not in words


def test_experts_of_the_first_layers_are_named_by_their_number(folder):
    """-ncmoe N, and what of layer N stays behind as a pattern."""
    words = emitted(Pair("qwen3-30b-a3b q4_k_m", (6,), {"context": 8192}), folder)
    assert value(words, "-ngl") == "49"
    count = int(value(words, "-ncmoe"))
    assert 0 < count < 48
    for pattern in (words[i + 1] for i, word in enumerate(words) if word == "-ot"):
        assert pattern.startswith(f"blk\\.{count}\\.")
        assert pattern.endswith("=CPU")


def test_patterns_match_what_the_plan_leaves_and_nothing_else(folder):
    """On two GPUs experts stay behind in two rows; each tensor is where the plan has it."""
    pair = Pair("qwen3-30b-a3b q4_k_m", (8, 6), {"context": 8192})
    spec, plan = plan_of(pair, path_of(pair, folder))
    words = arguments(plan, spec)
    patterns = [words[i + 1].removesuffix("=CPU") for i, w in enumerate(words) if w == "-ot"]
    if "-ncmoe" in words:
        layers = range(int(value(words, "-ncmoe")))
        patterns += [rf"blk\.{i}\.ffn_(up|down|gate|gate_up)_(ch|)exps" for i in layers]
    places = plan.placement.device_map
    for tensor in spec.tensors:
        module = tensor.name.rpartition(".")[0]
        layer = ".".join(module.split(".")[:2])
        device = places.get(module, places.get(layer))
        left = any(re.search(pattern, tensor.name) for pattern in patterns)
        if module != "token_embd":
            assert left == (device == "cpu"), tensor.name
    counts = [int(word) for word in value(words, "-ts").split(",")]
    assert sum(counts) == int(value(words, "-ngl")) == 49


def test_blocks_that_only_draft_count_as_layers(tmp_path):
    """A file with a guessing layer: -ngl counts it, as llama.cpp does, or one layer is missing."""
    meta, tensors = gguf_files.qwen3moe(layers=4)
    meta["qwen3moe.block_count"] = 5
    meta["qwen3moe.nextn_predict_layers"] = 1
    tensors["blk.4.nextn.eh_proj.weight"] = ("q4_0", (2048, 4096))
    path = gguf_files.write_gguf(tmp_path / "m.gguf", meta, tensors)
    spec = load_model(str(path), dtype=None, options={})
    devices = [Device(name="cuda:0", kind="gpu", capacity_bytes=40 * GIB)]
    devices.append(Device(name="cpu", kind="cpu", capacity_bytes=40 * GIB))
    plan = make_plan(spec, complete({"context": 512}, spec), devices)
    assert value(arguments(plan, spec), "-ngl") == "6"


def test_the_script_runs_a_program_with_the_line(folder, tmp_path):
    """llama.sh hands every argument on, unharmed, and what is added after it."""
    pair = Pair("llama-8b q4_k_m", (4,), {"context": 8192})
    spec, plan = plan_of(pair, path_of(pair, folder))
    written = files(plan, spec)
    (tmp_path / "llama.sh").write_text(written["llama.sh"])
    command = ["sh", "llama.sh", "printf", "more words"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.stdout or shown.stderr
    script = shlex.split(
        written["llama.sh"].partition('exec "$program"')[2].replace("\\\n", " "), comments=True
    )
    assert script[:-1] == shlex.split(written["llama.args"]) == arguments(plan, spec)


def test_what_llama_cpp_cannot_carry_out_is_refused(folder, tmp_path):
    """Another engine's plan, another kind of file, and a plan that does not fit."""
    pair = Pair("llama-8b q4_k_m", (4,), {"context": 8192})
    spec, plan = plan_of(pair, path_of(pair, folder))
    small = [Device(name="cpu", kind="cpu", capacity_bytes=GIB)]
    tight = make_plan(spec, plan.workload, small)
    with pytest.raises(UsageError, match="does not fit"):
        arguments(tight, spec)
    other = make_plan(spec, complete({"runtime": "vllm", "context": 512}, spec), small)
    with pytest.raises(UsageError, match="not for llama"):
        arguments(other, spec)
    del tmp_path


@pytest.mark.llamacpp
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_arguments_stay_in_the_budget_and_leave_less_than_a_layer(pair, folder):
    """llama.cpp's own dry run: weights and caches to the MiB, nothing over, little unused.

    A mixture of experts has at least as many bytes of what every token reads on its GPUs as by
    llama.cpp's own --fit with the same budgets.
    """
    found = judge(pair, folder)
    for planned, like_cuda, plain in zip(found.planned, found.ours, found.plain, strict=True):
        caches = planned.get("kv_cache", 0) + planned.get("state_cache", 0)
        assert planned.get("weights", 0) // MIB == like_cuda[0] == plain[0]
        assert caches // MIB == like_cuda[1] == plain[1]
    for budget, high, rows in zip(
        found.budgets, found.high, zip(found.ours, found.plain, strict=True), strict=True
    ):
        assert max(map(sum, rows)) <= min(budget, high)
    if not found.whole:
        assert max(found.unused) <= found.largest
    if "expert" in found.plan.placement.policy:
        assert found.dense[0] >= found.dense[1]
