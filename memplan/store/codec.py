"""How samples are packed: deltas as zigzag varints, deflated where that is shorter.

Pure functions, ints in, bytes out. A stream is a row of integers of any size, each as a varint:
seven bits a byte, lowest first, the high bit set on all but the last byte; the sign is folded in
(0, -1, 1, -2 ... become 0, 1, 2, 3 ...). Memory moves in pages: the zero bits that all deltas of
a column have at their low end are cut off and counted once.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache, reduce
from itertools import accumulate, pairwise, repeat
from operator import or_, sub

from memplan.errors import StoreDamagedError

__all__ = [
    "checksum",
    "decode",
    "encode",
    "pack",
    "pack_column",
    "pack_constant",
    "pack_times",
    "rest_of_constant",
    "shorter",
    "unpack",
    "unpack_column",
    "unpack_times",
]

PLAIN, DEFLATED = 1, 2
"""Codec versions, stored beside each blob."""

_TOKEN = re.compile(rb"[\x80-\xff]*[\x00-\x7f]", re.DOTALL)
_SHORT = 32
"""Bytes of a column of one value that are not worth the time to deflate them."""

_MEMO_ITEMS = 1 << 12
"""Integers that are remembered; each takes some 100 bytes for good."""


class _Encoded(dict[int, bytes]):
    """Integer -> its varint; remembers the common ones, as memory moves in few steps."""

    def __missing__(self, value: int) -> bytes:
        if len(self) > _MEMO_ITEMS:
            self.clear()
        rest = value << 1 if value >= 0 else ((-value) << 1) - 1
        token = bytearray()
        while rest > 0x7F:
            token.append(rest & 0x7F | 0x80)
            rest >>= 7
        token.append(rest)
        self[value] = found = bytes(token)
        return found


class _Decoded(dict[bytes, int]):
    """Varint -> its integer."""

    def __missing__(self, token: bytes) -> int:
        if len(self) > _MEMO_ITEMS:
            self.clear()
        folded = 0
        for byte in reversed(token):
            folded = folded << 7 | byte & 0x7F
        self[token] = found = folded >> 1 if not folded & 1 else -((folded + 1) >> 1)
        return found


_ENCODED, _DECODED = _Encoded(), _Decoded()


def encode(values: Iterable[int]) -> bytes:
    """Return integers as zigzag varints."""
    return b"".join(map(_ENCODED.__getitem__, values))


def decode(data: bytes) -> list[int]:
    """Return the integers of a stream. Raises StoreDamagedError when its end is cut off."""
    if data and data[-1] & 0x80:
        raise StoreDamagedError("a packed row of samples is cut off", hint="memplan db repair")
    return list(map(_DECODED.__getitem__, _TOKEN.findall(data)))


def pack(values: Iterable[int]) -> tuple[int, bytes]:
    """Return (codec version, blob) of a stream of integers, whichever codec is shorter."""
    return shorter(encode(values))


def shorter(plain: bytes) -> tuple[int, bytes]:
    """Return (codec version, blob) of an encoded stream, whichever codec is shorter."""
    squeezer = zlib.compressobj(6, zlib.DEFLATED, -12, 5)
    deflated = squeezer.compress(plain) + squeezer.flush()
    return (DEFLATED, deflated) if len(deflated) < len(plain) else (PLAIN, plain)


def unpack(codec: int, blob: bytes) -> list[int]:
    """Return the integers of a blob. Raises StoreDamagedError for what is no such blob."""
    if codec == PLAIN:
        return decode(blob)
    if codec != DEFLATED:
        raise StoreDamagedError(
            f"samples are packed by codec {codec}, which is not known",
            hint="pip install --upgrade memplan",
        )
    try:
        return decode(zlib.decompress(blob, -15))
    except zlib.error as error:
        raise StoreDamagedError(
            f"a packed row of samples is damaged: {error}", hint="memplan db repair"
        ) from error


def checksum(blob: bytes, *numbers: int) -> int:
    """Return the CRC32 of a blob and the numbers stored beside it, as a signed 32-bit integer.

    Signed, because SQLite then keeps it in four bytes.
    """
    value = zlib.crc32(blob, zlib.crc32(_int64s(len(numbers)).pack(*numbers)))
    return value - 2**32 if value >= 2**31 else value


@lru_cache(maxsize=16)
def _int64s(count: int) -> struct.Struct:
    return struct.Struct(f">{count}q")


def pack_column(values: Sequence[int], index: Sequence[int] | None = None) -> tuple[int, bytes]:
    """Return (codec version, blob) of one series' values.

    Args:
        values: at least one.
        index: positions of the values among the block's instants; None = all of them.
    """
    deltas = list(map(sub, values[1:], values))
    together = reduce(or_, deltas, 0)
    if not together:
        return pack_constant(values[0], rest_of_constant(len(values), index))
    shift = (together & -together).bit_length() - 1
    stream = [shift, values[0]]
    stream += [delta >> shift for delta in deltas] if shift else deltas
    if index is not None:
        stream += _steps(index)
    return pack(stream)


def pack_constant(value: int, rest: bytes) -> tuple[int, bytes]:
    """Return (codec version, blob) of the column of a value that stays: most columns are one.

    Args:
        value: which one.
        rest: what `rest_of_constant` returned.
    """
    plain = encode((0, value)) + rest
    return (PLAIN, plain) if len(plain) <= _SHORT else _remembered(plain)


def rest_of_constant(n: int, index: Sequence[int] | None = None) -> bytes:
    """Return what follows a constant's value: the same for all that were read together.

    Args:
        n: how many values, at least one.
        index: as `pack_column` has it.
    """
    return encode([*repeat(0, n - 1), *_steps(index or ())])


_remembered = lru_cache(maxsize=512)(shorter)
"""A value that stays comes again in the next block, and to deflate it takes longest."""


def unpack_column(codec: int, blob: bytes, n: int) -> tuple[list[int], list[int] | None]:
    """Return the values and positions that `pack_column` was given; n values are expected."""
    stream = unpack(codec, blob)
    shift, body = stream[0] if stream else 0, stream[1 : n + 1]
    if len(body) != n or len(stream) not in (n + 1, 2 * n + 1) or not 0 <= shift < 128:
        raise StoreDamagedError("a packed column has another length", hint="memplan db repair")
    if shift:
        body[1:] = [delta << shift for delta in body[1:]]
    index = list(accumulate(stream[n + 1 :])) if len(stream) > n + 1 else None
    return list(accumulate(body)), index


def pack_times(times: Sequence[int], seqs: Sequence[int]) -> list[int]:
    """Return a stream of instants: count, seconds derivatives of times, steps of their numbers."""
    steps = _steps(times)
    return [len(times), *steps[:2], *(b - a for a, b in pairwise(steps[1:])), *_steps(seqs)]


def unpack_times(stream: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return (times, numbers) of the instants that `pack_times` was given."""
    n = stream[0] if stream else 0
    if n < 1 or len(stream) < 2 * n + 1:
        raise StoreDamagedError("packed times have another length", hint="memplan db repair")
    times = list(accumulate([stream[1], *accumulate(stream[2 : n + 1])]))
    return times, list(accumulate(stream[n + 1 : 2 * n + 1]))


def _steps(values: Sequence[int]) -> list[int]:
    """Return the first value and the difference of each to the one before."""
    return [*values[:1], *(b - a for a, b in pairwise(values))]
