"""More than 200 hostile files through the real program: one error line, a hint, exit 2, soon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import TINY, llama_tensors, write_config, write_safetensors
from hostile_files import hostile_files, whole_safetensors

SECONDS, MEBIBYTES = 2.0, 300

MIXTRAL = {
    **TINY,
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
GEMMA = {
    **TINY,
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "head_dim": 16,
    "sliding_window": 32,
    "layer_types": ["sliding_attention", "full_attention"],
}
DEEPSEEK = {
    **TINY,
    "model_type": "deepseek_v3",
    "architectures": ["DeepseekV3ForCausalLM"],
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "n_routed_experts": 8,
    "moe_intermediate_size": 32,
}
PICTURES = {
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
    "text_config": GEMMA,
    "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 32},
}
SIZES = (
    ("llama", TINY, "hidden_size num_hidden_layers num_attention_heads num_key_value_heads"),
    ("llama", TINY, "vocab_size intermediate_size max_position_embeddings head_dim"),
    ("mixtral", MIXTRAL, "num_local_experts num_experts_per_tok"),
    ("gemma", GEMMA, "layer_types head_dim"),
    ("deepseek", DEEPSEEK, "kv_lora_rank q_lora_rank qk_rope_head_dim n_routed_experts"),
    ("deepseek", DEEPSEEK, "moe_intermediate_size"),
)
NO_SIZES = (-1, 10**18, "many", 1.5, [], {}, True)
CHANGES = (
    {"text_config": "x"},
    {"text_config": {**GEMMA, "hidden_size": -4}},
    {"text_config": {**GEMMA, "num_hidden_layers": 10**9}},
    {"vision_config": 3},
    {"text_config": {**GEMMA, "layer_types": ["full_attention"] * 3}},
)
LAYOUTS = (
    "x",
    [],
    {"quant_method": 3},
    {"quant_method": "no-such"},
    {"quant_method": "gptq", "bits": -4, "group_size": 128},
    {"quant_method": "gptq", "bits": 4, "group_size": "many"},
    {"quant_method": "gptq", "bits": 4, "group_size": 0},
    {"quant_method": "awq", "bits": 5},
    {"quant_method": "fp8", "weight_block_size": [0, 0]},
    {"quant_method": "fp8", "weight_block_size": [128]},
    {"quant_method": "compressed-tensors", "config_groups": [1]},
    {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 77}}},
)
FIELDS = (
    {"dtype": "float3"},
    {"dtype": 7},
    {"torch_dtype": "complex9", "dtype": None},
    {"model_type": 3},
    {"model_type": None},
    {"model_type": "../../x"},
    {"rope_scaling": "x"},
    {"rope_scaling": {"type": "none-such"}},
    {"hidden_size": 65},
    {"num_attention_heads": 3},
    {"tie_word_embeddings": "maybe"},
    {"layer_types": ["full_attention"]},
    {"layer_types": ["odd", "odd"]},
    {"hidden_act": "nope"},
    {"vocab_size": 2**63},
    {"hidden_size": None},
    {"vocab_size": None},
)
INDICES = (
    {"weight_map": {"a": "../outside.safetensors"}},
    {"weight_map": {"a": "/etc/passwd"}},
    {"weight_map": {"a": "a/b.safetensors"}},
    {"weight_map": {"a": ""}},
    {"weight_map": {"a": 3}},
    {"weight_map": {"a": "gone.safetensors"}},
    {"weight_map": []},
    {"weight_map": {}},
    {},
)


def configs():
    """Yield configs that no model can have."""
    for _, config, keys in SIZES:
        for key in keys.split():
            yield from ({**config, key: value} for value in NO_SIZES)
    yield from ({**PICTURES, **change} for change in CHANGES)
    yield from ({**TINY, "quantization_config": layout} for layout in LAYOUTS)
    yield from ({**TINY, **change} for change in FIELDS)


def special_files(folder):
    """Yield what is no plain file, and what is of another kind than its name says."""
    names = ("config.json", "model.safetensors", "model.gguf", "model.safetensors.index.json")
    for name in names:
        for kind in ("pipe", "folder", "zeros"):
            path = folder / f"{kind}-{name}" / name
            path.parent.mkdir(parents=True)
            if kind == "pipe":
                os.mkfifo(path)
            elif kind == "folder":
                path.mkdir()
            else:
                path.symlink_to("/dev/zero")
            yield path.parent if kind == "pipe" else path
    for i, index in enumerate(INDICES):
        place = folder / f"index{i}"
        write_config(place, TINY)
        (place / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        yield place
    place = folder / "twice"
    for name in ("a.safetensors", "b.safetensors"):
        write_safetensors(place / name, llama_tensors(TINY))
    yield place
    short = whole_safetensors(folder / "short")
    os.truncate(short, short.stat().st_size - 1)
    yield short.parent
    pickles = folder / "pickles"
    pickles.mkdir()
    (pickles / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/x'\ntR.")
    yield pickles


RUNNER = """
import json, os, sys, tempfile, time
from memplan.cli.main import run
import memplan.cli.plan, memplan.devices.parse, memplan.footprint.defaults
import memplan.models.load, memplan.placement.plan

for line in sys.stdin:
    path = line.rstrip("\\n")
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            code = 70
            try:
                code = run(["plan", path, "--device", "24GiB", "--json"])
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        _, status, used = os.wait4(child, 0)
        wall = time.perf_counter() - start
        cpu = used.ru_utime + used.ru_stime
        texts = [stream.seek(0) or stream.read().decode() for stream in (out, err)]
    row = [path, os.waitstatus_to_exitcode(status), *texts, min(wall, cpu), used.ru_maxrss / 1024]
    print(json.dumps(row), flush=True)
"""


@pytest.mark.models
def test_hostile_files_through_the_program(tmp_path):
    """Each in a process of its own, with its own time and memory.

    Modules are imported once, before: 0.2 s and 40 MiB that every start of the program takes.
    """
    for i, config in enumerate(configs()):
        write_config(tmp_path / "configs" / str(i), config)
    places = [str(path) for path in sorted((tmp_path / "configs").iterdir())]
    places += [str(path) for path in special_files(tmp_path / "special")]
    places += [str(path) for path in hostile_files(tmp_path)]
    assert len(set(places)) >= 200
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input="\n".join(places),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == places
    wrong = [row for row in rows if not refused(*row[1:])]
    assert not wrong, describe(wrong[0])


def refused(code, out, err, seconds, mebibytes):
    """Say whether a file was refused as it should be."""
    lines = err.splitlines()
    shape = [line.partition(":")[0] for line in lines]
    soon = seconds <= SECONDS - 0.2 and mebibytes <= MEBIBYTES
    return code == 2 and not out and shape == ["error", "hint"] and soon


def describe(row):
    path = Path(row[0])
    if (path / "config.json").is_file():
        return row[1:], (path / "config.json").read_text()[:2000]
    return row
