"""Hostile and damaged files: one error line, exit 2, soon, in little memory."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys

import pytest
from checkpoints import LLAMA_7B, TINY, llama_tensors, write_config, write_safetensors
from hostile_files import hostile_files, whole_gguf, whole_safetensors
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
