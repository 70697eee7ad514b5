"""Samples, peaks and curves, read back from ticks, chunks and roll-ups.

Every function works on one open read transaction, so that a block that is closed meanwhile is
seen either as ticks or as chunks. A chunk whose checksum is wrong is a gap: `memplan db check`
names it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy
from sqlalchemy import and_, bindparam, func, select

from memplan.errors import StoreDamagedError
from memplan.store import codec, tables
from memplan.store.append import tick_frame
from memplan.store.frame import Column, Frame, summarize
from memplan.types import Peak, Series

__all__ = ["Place", "chunk_column", "frames", "names", "peaks", "readings", "span_ns", "ticks"]

_BLOCKS_AT_ONCE = 16

_REMEMBERED_BYTES = 32 * 1024
"""Largest packed tick whose frame is kept for the next reading: some 20,000 values."""

FIRST, LAST = -(2**63), 2**63 - 1
"""Times and numbers before and after all others."""

_b, _c, _t, _s, _e, _p = (
    table.c
    for table in (
        tables.block,
        tables.chunk,
        tables.tick,
        tables.series,
        tables.entity,
        tables.peak,
    )
)
_host: Any = bindparam("host")
_run: Any = bindparam("run")
_after: Any = bindparam("after")
_since: Any = bindparam("since")
_until: Any = bindparam("until")
_ids: Any = bindparam("ids", expanding=True)

# Queries are built once: building one takes longer than SQLite takes to answer it.

CHUNK_OF_BLOCK = and_(_c.host_id == _b.host_id, _c.day == _b.day, _c.block_id == _b.id)

BLOCKS = (
    select(tables.block)
    .where(
        _b.host_id == _host,
        _b.run_id == _run,
        _b.seq1 > _after,
        _b.t1_ns >= _since,
        _b.t0_ns <= _until,
    )
    .order_by(_b.id)
)
"""A run's blocks that touch a window: parameters host, run, after, since, until (inclusive)."""

_CHUNKS = (
    select(tables.chunk)
    .join_from(tables.block, tables.chunk, CHUNK_OF_BLOCK)
    .where(_b.host_id == _host, _b.id.in_(bindparam("blocks", expanding=True)))
    .order_by(_c.block_id, _c.series_id)
)
_SOME_CHUNKS = _CHUNKS.where(_c.series_id.in_(_ids))

_TICKS = (
    select(tables.tick)
    .where(
        _t.host_id == _host,
        _t.run_id == _run,
        _t.seq1 > _after,
        _t.t1_ns >= _since,
        _t.t0_ns <= _until,
    )
    .order_by(_t.seq0)
)

_NAMES = (
    select(_s.id, _e.name, _s.metric)
    .join(tables.entity, and_(_e.host_id == _s.host_id, _e.id == _s.entity_id))
    .where(_s.host_id == _host, _s.run_id == _run, _s.id > _after)
)

_PEAKS = (
    select(_p.series_id, _p.high, _p.high_t_ns, _p.n)
    .join(tables.series, and_(_s.host_id == _p.host_id, _s.id == _p.series_id))
    .where(_p.host_id == _host, _s.run_id == _run)
)

SPAN = (
    select(func.min(_p.first_t_ns), func.max(_p.last_t_ns))
    .join(tables.series, and_(_s.host_id == _p.host_id, _s.id == _p.series_id))
    .where(_p.host_id == _host, _s.run_id == _run)
)

_WAITING = select(func.min(_t.t0_ns), func.max(_t.t1_ns)).where(
    _t.host_id == _host, _t.run_id == _run
)

Reading = tuple[int, int, int, int]
"""(number of the instant, series id, time, value)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Whose samples are meant."""

    connection: sqlalchemy.Connection
    """In a read transaction."""
    host_id: int
    """The machine."""
    run: str
    """Stored run id; HOST_RUN = the host's own."""

    def execute(self, query: sqlalchemy.Select[Any], **asked: Any) -> Any:
        """Run a query that asks for this host and run."""
        return self.connection.execute(query, {"host": self.host_id, "run": self.run, **asked})


def names(place: Place, after: int = 0) -> dict[int, Series]:
    """Return series id -> series of a run, those with a larger id than `after`."""
    rows = place.execute(_NAMES, after=after)
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
    for row in place.execute(_TICKS, after=after, since=since, until=until).all():
        with contextlib.suppress(StoreDamagedError):
            if len(row.data) <= _REMEMBERED_BYTES:
                yield _remembered(row)
            else:
                yield tick_frame(row, wanted)


@functools.lru_cache(maxsize=8)
def _remembered(row: Any) -> Frame:
    """Return a tick's frame: a dashboard reads the same few ones anew every second."""
    return tick_frame(row)


def chunk_column(row: Any) -> Column:
    """Return the column of a row of `chunk`. Raises StoreDamagedError when it is damaged."""
    if codec.checksum(row.data, row.n, row.low, row.high, row.last) != row.crc:
        raise StoreDamagedError(
            f"chunk {row.block_id}/{row.series_id} is damaged", hint="memplan db repair"
        )
    values, index = codec.unpack_column(row.codec, row.data, row.n)
    return Column(values=values, index=index)


def block_times(row: Any) -> tuple[list[int], list[int]]:
    """Return (times, numbers) of a row of `block`. Raises StoreDamagedError when damaged."""
    if codec.checksum(row.data, row.seq0, row.n) != row.crc:
        raise StoreDamagedError(f"block {row.id} is damaged", hint="memplan db repair")
    return codec.unpack_times(codec.unpack(row.codec, row.data))


def frames(
    place: Place, blocks: sqlalchemy.Select[Any], series: list[int] | None = None, **window: int
) -> Iterator[Frame]:
    """Yield blocks as frames, oldest first.

    Args:
        place: whose.
        blocks: BLOCKS, or a narrower query.
        series: ids of the series that are wanted; None = all.
        window: what the query asks for.
    """
    rows = place.execute(blocks, **window).all()
    for begin in range(0, len(rows), _BLOCKS_AT_ONCE):
        part = rows[begin : begin + _BLOCKS_AT_ONCE]
        found = {row.id: Frame() for row in part}
        for row in part:
            with contextlib.suppress(StoreDamagedError):
                found[row.id].times, found[row.id].seqs = block_times(row)
        ids = list(found)
        if series is None:
            chunks = place.execute(_CHUNKS, blocks=ids)
        else:
            chunks = place.execute(_SOME_CHUNKS, blocks=ids, ids=series)
        for row in chunks.all():
            with contextlib.suppress(StoreDamagedError):
                column = chunk_column(row)
                if _fits(column, found[row.block_id]):
                    found[row.block_id].columns[row.series_id] = column
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
    asked: dict[str, Any] = {
        "after": after,
        "since": FIRST if since_ns is None else since_ns,
        "until": LAST if until_ns is None else until_ns,
    }
    found: list[Reading] = []
    for source in (frames(place, BLOCKS, **asked), ticks(place, **asked)):
        for frame in source:
            found += [
                row
                for row in readings(frame)
                if row[0] > after and asked["since"] <= row[2] <= asked["until"]
            ]
            if len(found) > limit:
                return found
    return found


def peaks(place: Place, known: Mapping[int, Series]) -> list[Peak]:
    """Return the peak of every series of a run: those of blocks, and of ticks behind them."""
    found = {
        number: Peak(series=known[number], value=high, t_ns=t_ns, count=n)
        for number, high, t_ns, n in place.execute(_PEAKS)
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
    rows = [place.execute(query).one() for query in (SPAN, _WAITING)]
    there = [(first, last) for first, last in rows if first is not None]
    if not there:
        return None
    return min(first for first, _ in there), max(last for _, last in there)
