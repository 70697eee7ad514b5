"""The header of a safetensors file: names, shapes, dtypes and exact sizes.

Layout (safetensors README, "Format"): 8 bytes little-endian header length N, N bytes of JSON
`{name: {dtype, shape, data_offsets: [begin, end]}, "__metadata__": {...}}`, then the data.
Offsets count from the end of the header and must cover the data without gaps or overlaps.
"""

from __future__ import annotations

import json
import struct
from functools import lru_cache
from typing import Any

from memplan.errors import BadModelError, UnitError
from memplan.types import Tensor
from memplan.units import DTYPE_BITS, dtype_name

__all__ = ["MAX_HEADER_BYTES", "PREFIX_BYTES", "header_length", "parse_header"]

PREFIX_BYTES = 8
"""Bytes before the header: its length."""

MAX_HEADER_BYTES = 100_000_000
"""Longest header that the safetensors library itself accepts."""


def header_length(prefix: bytes, file_bytes: int, where: str) -> int:
    """Return the header's length in bytes.

    Raises BadModelError when the file is too short to hold what its first 8 bytes promise.
    """
    if len(prefix) < PREFIX_BYTES:
        raise BadModelError(
            f"{where} is truncated: {len(prefix)} bytes, not even a header",
            hint="download the file again",
        )
    (length,) = struct.unpack("<Q", prefix[:PREFIX_BYTES])
    if length > MAX_HEADER_BYTES or length + PREFIX_BYTES > file_bytes:
        raise BadModelError(
            f"{where} is no safetensors file or is truncated: its header claims {length} bytes "
            f"and the file has {file_bytes}",
            hint="download the file again",
        )
    return int(length)


def parse_header(header: bytes, file_bytes: int, where: str) -> tuple[Tensor, ...]:
    """Return the tensors of one file in the order of their data.

    Args:
        header: the JSON bytes, without the 8 bytes of length.
        file_bytes: size of the whole file.
        where: the file's name, for messages.

    Raises BadModelError when the JSON is damaged, a size contradicts its shape and dtype, or the
    data does not fill the file exactly.
    """
    try:
        raw: Any = json.loads(header, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _bad(where, f"its header is not valid JSON ({error})") from error
    if not isinstance(raw, dict):
        raise _bad(where, "its header is not a JSON object")
    raw.pop("__metadata__", None)
    entries = sorted((_entry(name, info, where) for name, info in raw.items()), key=_begin)
    position = 0
    for begin, end, tensor in entries:
        if begin != position:
            raise _bad(where, f"tensor {tensor.name!r} starts at {begin}, expected {position}")
        position = end
    data_bytes = file_bytes - PREFIX_BYTES - len(header)
    if position != data_bytes:
        raise _bad(where, f"its tensors take {position} bytes and {data_bytes} are there")
    return tuple(tensor for _, _, tensor in entries)


def _begin(entry: tuple[int, int, Tensor]) -> tuple[int, int]:
    return entry[0], entry[1]


def _entry(name: str, info: Any, where: str) -> tuple[int, int, Tensor]:
    try:
        shape = tuple(info["shape"])
        begin, end = info["data_offsets"]
        dtype = _dtype(info["dtype"])
    except UnitError as error:
        raise BadModelError(
            f"{where}: tensor {name!r} has the {error}", hint="upgrade memplan, or check the file"
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _bad(where, f"the entry of tensor {name!r} is malformed") from error
    count = 1
    for size in shape:
        if type(size) is not int or size < 0:
            raise _bad(where, f"tensor {name!r} has a size that is not a whole number >= 0")
        count *= size
    if type(begin) is not int or type(end) is not int or begin < 0:
        raise _bad(where, f"tensor {name!r} has an offset that is not a whole number >= 0")
    expected = -(-count * DTYPE_BITS[dtype] // 8)
    if end - begin != expected:
        raise _bad(where, f"tensor {name!r} takes {end - begin} bytes, its shape {expected}")
    return begin, end, Tensor(name=name, shape=shape, dtype=dtype, bytes=expected)


_dtype = lru_cache(maxsize=64)(dtype_name)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not allowed")


def _bad(where: str, what: str) -> BadModelError:
    return BadModelError(f"{where} is damaged: {what}", hint="download the file again")
