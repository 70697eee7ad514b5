"""memplan.models.load: a model in the layout that an engine runs."""

from __future__ import annotations

import gguf_files
import pytest

from memplan.errors import UsageError
from memplan.footprint.defaults import complete
from memplan.footprint.estimate import estimate
from memplan.models.load import load_model


def load(argument, **options):
    return load_model(argument, dtype=None, options=options)


@pytest.mark.parametrize(
    ("quant", "gigabytes"),
    [
        ("q4_0", 4.66),
        ("q4_k_m", 4.92),
        ("q4_k_s", 4.69),
        ("q5_k_m", 5.73),
        ("q6_k", 6.60),
        ("q8_0", 8.54),
        ("q3_k_m", 4.02),
        ("q2_k", 3.18),
    ],
)
def test_a_mix_is_as_large_as_the_published_file(quant, gigabytes):
    """Llama-3.1-8B as published (decimal GB, header and vocabulary of 8 MB in it)."""
    spec = load("llama-3.1-8b", runtime="llama.cpp", quant=quant)
    assert spec.weight_bytes / 1e9 == pytest.approx(gigabytes, abs=0.012)


def test_llama_cpp_without_a_quantization_keeps_the_dtype():
    """Matrices in bfloat16, 1-D tensors in float32."""
    spec = load("llama-3.1-8b", runtime="llama.cpp")
    assert {t.dtype for t in spec.tensors} == {"bf16", "f32"}


def test_each_engine_plans_the_same_model(tmp_path):
    """A footprint from all three, with every part above zero and a band that holds it."""
    del tmp_path
    for engine in ("transformers", "vllm", "llama.cpp"):
        options = {"runtime": engine, "context": 8192}
        spec = load("qwen3-8b", **options)
        footprint = estimate(spec, complete(options, spec))
        parts = {line.part for line in footprint.lines}
        assert {"weights", "kv_cache", "activations", "overhead"} <= parts
        assert footprint.low_bytes < footprint.total_bytes < footprint.high_bytes


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"quant": "q4_k_m", "runtime": "vllm"}, "llama.cpp"),
        ({"quant": "nf4", "runtime": "llama.cpp"}, "no quantization"),
        ({"quant": "magic"}, "magic"),
    ],
)
def test_what_does_not_go_together_is_refused(options, text):
    """With the right option in the message."""
    with pytest.raises(UsageError, match=text):
        load("llama-3.1-8b", **options)


def test_a_gguf_file_keeps_its_types(tmp_path):
    """Neither another quantization nor another engine."""
    sizes = {"layers": 1, "hidden": 256, "heads": 4, "kv_heads": 2, "key": 64, "inner": 512}
    path = gguf_files.write_gguf(tmp_path / "m.gguf", *gguf_files.llama(**sizes, vocab=64))
    assert load(str(path)).weight_format == "gguf q4_0"
    for options in ({"quant": "q8_0"}, {"runtime": "vllm"}):
        with pytest.raises(UsageError, match="GGUF"):
            load(str(path), **options)
