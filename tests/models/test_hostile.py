"""Hostile and damaged files: one error line, exit 2, soon, in little memory."""

from __future__ import annotations

import json
import pickle
import random
import resource
import struct
import subprocess
import sys

import gguf_files
import pytest
from checkpoints import LLAMA_7B, TINY, llama_tensors, write_config, write_safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memplan.errors import MemplanError
from memplan.models.load import load_model
from memplan.types import ModelSpec

HUGE = (-1, 0, 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1)


def plan(path):
    """Return (exit code, stderr, seconds of CPU, MiB of memory) of a real `memplan plan`."""
    code = (
        "import sys, resource\n"
        "from memplan.cli.main import run\n"
        "code = run(sys.argv[1:])\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "status = open('/proc/self/status').read()\n"
        "mark = status.split('VmHWM:')[1].split()[0]\n"  # ru_maxrss is inherited
        "print('USED', used.ru_utime + used.ru_stime, mark, file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    command = [sys.executable, "-c", code, "plan", str(path), "--device", "24GiB"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    lines = done.stderr.splitlines()
    used = next(line.split() for line in lines if line.startswith("USED"))
    errors = [line for line in lines if line.startswith("error:")]
    return done.returncode, errors, float(used[1]), int(used[2]) / 1024


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


def test_hostile_files_give_one_error_line_and_exit_2(tmp_path):
    """The real program on a sample of them: at most 2 s of CPU and 300 MB each."""
    files = list(hostile_files(tmp_path))
    assert len(files) > 80
    fast = [path for path in files if path.suffix != ".json"]
    for path in random.Random(7).sample(fast, 12):
        code, errors, seconds, mebibytes = plan(path)
        assert (code, len(errors)) == (2, 1), (path.name, errors)
        assert seconds < 2, path.name
        assert mebibytes < 300, path.name


def test_every_hostile_file_is_refused_by_the_library(tmp_path):
    """All of them, in one process: a MemplanError in one line with nothing else."""
    for path in hostile_files(tmp_path):
        with pytest.raises(MemplanError) as caught:
            load_model(str(path), dtype=None, options={})
        assert "\n" not in str(caught.value), path.name
        assert len(str(caught.value)) < 600, path.name


def test_a_link_out_of_the_folder_is_no_shard(tmp_path):
    """An index names files of its own folder only."""
    outside = write_safetensors(tmp_path / "outside.safetensors", llama_tensors(TINY))
    folder = tmp_path / "model"
    write_config(folder, TINY)
    for name in ("../outside.safetensors", "/etc/passwd", "a/b.safetensors", ""):
        index = {"weight_map": {"a": name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        with pytest.raises(MemplanError):
            load_model(str(folder), dtype=None, options={})
    assert outside.exists()


def test_ten_gigabytes_of_json_are_not_read(tmp_path):
    """The size alone is refused."""
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(10 * 2**30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MemplanError, match="too large"):
        load_model(str(path), dtype=None, options={})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


def attempt(path):
    """Read a file: a model or a MemplanError, never anything else."""
    try:
        spec = load_model(str(path), dtype=None, options={})
    except MemplanError:
        return
    assert isinstance(spec, ModelSpec)
    assert 0 <= spec.weight_bytes <= 4 * path.stat().st_size  # a config may ask for float64


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, 2**16), st.binary(min_size=1, max_size=9)), max_size=4),
    cut=st.integers(0, 2**17),
)
def test_mutated_gguf_headers_are_read_or_refused(tmp_path_factory, edits, cut):
    """Fuzz target: bytes replaced anywhere in the header, and the file cut anywhere."""
    path = tmp_path_factory.mktemp("fuzz") / "model.gguf"
    data = bytearray(whole_gguf(path.parent).read_bytes())
    for offset, piece in edits:
        place = offset % len(data)
        data[place : place + len(piece)] = piece
    path.write_bytes(bytes(data[: cut or None]))
    attempt(path)
    path.unlink()


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, 2**12), st.binary(min_size=1, max_size=9)), max_size=4),
    cut=st.integers(0, 2**17),
)
def test_mutated_safetensors_headers_are_read_or_refused(tmp_path_factory, edits, cut):
    """The same for safetensors, with no config beside it."""
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    data = bytearray(write_safetensors(path, llama_tensors(TINY)).read_bytes())
    for offset, piece in edits:
        place = offset % min(len(data), 4096)
        data[place : place + len(piece)] = piece
    path.write_bytes(bytes(data[: cut or None]))
    attempt(path)
    path.unlink()


@settings(max_examples=100)
@given(
    key=st.sampled_from(sorted(LLAMA_7B)),
    value=st.one_of(
        st.sampled_from(HUGE),
        st.none(),
        st.booleans(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=8),
        st.lists(st.integers(-9, 9), max_size=3),
        st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    ),
)
def test_mutated_configs_beside_weights_are_read_or_refused(tmp_path_factory, key, value):
    """One value of a config replaced; headers beside it, so nothing is built."""
    folder = tmp_path_factory.mktemp("fuzz")
    whole_safetensors(folder)
    write_config(folder, {**TINY, key: value})
    attempt(folder / "model.safetensors")
