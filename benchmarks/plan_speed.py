"""How long answers take, beside peers in the same run.

    python benchmarks/plan_speed.py

Best of five runs each, a process of its own, so start-up is in it. A peer that is not installed is
named and left out: pip install hf-mem accelerate.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPEATS = 5
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
"""Compiled modules are kept, as for every user."""
BIN = Path(sys.executable).parent


def best(command: list[str]) -> float | None:
    """Return the shortest of some runs in seconds, or None when the program is not there."""
    program = shutil.which(command[0], path=str(BIN)) or shutil.which(command[0])
    if program is None:
        return None
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        done = subprocess.run(
            [program, *command[1:]], capture_output=True, check=False, env=ENVIRONMENT
        )
        times.append(time.perf_counter() - start)
        if done.returncode not in (0, 1):
            sys.stderr.write(done.stderr.decode()[-500:])
            return None
    return min(times)


def big_checkpoint(folder: Path) -> Path:
    """Write the headers of a DeepSeek-V3-sized checkpoint: 163 shards, 92k tensors, no data."""
    hidden, expert, shards = 7168, 2048, 163
    names: dict[str, tuple[int, int]] = {"model.embed_tokens.weight": (129280, hidden)}
    for layer in range(61):
        at = f"model.layers.{layer}"
        names[f"{at}.self_attn.o_proj.weight"] = (hidden, 16384)
        for i in range(256 if layer >= 3 else 0):
            for part, shape in (("gate", 0), ("up", 0), ("down", 1)):
                rows, columns = (hidden, expert) if shape else (expert, hidden)
                module = f"{at}.mlp.experts.{i}.{part}_proj"
                names[f"{module}.weight"] = (rows, columns)
                names[f"{module}.weight_scale_inv"] = (rows // 128, columns // 128)
    items = sorted(names.items())
    weight_map = {}
    per = -(-len(items) // shards)
    for number in range(shards):
        shard = f"model-{number + 1:05d}-of-{shards:06d}.safetensors"
        entries, end = {}, 0
        for name, shape in items[number * per : (number + 1) * per]:
            scale = name.endswith("scale_inv")
            size = shape[0] * shape[1] * (4 if scale else 1)
            dtype = "F32" if scale else "F8_E4M3"
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
            end += size
            weight_map[name] = shard
        header = json.dumps(entries).encode()
        with (folder / shard).open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + end)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config = {
        "model_type": "deepseek_v3",
        "architectures": ["DeepseekV3ForCausalLM"],
        "hidden_size": hidden,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "intermediate_size": 18432,
        "vocab_size": 129280,
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    print(f"671B checkpoint: {len(items)} tensors in {shards} shards")
    return folder


def big_vocabulary(path: Path) -> Path:
    """Write a GGUF header with a vocabulary of 128k texts."""

    def text(value: str) -> bytes:
        data = value.encode()
        return struct.pack("<Q", len(data)) + data

    def number(key: str, value: int) -> bytes:
        return text(key) + struct.pack("<II", 4, value)

    words = [text(f"token{i}") for i in range(128_256)]
    keys = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        number("llama.block_count", 1),
        number("llama.embedding_length", 4096),
        number("llama.feed_forward_length", 14336),
        number("llama.attention.head_count", 32),
        number("llama.attention.head_count_kv", 8),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, len(words)) + b"".join(words),
        text("tokenizer.ggml.merges") + struct.pack("<IIQ", 9, 8, len(words)) + b"".join(words),
    ]
    info = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 4096, 128_256, 1, 0)
    head = struct.pack("<4sIQQ", b"GGUF", 3, 1, len(keys)) + b"".join(keys) + info
    with path.open("wb") as file:
        file.write(head)
        file.truncate(-(-len(head) // 32) * 32 + 4096 * 128_256 * 2)
    return path


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "big").mkdir()
        big = big_checkpoint(folder / "big")
        gguf = big_vocabulary(folder / "vocabulary.gguf")
        config = folder / "config.json"
        shutil.copy(big / "config.json", config)
        small = json.loads(config.read_text("utf-8"))
        small |= {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "kv_lora_rank": None,
        }
        small |= {"quantization_config": None, "num_hidden_layers": 4}
        config.write_text(json.dumps(small), "utf-8")
        device = ["--device", "80GiB", "--quiet"]
        best(["memplan", "plan", str(config), *device])  # fills the cache of inventories
        rows = [
            ("--help", ["memplan", "--help"]),
            ("--help", ["hf-mem", "--help"]),
            ("--help", ["accelerate", "estimate-memory", "--help"]),
            ("671B index, 163 shards", ["memplan", "plan", str(big), *device]),
            ("GGUF, 128k vocabulary", ["memplan", "plan", str(gguf), *device]),
            ("config in the cache", ["memplan", "plan", str(config), *device]),
            ("catalogue", ["memplan", "plan", "llama-3.1-8b", *device]),
        ]
        print(f"{'what':26}{'program':14}{'seconds':>9}")
        for what, command in rows:
            seconds = best(command)
            shown = "not there" if seconds is None else f"{seconds:9.3f}"
            print(f"{what:26}{command[0]:14}{shown:>9}")


if __name__ == "__main__":
    main()
