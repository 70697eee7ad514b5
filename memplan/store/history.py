"""Samples, peaks and curves, read back from ticks, chunks and roll-ups.

Every function works on one open read transaction, so that a block that is closed meanwhile is
seen either as ticks or as chunks. A chunk whose checksum is wrong is a gap: `memplan db check`
names it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memplan.errors import StoreDamagedError
from memplan.store import codec, queries
from memplan.store.frame import Column, Frame, summarize, tick_frame
from memplan.store.source import Ask
from memplan.types import Peak, Series

__all__ = [
    "FIRST",
    "LAST",
    "Place",
    "columns",
    "frames",
    "names",
    "peaks",
    "readings",
    "span_ns",
    "ticks",
]

_BLOCKS_AT_ONCE = 16

_SMALL_BYTES, _REMEMBERED_BYTES = 2 * 1024, 32 * 1024
"""Largest packed ticks whose frames are kept for the next reading: a block's worth of those of a
thousand values, and fewer of those of some 20,000."""

FIRST, LAST = -(2**63), 2**63 - 1
"""Times and numbers before and after all others."""

Reading = tuple[int, int, int, int]
"""(number of the instant, series id, time, value)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Whose samples are meant."""

    ask: Ask
    """Runs queries in one read transaction."""
    host_id: int
    """The machine."""
    run: str
    """Stored run id; HOST_RUN = the host's own."""

    def rows(self, query: str, **asked: Any) -> list[Any]:
        """Run a query that asks for this host and run."""
        return self.ask(query, host=self.host_id, run=self.run, **asked)


def names(place: Place, after: int = 0) -> dict[int, Series]:
    """Return series id -> series of a run, those with a larger id than `after`."""
    rows = place.rows(queries.NAMES, after=after)
    return {
        number: Series(run_id=place.run or None, entity=name, metric=metric)
        for number, name, metric in rows
    }


def ticks(
    place: Place,
    *,
    after: int = FIRST,
    since: int = FIRST,
    until: int = LAST,
    wanted: Container[int] | None = None,
) -> Iterator[Frame]:
    """Yield the frames that are not packed into blocks yet, oldest first; they are shared.

    Args:
        place: whose.
        after: number of the last instant that is not wanted.
        since: begin of a window of time, inclusive.
        until: its end, inclusive.
        wanted: series that are wanted; None = all. Small frames have the others, too.
    """
    for row in place.rows(queries.TICKS, after=after, since=since, until=until):
        with contextlib.suppress(StoreDamagedError):
            if len(row[-1]) > _REMEMBERED_BYTES:
                yield tick_frame(row, wanted)
            else:
                yield (_small if len(row[-1]) <= _SMALL_BYTES else _remembered)(row)


_small = functools.lru_cache(maxsize=128)(tick_frame)
_remembered = functools.lru_cache(maxsize=16)(tick_frame)
"""Ticks' frames: a dashboard reads the same ones anew every second."""


def _chunk_column(row: Sequence[Any]) -> Column:
    """Return the column of a row of CHUNKS. Raises StoreDamagedError when it is damaged."""
    block, series, n, low, high, last, version, crc, data = row
    if codec.checksum(data, n, low, high, last) != crc:
        raise StoreDamagedError(f"chunk {block}/{series} is damaged", hint="memplan db repair")
    values, index = codec.unpack_column(version, data, n)
    return Column(values=values, index=index)


def _block_times(row: Sequence[Any]) -> tuple[list[int], list[int]]:
    """Return (times, numbers) of a row of BLOCKS. Raises StoreDamagedError when damaged."""
    number, seq0, n, version, crc, data = row
    if codec.checksum(data, seq0, n) != crc:
        raise StoreDamagedError(f"block {number} is damaged", hint="memplan db repair")
    return codec.unpack_times(codec.unpack(version, data))


def frames(
    place: Place, blocks: str, series: list[int] | None = None, **window: int
) -> Iterator[Frame]:
    """Yield blocks as frames, oldest first.

    Args:
        place: whose.
        blocks: the query for the blocks.
        series: ids of the series that are wanted; None = all.
        window: what the query asks for.
    """
    rows = place.rows(blocks, **window)
    wanted = "" if series is None else queries.WANTED_CHUNKS.format(ids=queries.among(series))
    for begin in range(0, len(rows), _BLOCKS_AT_ONCE):
        part = rows[begin : begin + _BLOCKS_AT_ONCE]
        found = {row[0]: Frame() for row in part}
        for row in part:
            with contextlib.suppress(StoreDamagedError):
                found[row[0]].times, found[row[0]].seqs = _block_times(row)
        chunks = queries.CHUNKS.format(blocks=queries.among(found), wanted=wanted)
        for row in place.ask(chunks, host=place.host_id):
            with contextlib.suppress(StoreDamagedError):
                column = _chunk_column(row)
                if _fits(column, found[row[0]]):
                    found[row[0]].columns[row[1]] = column
        yield from found.values()


def _fits(column: Column, frame: Frame) -> bool:
    n = len(frame.times)
    if column.index is None:
        return len(column.values) == n
    return all(0 <= i < n for i in column.index)


def readings(frame: Frame) -> list[Reading]:
    """Return a frame's samples in the order in which they were read."""
    found: list[Reading] = []
    for series, column in frame.columns.items():
        if column.index is None:
            found += [
                (seq, series, t_ns, value)
                for seq, t_ns, value in zip(frame.seqs, frame.times, column.values, strict=True)
            ]
        else:
            found += [
                (frame.seqs[i], series, frame.times[i], value)
                for i, value in zip(column.index, column.values, strict=True)
            ]
    found.sort()
    return found


def window(
    place: Place, *, after: int, since_ns: int | None, until_ns: int | None, limit: int
) -> list[Reading]:
    """Return samples behind an instant and in a window, at least `limit` + 1 where there are."""
    since, until = _bounds(since_ns, until_ns)
    found: list[Reading] = []
    for frame in _frames_behind(place, after, since, until):
        found += [row for row in readings(frame) if row[0] > after and since <= row[2] <= until]
        if len(found) > limit:
            return found
    return found


def _bounds(since_ns: int | None, until_ns: int | None) -> tuple[int, int]:
    return FIRST if since_ns is None else since_ns, LAST if until_ns is None else until_ns


def _frames_behind(place: Place, after: int, since: int, until: int) -> Iterator[Frame]:
    """Yield the frames behind an instant that touch a window, packed and waiting, oldest first."""
    yield from frames(place, queries.BLOCKS, after=after, since=since, until=until)
    yield from ticks(place, after=after, since=since, until=until)


def columns(
    place: Place, *, after: int, since_ns: int | None, until_ns: int | None, limit: int
) -> tuple[int, dict[int, tuple[list[int], list[int]]], bool]:
    """Return (last instant, series id -> times and values, is there more) of a window.

    It ends with the frame that brings the samples to `limit`.
    """
    since, until = _bounds(since_ns, until_ns)
    found: dict[int, tuple[list[int], list[int]]] = {}
    cursor, count = after, 0
    for frame in _frames_behind(place, after, since, until):
        if count >= limit:
            return cursor, found, True
        instants = zip(frame.seqs, frame.times, strict=True)
        kept = [seq > after and since <= t_ns <= until for seq, t_ns in instants]
        whole = all(kept)
        for series, column in frame.columns.items():
            times, values = frame.column_times(column), column.values
            if not whole:
                places = range(len(kept)) if column.index is None else column.index
                inside = [k for k, i in enumerate(places) if kept[i]]
                times, values = [times[k] for k in inside], [values[k] for k in inside]
            known = found.setdefault(series, ([], []))
            known[0].extend(times)
            known[1].extend(values)
            count += len(values)
        cursor = max(
            (seq for seq, there in zip(frame.seqs, kept, strict=True) if there), default=cursor
        )
    return cursor, {number: column for number, column in found.items() if column[0]}, False


def peaks(place: Place, known: Mapping[int, Series]) -> list[Peak]:
    """Return the peak of every series of a run: those of blocks, and of ticks behind them."""
    found = {
        number: Peak(series=known[number], value=high, t_ns=t_ns, count=n)
        for number, high, t_ns, n in place.rows(queries.PEAKS)
    }
    for frame in ticks(place):
        for number, column in frame.columns.items():
            here = summarize(column.values, frame.column_times(column))
            before = found.get(number)
            higher = before is None or here.high > before.value
            found[number] = Peak(
                series=known[number],
                value=here.high if before is None or higher else before.value,
                t_ns=here.high_t_ns if before is None or higher else before.t_ns,
                count=here.n + (0 if before is None else before.count),
            )
    return sorted(found.values(), key=lambda peak: (peak.series.entity, peak.series.metric))


def span_ns(place: Place) -> tuple[int, int] | None:
    """Return the times of a run's first and last sample ever; None where there is none."""
    rows = [place.rows(query)[0] for query in (queries.SPAN, queries.WAITING)]
    there = [(first, last) for first, last in rows if first is not None]
    if not there:
        return None
    return min(first for first, _ in there), max(last for _, last in there)
