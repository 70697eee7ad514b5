"""The instants of one flush, packed as a row of `tick`; `Frame.unpack` reads it.

Pure. This is done every few seconds for each run, so it goes from instants to bytes without a
table in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain, repeat
from operator import sub

from memplan.store import codec
from memplan.store.frame import InstantRow

__all__ = ["pack_rows", "singles"]


def singles(row: InstantRow) -> list[InstantRow]:
    """Return an instant in parts that have each series once: the later values are the second's."""
    t_ns, ids, values = row
    if len(set(ids)) == len(ids):
        return [row]
    parts: list[dict[int, int]] = [{}]
    for series, value in zip(ids, values, strict=True):
        if series in parts[-1]:
            parts.append({})
        parts[-1][series] = value
    return [(t_ns, tuple(part), list(part.values())) for part in parts]


def pack_rows(rows: Sequence[InstantRow], seqs: Sequence[int]) -> tuple[int, bytes]:
    """Return (codec version, blob) of instants, at least one, and their numbers.

    Args:
        rows: with each series once in each.
        seqs: the number of each.
    """
    n = len(rows)
    sizes = Counter(chain.from_iterable([row[1] for row in rows]))
    ids = sorted(sizes)
    head = codec.encode(codec.pack_times([row[0] for row in rows], seqs)) + _names(tuple(ids))
    if n == 1:
        only = dict(zip(rows[0][1], rows[0][2], strict=True))
        return codec.shorter(head + codec.encode(map(only.__getitem__, ids)))
    columns: dict[int, Sequence[int]] = {}
    often: dict[int, list[int]] = {one: [] for one, size in sizes.items() if size > 1}
    for at, (_, series, values) in enumerate(rows):
        if not often.keys() >= set(series):
            # a value and its place are the whole column of what comes once, as most do
            columns.update(zip(series, zip(values, repeat(at), strict=False), strict=False))
        for column, value in zip(map(often.get, series), values, strict=True):
            if column is not None:
                column += (value, at)  # noqa: PLW2901 - the column grows
    for one, column in often.items():
        found = column[::2]
        stream = [found[0], *map(sub, found[1:], found)]
        if len(found) == n:
            sizes[one] = 0
        else:
            stream += column[1::2]
        columns[one] = stream
    every = chain.from_iterable(map(columns.__getitem__, ids))
    return codec.shorter(head + codec.encode(chain(map(sizes.__getitem__, ids), every)))


@lru_cache(maxsize=64)
def _names(ids: tuple[int, ...]) -> bytes:
    """Return the part of a tick that says whose it is: a run's is mostly the one before."""
    return codec.encode([len(ids), *ids[:1], *map(sub, ids[1:], ids)])
