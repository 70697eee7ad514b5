"""What was published about the accuracy that number formats cost.

Every figure names its source. A format without one here has no note: its bits still say something.
Figures of one model do not carry over to another to the digit; they order formats of one family.
"""

from __future__ import annotations

from collections.abc import Mapping

from memplan.search.types import Quality

__all__ = ["cache_quality", "weight_quality"]

_SCOREBOARD = "llama.cpp, tools/perplexity/README.md, Llama 3 8B scoreboard (f364eb6f)"
_PLAIN: Mapping[str, float] = {
    "q8_0": 0.00265,
    "q6_k": 0.0217,
    "q5_k_m": 0.0570,
    "q5_k_s": 0.1050,
    "q5_1": 0.1062,
    "q5_0": 0.1316,
    "q4_k_m": 0.1755,
    "q4_k_s": 0.2689,
    "q4_1": 0.4511,
    "q4_0": 0.4685,
    "q3_k_l": 0.5562,
    "q3_k_m": 0.6569,
    "q3_k_s": 1.6322,
    "q2_k": 3.5199,
}
"""Mix -> what it adds to the perplexity 6.23 of f16, without an importance matrix."""
_WITH_MATRIX: Mapping[str, float] = {
    "iq4_nl": 0.2240,
    "iq4_xs": 0.2281,
    "iq3_m": 0.6667,
    "iq3_s": 0.7339,
    "iq3_xs": 0.9314,
    "iq3_xxs": 1.2268,
    "iq2_m": 2.3692,
    "q2_k_s": 3.0921,
    "iq2_s": 3.4191,
    "iq2_xs": 4.5298,
    "iq2_xxs": 7.8601,
    "iq1_m": 19.2621,
    "iq1_s": 54.4630,
}
"""The same with an importance matrix, which these need."""

_AWQ = "AWQ, arXiv 2306.00978, table 4"
_QLORA = "QLoRA, arXiv 2305.14314, table 2"
_TORCHAO = "TorchAO, arXiv 2507.16099"
_FP8 = "Kurtic et al., ACL 2025 (arXiv 2411.02355)"
_NOTES: Mapping[str, tuple[str, str]] = {
    "int8": (
        "C4 perplexity 12.45, as in float32 (13 B model)",
        "LLM.int8(), arXiv 2208.07339, table 1",
    ),
    "nf4": ("Pile perplexity 27.41 with NF4, 34.34 with Int4 (mean of 125 M to 13 B)", _QLORA),
    "nf4-dq": ("Pile perplexity 27.41 with NF4, 34.34 with Int4 (mean of 125 M to 13 B)", _QLORA),
    "fp4": ("Pile perplexity 31.07 with FP4, 27.41 with NF4 (mean of 125 M to 13 B)", _QLORA),
    "awq-4bit-g128": ("Wikitext-2 perplexity 5.60 for 5.47 in fp16 (Llama-2-7B)", _AWQ),
    "gptq-4bit-g128": ("Wikitext-2 perplexity 5.69 for 5.47 in fp16 (Llama-2-7B)", _AWQ),
    "fp8": ("lossless over the Llama-3.1 family, 8 B to 405 B (8-bit activations, too)", _FP8),
    "torchao-int8": ("Wikitext perplexity 7.34 for 7.33 in bf16 (Llama-3.1-8B)", _TORCHAO),
    "torchao-int4-g64": ("Wikitext perplexity 8.25 for 7.33 in bf16 (Llama-3.1-8B)", _TORCHAO),
}

_CACHE: Mapping[tuple[str, str], tuple[str, str]] = {
    ("llama.cpp", "q8_0"): (
        "perplexity 6.2344 for 6.2322 with an f16 cache (Llama 3 8B)",
        "ggml-org/llama.cpp pull request 7412",
    ),
    ("llama.cpp", "q4_0"): (
        "keys alone: perplexity 5.979 for 5.867 with an f16 cache (Llama 2 7B)",
        "ggml-org/llama.cpp pull request 6183",
    ),
}


def weight_quality(name: str) -> Quality | None:
    """Return what is known about a quantization; None for "none"."""
    if name == "none":
        return None
    note, source = _NOTES.get(name, ("", ""))
    for table, how in ((_PLAIN, ""), (_WITH_MATRIX, " with an importance matrix")):
        if name in table:
            text = f"{table[name]:+.2g} on Wikitext-2 perplexity 6.23 of f16 (Llama 3 8B){how}"
            note, source = text, _SCOREBOARD
    return Quality(option="quant", value=name, note=note, source=source)


def cache_quality(engine: str, name: str) -> Quality:
    """Return what is known about a cache's type."""
    note, source = _CACHE.get((engine, name), ("", ""))
    return Quality(option="kv_dtype", value=name, note=note, source=source)
