"""Bytes and text: parse "24GiB", print "24.00 GiB", and the size of one element of each dtype.

1 GiB = 1024^3 bytes and 1 GB = 1000^3 bytes; the unit is always written.
Inside the program sizes are whole bytes (int) and times whole nanoseconds (int).
"""

from __future__ import annotations

import re
from functools import lru_cache

from memplan.errors import UnitError

__all__ = [
    "DTYPE_BITS",
    "GIB",
    "KIB",
    "MIB",
    "UNITS",
    "dtype_bits",
    "dtype_name",
    "format_bytes",
    "format_count",
    "parse_bytes",
    "tensor_bytes",
]

KIB = 1024
MIB = 1024**2
GIB = 1024**3

UNITS: dict[str, int] = {
    "B": 1,
    "KiB": KIB,
    "MiB": MIB,
    "GiB": GIB,
    "TiB": 1024**4,
    "kB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
}
"""Bytes in each unit that is accepted and printed."""

_UNITS_LOWER = {name.lower(): size for name, size in UNITS.items()}
_UNITS_LOWER.update({"k": KIB, "m": MIB, "g": GIB, "t": 1024**4})

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z]*)\s*")

DTYPE_BITS: dict[str, int] = {
    "float64": 64,
    "int64": 64,
    "uint64": 64,
    "complex64": 64,
    "complex128": 128,
    "float32": 32,
    "int32": 32,
    "uint32": 32,
    "bfloat16": 16,
    "float16": 16,
    "int16": 16,
    "uint16": 16,
    "float8_e4m3fn": 8,
    "float8_e5m2": 8,
    "float8_e8m0fnu": 8,
    "float8_e4m3fnuz": 8,
    "float8_e5m2fnuz": 8,
    "int8": 8,
    "uint8": 8,
    "bool": 8,
    "float4_e2m1fn_x2": 8,
}
"""Bits of one stored element, by torch's dtype name (float4_e2m1fn_x2 packs two in a byte)."""

_DTYPE_ALIASES = {
    "f64": "float64",
    "f32": "float32",
    "fp32": "float32",
    "float": "float32",
    "bf16": "bfloat16",
    "f16": "float16",
    "fp16": "float16",
    "half": "float16",
    "double": "float64",
    "i64": "int64",
    "u64": "uint64",
    "i32": "int32",
    "u32": "uint32",
    "i16": "int16",
    "u16": "uint16",
    "i8": "int8",
    "u8": "uint8",
    "c64": "complex64",
    "f8_e4m3": "float8_e4m3fn",
    "f8_e5m2": "float8_e5m2",
    "f8_e8m0": "float8_e8m0fnu",
    "f8_e4m3fnuz": "float8_e4m3fnuz",
    "f8_e5m2fnuz": "float8_e5m2fnuz",
    "fp8": "float8_e4m3fn",
    "f4": "float4_e2m1fn_x2",
}


@lru_cache(maxsize=256)
def dtype_name(text: str) -> str:
    """Return torch's name of a dtype given as "bf16", "torch.bfloat16", "BF16" or "bfloat16".

    Raises UnitError for a name that is not known.
    """
    name = text.strip().lower().removeprefix("torch.")
    name = _DTYPE_ALIASES.get(name, name)
    if name not in DTYPE_BITS:
        raise UnitError(
            f"unknown dtype {text!r}",
            hint="use one of: bf16, fp16, fp32, fp8, int8 (or torch's own dtype name)",
        )
    return name


def dtype_bits(text: str) -> int:
    """Return the bits of one element of a dtype. Raises UnitError for an unknown name."""
    return DTYPE_BITS[dtype_name(text)]


def tensor_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Return the bytes of a dense tensor: product of the shape times element size, rounded up."""
    count = 1
    for size in shape:
        count *= size
    return -(-count * dtype_bits(dtype) // 8)


def parse_bytes(text: str) -> int:
    """Return the bytes meant by "24GiB", "24 GB", "512m" or "1024".

    A bare number is bytes; a bare letter is a power of 1024 (as in `dd` and `docker`).
    Raises UnitError for anything else, for a negative size and for one that is not finite.
    """
    match = _SIZE.fullmatch(text)
    unit = match.group(2).lower() if match else ""
    if match is None or (unit and unit not in _UNITS_LOWER):
        raise UnitError(f"{text!r} is not a size", hint='write it as "24GiB", "80GB" or "512MiB"')
    number, factor = match.group(1), _UNITS_LOWER[unit] if unit else 1
    if "." in number:
        return round(float(number) * factor)
    return int(number) * factor


def format_bytes(value: int | None, unit: str = "GiB", digits: int = 2) -> str:
    """Return "12.34 GiB"; None, which means "not available", prints as "n/a"."""
    if value is None:
        return "n/a"
    return f"{value / UNITS[unit]:.{digits}f} {unit}"


def format_count(value: int | None) -> str:
    """Return a number of parameters as people say it: 7.62 B, 124.4 M, 512."""
    if value is None:
        return "n/a"
    for size, suffix in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.2f} {suffix}"
    return str(value)
