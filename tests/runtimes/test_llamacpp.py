"""memplan.runtimes.llamacpp against llama.cpp's own dry run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import gguf_files
import pytest

from memplan.errors import UsageError
from memplan.footprint.defaults import complete
from memplan.models.load import load_model
from memplan.runtimes import llamacpp
from memplan.units import MIB

PROGRAM = os.environ.get("MEMPLAN_LLAMA_FIT_PARAMS")
"""Read here: tests run without our environment variables."""

ROWS = [
    ("Llama-3.1-8B", gguf_files.llama, 131_072, 16_384),
    ("Gemma-3-27B", gguf_files.gemma3, 8_192, 1_264),
    ("Gemma-3-27B", gguf_files.gemma3, 131_072, 10_864),
    ("DeepSeek-V3", gguf_files.deepseek3, 131_072, 8_784),
    ("Qwen3-Next-80B", gguf_files.qwen3next, 131_072, 3_147),
]
"""Published dry runs of llama.cpp, MiB of cache in float16 for one sequence."""


def planned(path, **options):
    spec = load_model(str(path), dtype=None, options=options)
    workload = complete(options, spec)
    cache = sum(line.bytes for line in llamacpp.cache_lines(spec, workload))
    return spec, workload, cache


@pytest.mark.parametrize(("name", "model", "context", "expected"), ROWS)
def test_caches_are_those_of_the_dry_run(name, model, context, expected, tmp_path):
    """The five rows that every other tool misses by -99 % to 25 times, to the MiB."""
    del name
    path = gguf_files.write_gguf(tmp_path / "model.gguf", *model())
    _, _, cache = planned(path, context=context)
    assert cache // MIB == expected


def test_a_quantized_cache_takes_its_blocks(tmp_path):
    """q8_0 is 34 bytes for 32 values: 2176 MiB instead of 4096."""
    path = gguf_files.write_gguf(tmp_path / "model.gguf", *gguf_files.llama())
    assert planned(path, context=32_768, kv_dtype="q8_0")[2] == 2_176 * MIB
    with pytest.raises(UsageError, match="no cache of type"):
        planned(path, context=32_768, kv_dtype="int4")


def test_the_context_is_padded_for_each_stream(tmp_path):
    """Every sequence has its own stream, padded to 256 cells."""
    path = gguf_files.write_gguf(tmp_path / "model.gguf", *gguf_files.llama())
    one = planned(path, context=256)[2]
    assert planned(path, context=250)[2] == one
    assert planned(path, context=257, batch=3)[2] == 6 * one


def test_a_window_that_llama_cpp_does_not_know_is_cached_in_full(tmp_path):
    """Mistral's window is not used there: the whole context stays."""
    tensors = gguf_files.llama(layers=2, attention__sliding_window=1024)
    path = gguf_files.write_gguf(tmp_path / "model.gguf", *tensors)
    assert planned(path, context=8_192)[2] == 2 * 8_192 * 4_096


def program():
    name = PROGRAM or shutil.which("llama-fit-params")
    if not name or not Path(name).exists():
        pytest.skip("llama-fit-params is not built here (set MEMPLAN_LLAMA_FIT_PARAMS)")
    return name


def dry_run(path, *, context, ubatch, flash):
    """Return llama.cpp's own (model, cache, compute) in MiB for the host."""
    options = ["--fit-print", "on", "--no-repack", "-b", str(max(2048, ubatch))]
    sizes = ["-c", str(context), "-ub", str(ubatch), "-fa", flash]
    done = subprocess.run(
        [program(), "-m", str(path), *options, *sizes], capture_output=True, text=True, check=True
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("Host"))
    return [int(word) for word in line.split()[1:4]]


@pytest.mark.llamacpp
@pytest.mark.parametrize("flash", ["on", "off"])
@pytest.mark.parametrize(
    "model",
    [
        gguf_files.llama,
        gguf_files.gemma3,
        gguf_files.qwen3moe,
        gguf_files.deepseek3,
        gguf_files.qwen3next,
        gguf_files.gptoss,
    ],
)
@pytest.mark.parametrize(("context", "ubatch"), [(8_192, 512), (32_768, 512), (8_192, 2_048)])
def test_weights_cache_and_compute_buffer_are_those_of_llama_cpp(
    model, context, ubatch, flash, tmp_path
):
    """Weights and cache to the MiB, the compute buffer within 11 % and inside its band."""
    path = gguf_files.write_gguf(tmp_path / "model.gguf", *model())
    weights, cache, compute = dry_run(path, context=context, ubatch=ubatch, flash=flash)
    attention = "eager" if flash == "off" else "flash"
    spec, workload, found = planned(
        path, context=context, prefill_chunk=ubatch, attention=attention
    )
    assert found // MIB == cache
    assert abs(spec.weight_bytes / MIB - weights) <= 2 + 0.001 * weights
    assert llamacpp.compute_bytes(spec, workload) / MIB == pytest.approx(compute, rel=0.11)
    line = llamacpp.activation_line(spec, workload)
    assert line.low_bytes <= compute * MIB <= line.high_bytes
