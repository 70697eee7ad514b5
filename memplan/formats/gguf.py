"""The header of a GGUF file: metadata and tensor list, without the data and without its texts.

Layout (gguf specification, version 3): magic, version, tensor count, metadata count; metadata as
key, type, value; tensors as name, dimensions (contiguous one first), type, offset; then padding to
`general.alignment` and the data. Long arrays (a vocabulary of 128k texts) are skipped by their
lengths and only counted.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from memplan.errors import BadModelError
from memplan.formats.ggml import TYPES, tensor_bytes
from memplan.types import Tensor

__all__ = ["Counted", "GgufFile", "Source", "read_gguf"]

MAGIC = b"GGUF"
MAX_TENSORS = 1_000_000
MAX_KEYS = 100_000
MAX_NAME = 65_535
MAX_ARRAY = 2**32
MAX_DIMENSIONS = 4
KEPT_ITEMS = 16_384
"""Longest array of numbers that is kept; texts are never kept in arrays."""

_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_TEXT, _ARRAY = 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class Source(Protocol):
    """Bytes at an offset: a mapped file or one read over HTTP."""

    size: int
    """Bytes of the whole file."""

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from an offset; fewer only at the end of the file."""


class Counted(int):
    """The length of an array that was not kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFile:
    """What the header of one file says."""

    metadata: Mapping[str, Any]
    """Key -> value; an array that was not kept is its length, as `Counted`."""
    tensors: tuple[Tensor, ...]
    """In the file's order; shapes as torch has them (contiguous axis last)."""
    data_offset: int
    """Where the tensors' data begins, bytes."""
    file_bytes: int
    """Size of the file."""


def read_gguf(source: Source, where: str) -> GgufFile:
    """Read a header.

    Args:
        source: the file.
        where: its name, for messages.

    Raises BadModelError when it is no GGUF file, truncated, or claims what cannot be.
    """
    cursor = _Cursor(source, where)
    if cursor.take(4) != MAGIC:
        raise BadModelError(f"{where} is no GGUF file", hint="download the file again")
    version = cursor.number(_U32)
    if version not in (2, 3):
        swapped = version in (2 << 24, 3 << 24)
        what = "is big-endian" if swapped else f"has GGUF version {version}"
        raise BadModelError(f"{where} {what}, which memplan does not read", hint="convert it anew")
    tensor_count = cursor.count(_U64, MAX_TENSORS, "tensors")
    key_count = cursor.count(_U64, MAX_KEYS, "metadata keys")
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.number(_U32))
    infos = [_info(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**20:
        raise cursor.bad(f"its alignment is {alignment!r}")
    start = -(-cursor.position // alignment) * alignment
    tensors = _tensors(infos, start, source.size, cursor)
    return GgufFile(metadata=metadata, tensors=tensors, data_offset=start, file_bytes=source.size)


def _info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text()
    dimensions = cursor.count(_U32, MAX_DIMENSIONS, f"dimensions in tensor {name[:60]!r}")
    shape = tuple(cursor.count(_U64, 2**48, "elements") for _ in range(dimensions))
    return name, tuple(reversed(shape)), cursor.number(_U32), cursor.number(_U64)


def _tensors(
    infos: list[tuple[str, tuple[int, ...], int, int]], start: int, size: int, cursor: _Cursor
) -> tuple[Tensor, ...]:
    """Size each tensor by its type; by the next offset where the type is unknown."""
    room = size - start
    offsets = sorted({offset for _, _, _, offset in infos} | {max(room, 0)})
    following = dict(itertools.pairwise(offsets))
    tensors = []
    for name, shape, kind, offset in infos:
        entry = TYPES.get(kind)
        if offset > room:
            raise cursor.bad(f"tensor {name[:60]!r} begins beyond its end (truncated?)")
        if entry is not None:
            length = tensor_bytes(entry, shape)
            if offset + length > room:
                raise cursor.bad(
                    f"tensor {name[:60]!r} ends at byte {start + offset + length} and the file has "
                    f"{size} (truncated?)"
                )
        else:
            length = following.get(offset, offset) - offset
        label = entry.name if entry else f"ggml_type_{kind}"
        tensors.append(Tensor(name=name, shape=shape, dtype=label, bytes=length))
    return tuple(tensors)


class _Cursor:
    """Reads forward through a source in growing chunks."""

    __slots__ = ("_buffer", "_chunk", "_source", "_start", "_where", "position")

    def __init__(self, source: Source, where: str) -> None:
        self._source, self._where = source, where
        self._buffer, self._start = b"", 0
        self._chunk = 2**16
        self.position = 0

    def take(self, length: int) -> bytes:
        begin = self.position - self._start
        if begin < 0 or begin + length > len(self._buffer):
            self._fill(length)
            begin = self.position - self._start
        self.position += length
        return self._buffer[begin : begin + length]

    def _fill(self, length: int) -> None:
        if length > self._source.size - self.position:
            raise BadModelError(
                f"{self._where} is truncated: its header needs {self.position + length} bytes and "
                f"the file has {self._source.size}",
                hint="download the file again",
            )
        self._buffer = self._source.read(self.position, max(length, self._chunk))
        self._start = self.position
        self._chunk = min(self._chunk * 2, 2**22)
        if len(self._buffer) < length:
            raise self.bad("it ends early")

    def number(self, kind: struct.Struct) -> Any:
        return kind.unpack(self.take(kind.size))[0]

    def count(self, kind: struct.Struct, most: int, what: str) -> int:
        value = int(self.number(kind))
        if value > most:
            raise self.bad(f"it claims {value} {what}")
        return value

    def text(self) -> str:
        length = self.count(_U64, 2**24, "characters in one text")
        return self.take(length).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY:
            return self._array()
        raise self.bad(f"it has a value of unknown type {kind}")

    def _array(self) -> Any:
        kind = self.number(_U32)
        count = self.count(_U64, MAX_ARRAY, "items in one array")
        if kind in _SCALARS:
            scalar = _SCALARS[kind]
            if count > KEPT_ITEMS:
                self._skip(count * scalar.size)
                return Counted(count)
            data = self.take(count * scalar.size)
            return [item for (item,) in scalar.iter_unpack(data)]
        if kind == _TEXT:
            self._skip_texts(count)
            return Counted(count)
        raise self.bad(f"it has an array of type {kind}")

    def _skip(self, length: int) -> None:
        if length > self._source.size - self.position:
            raise self.bad("an array is longer than the file")
        self.position += length

    def _skip_texts(self, count: int) -> None:
        """Step over texts by their lengths, inside the buffer as far as it goes."""
        if count * 8 > self._source.size - self.position:
            raise self.bad("an array is longer than the file")
        unpack = _U64.unpack_from
        while count:
            self.take(0)
            if self.position - self._start + 8 > len(self._buffer):
                self._fill(8)
            buffer, at = self._buffer, self.position - self._start
            last = len(buffer) - 8
            while count and at <= last:
                at += 8 + unpack(buffer, at)[0]
                count -= 1
            self.position = self._start + at
            if self.position > self._source.size:
                raise self.bad("a text is longer than the file")

    def bad(self, what: str) -> BadModelError:
        return BadModelError(f"{self._where} is damaged: {what}", hint="download the file again")
