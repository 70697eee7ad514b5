"""Damaged and lying model files."""

from __future__ import annotations

import json
import pickle
import struct

import gguf_files
from checkpoints import TINY, llama_tensors, write_config, write_safetensors


def whole_gguf(tmp_path):
    model = gguf_files.llama(layers=2, hidden=256, heads=4, kv_heads=2, key=64, inner=512, vocab=64)
    return gguf_files.write_gguf(tmp_path / "model.gguf", *model)


def whole_safetensors(tmp_path):
    write_config(tmp_path, TINY)
    return write_safetensors(tmp_path / "model.safetensors", llama_tensors(TINY))


def deep(depth):
    return "[" * depth + "]" * depth


def hostile_files(tmp_path):
    """Yield named files that a reader must refuse."""
    gguf = whole_gguf(tmp_path / "g").read_bytes()
    tensors = whole_safetensors(tmp_path / "s").read_bytes()
    folder = tmp_path / "bad"
    folder.mkdir()

    def file(name, data):
        path = folder / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    for value in (2**63, 2**64 - 1, 10**9, 10**6 + 1):
        yield file(f"tensors{value}.gguf", gguf[:8] + struct.pack("<Q", value) + gguf[16:])
        yield file(f"keys{value}.gguf", gguf[:16] + struct.pack("<Q", value) + gguf[24:])
        yield file(f"text{value}.gguf", gguf[:24] + struct.pack("<Q", value) + gguf[32:])
        yield file(f"h{value}.safetensors", struct.pack("<Q", value) + tensors[8:])
    for version in (0, 1, 4, 3 << 24, 2**32 - 1):
        yield file(f"v{version}.gguf", gguf[:4] + struct.pack("<I", version) + gguf[8:])
    for length in (0, 1, 3, 4, 7, 8, 20, 24, 40, 100, len(gguf) // 2):
        yield file(f"short{length}.gguf", gguf[:length])
        yield file(f"short{length}.safetensors", tensors[: min(length, len(tensors) - 1)])
    for name, header in {
        "nan": '{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}',
        "negative": '{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        "overlap": '{"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},'
        ' "b": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]}}',
        "lying": '{"a": {"dtype": "F32", "shape": [1000000000], "data_offsets": [0, 4]}}',
        "float": '{"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}}',
        "unknown": '{"a": {"dtype": "F3", "shape": [1], "data_offsets": [0, 4]}}',
        "list": "[1, 2, 3]",
        "deep": deep(100_000),
        "digits": '{"a": {"dtype": "F32", "shape": [' + "9" * 5000 + '], "data_offsets": [0, 4]}}',
    }.items():
        data = header.encode()
        yield file(f"{name}.safetensors", struct.pack("<Q", len(data)) + data + b"\0" * 4)
    for name, text in {
        "nan": '{"model_type": "llama", "hidden_size": NaN}',
        "infinity": '{"model_type": "llama", "hidden_size": Infinity}',
        "list": "[]",
        "text": '"llama"',
        "cut": '{"model_type": "lla',
        "deep": '{"a": ' + deep(100_000) + "}",
        "digits": '{"hidden_size": ' + "9" * 5000 + "}",
        "bytes": "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
        "unknown": json.dumps({**TINY, "model_type": "no-such-model"}),
        "code": json.dumps({**TINY, "model_type": "x", "auto_map": {"AutoConfig": "evil.Evil"}}),
    }.items():
        yield file(f"{name}.json", text)
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
        for value in (-1, 0, 10**18, "many", 1.5, [], {}, True):
            name = f"{key}{len(repr(value))}{type(value).__name__}{str(value)[:2]}"
            yield file(f"{name}.json", json.dumps({**TINY, key: value}))
    yield file("pickle.bin", pickle.dumps({"a": 1}))
    yield file("pickle.safetensors", pickle.dumps({"a": 1}) * 20)
    yield file("empty.gguf", b"")
    yield file("zip.gguf", b"PK\x03\x04" + bytes(1000))
