"""Samples, peaks and curves, read back from ticks, chunks and roll-ups.

Every function works on one open read transaction, so that a block that is closed meanwhile is
seen either as ticks or as chunks. A chunk whose checksum is wrong is a gap: `memplan db check`
names it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy
from sqlalchemy import and_, func, select

from memplan.errors import StoreDamagedError
from memplan.store import codec, tables
from memplan.store.append import tick_frame
from memplan.store.frame import Column, Frame, summarize
from memplan.types import Peak, Series

__all__ = ["Place", "chunk_column", "frames", "names", "peaks", "readings", "span_ns", "ticks"]

_BLOCKS_AT_ONCE = 16

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


def names(place: Place, after: int = 0) -> dict[int, Series]:
    """Return series id -> series of a run, those with a larger id than `after`."""
    s, e = tables.series.c, tables.entity.c
    query = (
        select(s.id, e.name, s.metric)
        .join(tables.entity, and_(e.host_id == s.host_id, e.id == s.entity_id))
        .where(s.host_id == place.host_id, s.run_id == place.run, s.id > after)
    )
    return {
        number: Series(run_id=place.run or None, entity=name, metric=metric)
        for number, name, metric in place.connection.execute(query)
    }


def ticks(place: Place, *conditions: sqlalchemy.ColumnElement[bool]) -> Iterator[Frame]:
    """Yield the frames that are not packed into blocks yet, oldest first."""
    t = tables.tick.c
    query = select(tables.tick).where(
        t.host_id == place.host_id, t.run_id == place.run, *conditions
    )
    for row in place.connection.execute(query.order_by(t.seq0)):
        with contextlib.suppress(StoreDamagedError):
            yield tick_frame(row)


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
    place: Place,
    *conditions: sqlalchemy.ColumnElement[bool],
    series: Iterable[int] | None = None,
) -> Iterator[Frame]:
    """Yield blocks as frames, oldest first.

    Args:
        place: whose.
        conditions: on columns of `block`.
        series: ids of the series that are wanted; None = all.
    """
    b = tables.block.c
    query = select(tables.block).where(
        b.host_id == place.host_id, b.run_id == place.run, *conditions
    )
    rows = place.connection.execute(query.order_by(b.id)).all()
    for begin in range(0, len(rows), _BLOCKS_AT_ONCE):
        part = rows[begin : begin + _BLOCKS_AT_ONCE]
        found = {row.id: Frame() for row in part}
        for row in part:
            with contextlib.suppress(StoreDamagedError):
                found[row.id].times, found[row.id].seqs = block_times(row)
        for row in _chunks(place, part, series):
            with contextlib.suppress(StoreDamagedError):
                column = chunk_column(row)
                if _fits(column, found[row.block_id]):
                    found[row.block_id].columns[row.series_id] = column
        yield from found.values()


def _chunks(place: Place, blocks: Iterable[Any], series: Iterable[int] | None) -> list[Any]:
    b, c = tables.block.c, tables.chunk.c
    query = select(tables.chunk).join_from(
        tables.block,
        tables.chunk,
        and_(c.host_id == b.host_id, c.day == b.day, c.block_id == b.id),
    )
    ids = [row.id for row in blocks]
    query = query.where(b.host_id == place.host_id, b.id.in_(ids))
    if series is not None:
        query = query.where(c.series_id.in_(list(series)))
    return list(place.connection.execute(query.order_by(c.block_id, c.series_id)).all())


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
    b, t = tables.block.c, tables.tick.c
    blocks, rest = [b.seq1 > after], [t.seq1 > after]
    if since_ns is not None:
        blocks.append(b.t1_ns >= since_ns)
        rest.append(t.t1_ns >= since_ns)
    if until_ns is not None:
        blocks.append(b.t0_ns <= until_ns)
        rest.append(t.t0_ns <= until_ns)
    found: list[Reading] = []
    for source in (frames(place, *blocks), ticks(place, *rest)):
        for frame in source:
            found += [
                row
                for row in readings(frame)
                if row[0] > after
                and (since_ns is None or row[2] >= since_ns)
                and (until_ns is None or row[2] <= until_ns)
            ]
            if len(found) > limit:
                return found
    return found


def peaks(place: Place, known: Mapping[int, Series]) -> list[Peak]:
    """Return the peak of every series of a run: those of blocks, and of ticks behind them."""
    p, s = tables.peak.c, tables.series.c
    query = (
        select(p.series_id, p.high, p.high_t_ns, p.n)
        .join(tables.series, and_(s.host_id == p.host_id, s.id == p.series_id))
        .where(p.host_id == place.host_id, s.run_id == place.run)
    )
    found = {
        number: Peak(series=known[number], value=high, t_ns=t_ns, count=n)
        for number, high, t_ns, n in place.connection.execute(query)
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
    p, s, t = tables.peak.c, tables.series.c, tables.tick.c
    packed = (
        select(func.min(p.first_t_ns), func.max(p.last_t_ns))
        .join(tables.series, and_(s.host_id == p.host_id, s.id == p.series_id))
        .where(p.host_id == place.host_id, s.run_id == place.run)
    )
    waiting = select(func.min(t.t0_ns), func.max(t.t1_ns)).where(
        t.host_id == place.host_id, t.run_id == place.run
    )
    rows = [place.connection.execute(query).one() for query in (packed, waiting)]
    there = [(first, last) for first, last in rows if first is not None]
    if not there:
        return None
    return min(first for first, _ in there), max(last for _, last in there)
