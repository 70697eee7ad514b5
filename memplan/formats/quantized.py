"""Names of quantizations outside llama.cpp, and the exact bytes that each stores.

`parse_scheme("nf4")` turns a name of the command line into a `Scheme`; `bytes_of` says what a
weight of a shape takes in it. The arithmetic of each layout stands in
`memplan.formats.quant_layouts`, the rules about which tensors it touches in
`memplan.models.quantize`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from memplan.errors import UsageError
from memplan.formats import quant_layouts as layouts

__all__ = ["FAMILIES", "Scheme", "bytes_of", "parse_scheme"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """One way to store the weight of a linear, and which modules it leaves alone."""

    name: str
    """As on the command line, or of a checkpoint's config ("fp8", "compressed-tensors" ...)."""
    family: str
    """Whose layout and rules hold: a key of `FAMILIES`."""
    bits: float
    """Bits of one value, without scales (a mean for EXL3)."""
    group: int = 0
    """Values that share a scale; 0 = a row, or whatever the family fixes."""
    symmetric: bool = True
    """No zero points (pack-quantized only; GPTQ and AWQ always store them)."""
    double_quant: bool = False
    """bitsandbytes: the scales are quantized themselves."""
    scale_bytes: int = 2
    """Bytes of one scale where a layout leaves it open."""
    static: bool = False
    """A scale for the activations is stored with each linear."""
    skip: tuple[str, ...] | None = None
    """Module names and patterns that stay as they are; None = the default list."""
    parts: tuple[tuple[str, Scheme], ...] = ()
    """Other schemes by module pattern, first match wins (mixed checkpoints)."""
    default: bool = True
    """False: only what `parts` names is quantized."""


_Layout = Callable[[Scheme, int, int], int]

FAMILIES: Mapping[str, _Layout] = {
    "int8": lambda _, r, c: layouts.bnb_int8(r, c),
    "bnb4": lambda s, r, c: layouts.bnb_4bit(r, c, double_quant=s.double_quant),
    "gptq": lambda s, r, c: layouts.gptq(r, c, bits=int(s.bits), group=s.group),
    "awq": lambda s, r, c: layouts.awq(r, c, bits=int(s.bits), group=s.group),
    "fp8": lambda s, r, c: layouts.fp8_block(
        r, c, group=s.group or 128, scale_bytes=s.scale_bytes, static=s.static
    ),
    "fp8-tensor": lambda s, r, c: layouts.fp8_tensor(
        r, c, scale_bytes=s.scale_bytes, static=s.static
    ),
    "fp8-channel": lambda s, r, c: layouts.fp8_channel(r, c, scale_bytes=s.scale_bytes),
    "fbgemm": lambda _, r, c: layouts.fbgemm_fp8(r, c),
    "mxfp4": lambda _, r, c: layouts.mxfp4(r, c),
    "mx-packed": lambda _, r, c: layouts.mxfp4(r, c),
    "nvfp4": lambda s, r, c: layouts.nvfp4(r, c, static=s.static),
    "nvfp4-online": lambda _, r, c: layouts.nvfp4_online(r, c),
    "hqq": lambda s, r, c: layouts.hqq(
        r, c, bits=int(s.bits), group=s.group, scale_bytes=s.scale_bytes
    ),
    "torchao-int8": lambda _, r, c: layouts.torchao_int8(r, c),
    "torchao-float8": lambda _, r, c: layouts.torchao_float8(r, c),
    "torchao-int4": lambda s, r, c: layouts.torchao_int4(r, c, group=s.group),
    "torchao-intx": lambda s, r, c: layouts.torchao_intx(r, c, group=s.group),
    "packed": lambda s, r, c: layouts.pack_quantized(
        r,
        c,
        bits=int(s.bits),
        group=s.group,
        symmetric=s.symmetric,
        scale_bytes=s.scale_bytes,
    ),
    "eetq": lambda _, r, c: layouts.eetq(r, c),
    "quanto-int8": lambda s, r, c: layouts.quanto_int8(r, c, scale_bytes=s.scale_bytes),
    "quanto": lambda s, r, c: layouts.quanto_packed(
        r, c, bits=int(s.bits), scale_bytes=s.scale_bytes
    ),
    "bitnet": lambda s, r, c: layouts.bitnet(r, c, scale_bytes=s.scale_bytes),
    "exl3": lambda s, r, c: layouts.exl3(r, c, bits=s.bits),
}
"""Layout of each family: (scheme, output features, input features) -> bytes."""

_FIXED = {
    scheme.name: scheme
    for scheme in (
        Scheme(name="none", family="none", bits=16),
        Scheme(name="int8", family="int8", bits=8),
        Scheme(name="nf4", family="bnb4", bits=4, group=64),
        Scheme(name="nf4-dq", family="bnb4", bits=4, group=64, double_quant=True),
        Scheme(name="fp4", family="bnb4", bits=4, group=64),
        Scheme(name="fp4-dq", family="bnb4", bits=4, group=64, double_quant=True),
        Scheme(name="fp8", family="fp8", bits=8, group=128, scale_bytes=4),
        Scheme(name="fp8-block", family="fp8", bits=8, group=128, scale_bytes=4),
        Scheme(name="fp8-tensor", family="fp8-tensor", bits=8, scale_bytes=4),
        Scheme(name="fp8-channel", family="fp8-channel", bits=8, scale_bytes=4),
        Scheme(name="fbgemm-fp8", family="fbgemm", bits=8, scale_bytes=4),
        Scheme(name="mxfp4", family="mxfp4", bits=4, group=32, scale_bytes=1),
        Scheme(name="nvfp4", family="nvfp4", bits=4, group=16, scale_bytes=1, static=True),
        Scheme(name="nvfp4-online", family="nvfp4-online", bits=4, group=16, scale_bytes=1),
        Scheme(name="torchao-int8", family="torchao-int8", bits=8, scale_bytes=4),
        Scheme(name="torchao-float8", family="torchao-float8", bits=8, scale_bytes=4),
        Scheme(name="eetq", family="eetq", bits=8),
        Scheme(name="quanto-int8", family="quanto-int8", bits=8),
        Scheme(name="quanto-int4", family="quanto", bits=4, group=128),
        Scheme(name="quanto-int2", family="quanto", bits=2, group=128),
        Scheme(name="bitnet", family="bitnet", bits=2),
    )
}

_PATTERNS = tuple(
    (re.compile(pattern), family, default)
    for pattern, family, default in (
        (r"gptq-([2348])bit(?:-g(32|64|128))?", "gptq", 0),
        (r"awq-(4)bit(?:-g(32|64|128))?", "awq", 128),
        (r"hqq-([12348])bit(?:-g(8|16|32|64|128|256))?", "hqq", 64),
        (r"torchao-int(4)(?:-g(32|64|128|256))?", "torchao-int4", 128),
        (r"w([48])a16(?:-g(32|64|128))?", "packed", 0),
    )
)
_EXL3 = re.compile(r"exl3-([1-8](?:\.\d{1,3})?)bpw")

_HINT = (
    "int8, nf4, fp4 (-dq), gptq-4bit-g128, awq-4bit-g128, fp8 (-tensor, -channel), fbgemm-fp8, "
    "mxfp4, nvfp4 (-online), hqq-4bit-g64, torchao-int4-g128 / -int8 / -float8, eetq, "
    "quanto-int8 / -int4 / -int2, bitnet, w4a16-g128, exl3-4bpw; llama.cpp: q4_k_m ..."
)


def parse_scheme(name: str) -> Scheme:
    """Return the scheme of a --quant name; a GPTQ or w4a16 name without "-g" has one scale a row.

    Raises UsageError for an unknown name, with the families in its hint.
    """
    plain = name.strip().lower()
    if plain in _FIXED:
        return _FIXED[plain]
    found = _EXL3.fullmatch(plain)
    if found and float(found[1]) <= 8:
        return Scheme(name=plain, family="exl3", bits=float(found[1]))
    for pattern, family, default in _PATTERNS:
        match = pattern.fullmatch(plain)
        if match:
            group = int(match[2] or default)
            return Scheme(name=plain, family=family, bits=float(match[1]), group=group)
    raise UsageError(f"{name!r} is not a quantization that memplan knows", hint=_HINT)


def bytes_of(scheme: Scheme, shape: tuple[int, ...]) -> int:
    """Return the stored bytes of a linear of shape (out, in), or of a stack of such.

    Raises UsageError for "none", which stores nothing of its own, and for a shape below two axes.
    """
    if scheme.family not in FAMILIES or len(shape) < 2:
        raise UsageError(
            f"{scheme.name} has no packed form of a tensor of shape {shape}",
            hint="only matrices are quantized",
        )
    *stack, rows, columns = shape
    return math.prod(stack) * FAMILIES[scheme.family](scheme, rows, columns)
