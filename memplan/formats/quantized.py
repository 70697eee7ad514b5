"""Exact bytes of one linear layer in the quantized layouts that run outside llama.cpp.

A linear has shape (out, in). Sources: each function; most were held against real tensors
(bitsandbytes 0.50, torchao, compressed-tensors 0.20, transformers 5.23).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from memplan.errors import UsageError

__all__ = ["Scheme", "bytes_of", "parse_scheme"]

_FP8_BLOCK = 128
_CODE_BYTES = 64
_NESTED_CODE_BYTES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """One way to store a linear."""

    name: str
    """As on the command line."""
    family: str
    """"bnb", "gptq", "awq", "fp8" ...: which modules it leaves alone."""
    bits: float
    """Bits of one weight."""
    group: int = 0
    """Weights that share a scale; 0 = a whole row."""
    double: bool = False
    """Scales are quantized themselves."""
    symmetric: bool = True
    """No zero points."""
    scale_bytes: int = 2
    """Bytes of one scale."""


def _ceil(count: int, size: int) -> int:
    return -(-count // size)


def _bnb_int8(scheme: Scheme, rows: int, columns: int) -> int:
    """LLM.int8: int8 weight and one float32 a row (SCB); bitsandbytes nn/modules.py."""
    del scheme
    return rows * columns + 4 * rows


def _bnb_4bit(scheme: Scheme, rows: int, columns: int) -> int:
    """nf4 and fp4: two weights a byte, float32 absmax per 64 and a code of 16 float32.

    Double quantization: absmax as uint8, float32 per 256 of them, a code of 256 float32, and one
    float32 offset. Source: bitsandbytes functional.py, quantize_4bit; QuantState.
    """
    count = rows * columns
    blocks = _ceil(count, 64)
    size = _ceil(count, 2) + _CODE_BYTES
    if not scheme.double:
        return size + 4 * blocks
    return size + blocks + 4 * _ceil(blocks, 256) + _NESTED_CODE_BYTES + 4


def _gptq(scheme: Scheme, rows: int, columns: int) -> int:
    """int32 qweight (in·w/32, out), qzeros, float16 scales, int32 g_idx; AutoGPTQ's layout."""
    bits = int(scheme.bits)
    groups = _ceil(columns, scheme.group) if scheme.group else 1
    weight = _ceil(columns * bits, 32) * rows * 4
    zeros = groups * _ceil(rows * bits, 32) * 4
    return weight + zeros + groups * rows * 2 + columns * 4


def _awq(scheme: Scheme, rows: int, columns: int) -> int:
    """As GPTQ, without g_idx; AutoAWQ's layout."""
    return _gptq(scheme, rows, columns) - columns * 4


def _fp8(scheme: Scheme, rows: int, columns: int) -> int:
    """e4m3 and float32 scales: one, one a row, or one per 128 x 128 block (both axes up)."""
    if scheme.name == "fp8-tensor":
        return rows * columns + 4
    if scheme.group:
        blocks = _ceil(rows, scheme.group) * _ceil(columns, scheme.group)
        return rows * columns + scheme.scale_bytes * blocks
    return rows * columns + scheme.scale_bytes * rows


def _mxfp4(scheme: Scheme, rows: int, columns: int) -> int:
    """Two weights a byte and one e8m0 byte per 32 (OCP microscaling)."""
    del scheme
    return rows * (_ceil(columns, 2) + _ceil(columns, 32))


def _nvfp4(scheme: Scheme, rows: int, columns: int) -> int:
    """Two weights a byte, one e4m3 scale per 16, two float32 for the whole (modelopt)."""
    del scheme
    return rows * (_ceil(columns, 2) + _ceil(columns, 16)) + 8


def _grouped(scheme: Scheme, rows: int, columns: int) -> int:
    """Packed integers, a scale and perhaps a zero of 2 bytes per group: HQQ, torchao, quanto."""
    groups = _ceil(rows * columns, scheme.group) if scheme.group else rows
    sizes = scheme.scale_bytes * (1 if scheme.symmetric else 2)
    return _ceil(round(rows * columns * scheme.bits), 8) + groups * sizes


def _torchao_int8(scheme: Scheme, rows: int, columns: int) -> int:
    """int8, float32 scale and int8 zero a row: 16,797,696 B for 4096 x 4096, measured."""
    del scheme
    return rows * columns + rows * 5


def _packed(scheme: Scheme, rows: int, columns: int) -> int:
    """compressed-tensors: packed int32, bfloat16 scales per group, int64[2] of the shape."""
    return _grouped(scheme, rows, columns) + 16


def _exl3(scheme: Scheme, rows: int, columns: int) -> int:
    """int16 trellis (in/16, out/16, 16·K) and float16 signs of both sides; exllamav3."""
    return _ceil(round(rows * columns * scheme.bits), 8) + 2 * (rows + columns)


_LAYOUTS: dict[str, Callable[[Scheme, int, int], int]] = {
    "int8": _bnb_int8,
    "bnb4": _bnb_4bit,
    "gptq": _gptq,
    "awq": _awq,
    "fp8": _fp8,
    "mxfp4": _mxfp4,
    "nvfp4": _nvfp4,
    "hqq": _grouped,
    "torchao": _grouped,
    "torchao-int8": _torchao_int8,
    "quanto": _grouped,
    "eetq": _grouped,
    "bitnet": _grouped,
    "packed": _packed,
    "exl3": _exl3,
}

_FIXED = {
    "int8": Scheme(name="int8", family="int8", bits=8),
    "nf4": Scheme(name="nf4", family="bnb4", bits=4, group=64),
    "nf4-dq": Scheme(name="nf4-dq", family="bnb4", bits=4, group=64, double=True),
    "fp4": Scheme(name="fp4", family="bnb4", bits=4, group=64),
    "fp4-dq": Scheme(name="fp4-dq", family="bnb4", bits=4, group=64, double=True),
    "fp8": Scheme(name="fp8", family="fp8", bits=8, group=_FP8_BLOCK, scale_bytes=4),
    "fp8-block": Scheme(name="fp8-block", family="fp8", bits=8, group=_FP8_BLOCK, scale_bytes=4),
    "fp8-channel": Scheme(name="fp8-channel", family="fp8", bits=8, scale_bytes=4),
    "fp8-tensor": Scheme(name="fp8-tensor", family="fp8", bits=8, scale_bytes=4),
    "mxfp4": Scheme(name="mxfp4", family="mxfp4", bits=4, group=32),
    "nvfp4": Scheme(name="nvfp4", family="nvfp4", bits=4, group=16),
    "torchao-int8": Scheme(name="torchao-int8", family="torchao-int8", bits=8),
    "torchao-float8": Scheme(name="torchao-float8", family="torchao", bits=8, scale_bytes=4),
    "eetq": Scheme(name="eetq", family="eetq", bits=8),
    "bitnet": Scheme(name="bitnet", family="bitnet", bits=2),
    "quanto-int8": Scheme(name="quanto-int8", family="quanto", bits=8),
}

_PATTERNS: tuple[tuple[str, str, bool], ...] = (
    (r"gptq-([2348])bit(?:-g(32|64|128))?", "gptq", False),
    (r"awq-(4)bit(?:-g(32|64|128))?", "awq", False),
    (r"hqq-([12348])bit-g(\d+)", "hqq", False),
    (r"torchao-int(4)-g(32|64|128|256)", "torchao", False),
    (r"quanto-int([24])(?:-g(\d+))?", "quanto", False),
    (r"w([48])a16(?:-g(32|64|128))?", "packed", True),
)
_EXL3 = re.compile(r"exl3-(\d(?:\.\d+)?)bpw")


def parse_scheme(name: str) -> Scheme:
    """Return the scheme of a --quant name.

    Raises UsageError for an unknown one.
    """
    plain = name.lower()
    if plain in _FIXED:
        return _FIXED[plain]
    found = _EXL3.fullmatch(plain)
    if found:
        return Scheme(name=plain, family="exl3", bits=float(found[1]))
    for pattern, family, symmetric in _PATTERNS:
        match = re.fullmatch(pattern, plain)
        if match:
            group = int(match[2] or (128 if family in ("awq", "quanto") else 0))
            bits = 3.2 if family == "hqq" and match[1] == "3" else float(match[1])
            return Scheme(name=plain, family=family, bits=bits, group=group, symmetric=symmetric)
    raise UsageError(
        f"no quantization is called {name!r}",
        hint="such as int8, nf4, nf4-dq, gptq-4bit-g128, awq-4bit-g128, fp8, mxfp4, q4_k_m",
    )


def bytes_of(scheme: Scheme, shape: tuple[int, ...]) -> int:
    """Return the stored bytes of a linear of shape (out, in), or of a stack of them, in bytes."""
    *stack, rows, columns = shape
    count = 1
    for size in stack:
        count *= size
    return count * _LAYOUTS[scheme.family](scheme, rows, columns)
