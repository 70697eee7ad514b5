"""The way of samples into the database: ticks first, then blocks.

A batch becomes one packed row of `tick` for each run, and is safe. When BLOCK_INSTANTS instants of
a run wait there, their columns are written as one `block` with a `chunk` for each series; roll-ups
and peaks are brought up to date, and the ticks deleted, all in one transaction. The instants are
kept in memory meanwhile; those that a crash left behind are read back from their ticks.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy
from sqlalchemy import delete, func, insert, select

from memplan.errors import StoreDamagedError
from memplan.store import codec, tables
from memplan.store.batch import SMALL, Instant
from memplan.store.block import CHUNK, PEAK, ROLLUP, BlockRows
from memplan.store.frame import Frame, InstantRow, tick_frame
from memplan.store.partition import DAY_NS
from memplan.store.tick import pack_rows, singles
from memplan.store.upsert import add_peaks, add_rollups, delete_many, insert_many
from memplan.types import Series

__all__ = ["BLOCK_INSTANTS", "LOOKED_UP", "SampleLog"]

_log = logging.getLogger("memplan.store")

BLOCK_INSTANTS = 120
"""Instants of a run that make a block."""

BLOCK_BYTES = 1024**2
"""Packed bytes of waiting ticks that make a block even of fewer instants."""

REMEMBERED_SERIES = 50_000
"""Series whose numbers are kept in memory, one by one and by the tuples in which they come;
beyond, all are looked up anew as they come."""

_BEYOND = 2**63
"""The first number that does not fit."""

LOOKED_UP = 500
"""Names in one look-up."""

_TICK = ("host_id", "seq0", "seq1", "run_id", "t0_ns", "t1_ns", "n", "codec", "crc", "data")


@dataclass(slots=True)
class _Kept:
    """Instants that wait for their block, as they came.

    To add them to columns at each flush would touch every column of the run each time.
    """

    rows: list[InstantRow] = field(default_factory=list)
    seqs: list[int] = field(default_factory=list)
    ticks: list[int] = field(default_factory=list)
    """seq0 of each row of `tick` that they are."""


@dataclass(slots=True)
class _Waiting:
    """A run's ticks that are not packed as a block yet."""

    instants: int
    size: int
    """Packed bytes."""
    kept: _Kept | None
    """All of them; None where some were written before this program began."""


class SampleLog:
    """Knows the numbers that come next; every method works inside the caller's transaction.

    After a transaction that failed it is to be thrown away and loaded again.
    """

    def __init__(self, connection: sqlalchemy.Connection, host_id: int) -> None:
        """Read where the database stands.

        Args:
            connection: the writer's, in a transaction.
            host_id: whose samples are written.
        """
        self._host_id = host_id
        self._series: dict[Series, int] = {}
        self._numbered: dict[int, int] = {}
        """id() of each key of `_series`, which is alive as long -> its number: samplers hand over
        the same objects, and to hash one takes longer than all else that is done with it."""
        self._entities: dict[str, int] = {}
        self._layouts: dict[int, tuple[tuple[Series, ...], tuple[int, ...]]] = {}
        self._remembered = 0
        self._waiting: dict[str, _Waiting] = {}

        def highest(column: sqlalchemy.Column[Any]) -> int:
            query = select(func.max(column)).where(column.table.c.host_id == host_id)
            return connection.execute(query).scalar() or 0

        self._next_seq = max(highest(tables.tick.c.seq1), highest(tables.block.c.seq1)) + 1
        self._next_block = highest(tables.block.c.id) + 1
        self._next_series = highest(tables.series.c.id) + 1
        self._next_entity = highest(tables.entity.c.id) + 1
        t = tables.tick.c
        query = (
            select(t.run_id, func.sum(t.n), func.sum(func.length(t.data)))
            .where(t.host_id == host_id)
            .group_by(t.run_id)
        )
        for run_id, instants, size in connection.execute(query):
            self._waiting[run_id] = _Waiting(int(instants), int(size), None)

    def append(self, connection: sqlalchemy.Connection, batch: Sequence[Instant]) -> None:
        """Write a batch as ticks, one row for each run in it."""
        runs: dict[str, list[InstantRow]] = {}
        for instant in map(_fitting, batch):
            if not instant.values:
                continue
            ids = self._numbers(connection, instant.series)
            run_id = instant.series[0].run_id or tables.HOST_RUN
            runs.setdefault(run_id, []).append((instant.t_ns, ids, instant.values))
        ticks = []
        for run_id, instants in runs.items():
            rows = [part for row in instants for part in singles(row)]
            ticks += [self._tick(run_id, rows[a:b]) for a, b in _pieces(len(rows))]
        insert_many(connection, tables.tick, _TICK, ticks)

    def _numbers(
        self, connection: sqlalchemy.Connection, series: tuple[Series, ...]
    ) -> tuple[int, ...]:
        """Return the numbers of series of one run; the same tuple as before has the same ones.

        Unless its run was forgotten meanwhile: then none of its series has a number any more.
        """
        known = self._layouts.get(id(series))
        if known is not None and known[0] is series and series[0] in self._series:
            return known[1]
        try:
            ids = tuple(map(self._numbered.__getitem__, map(id, series)))
        except KeyError:  # new ones, or somebody else's objects
            ids = self._looked_up(connection, series)
        if len(series) < SMALL:
            return ids
        self._remembered += len(series)
        if self._remembered > REMEMBERED_SERIES:
            self._remembered = len(series)
            self._layouts.clear()
        self._layouts[id(series)] = (series, ids)
        return ids

    def _looked_up(
        self, connection: sqlalchemy.Connection, series: tuple[Series, ...]
    ) -> tuple[int, ...]:
        try:
            return tuple(map(self._series.__getitem__, series))
        except KeyError:
            self._register(connection, series)
            return tuple(map(self._series.__getitem__, series))

    def _tick(self, run_id: str, rows: list[InstantRow]) -> tuple[Any, ...]:
        n, seq0 = len(rows), self._next_seq
        self._next_seq += n
        seqs = range(seq0, self._next_seq)
        version, data = pack_rows(rows, seqs)
        waiting = self._waiting.get(run_id)
        if waiting is None:
            waiting = self._waiting[run_id] = _Waiting(0, 0, _Kept())
        waiting.instants += n
        waiting.size += len(data)
        if waiting.kept is not None:
            waiting.kept.rows += rows
            waiting.kept.seqs += seqs
            waiting.kept.ticks.append(seq0)
        times = [row[0] for row in rows]
        crc = codec.checksum(data, seq0, n)
        begin, end = min(times), max(times)
        return self._host_id, seq0, seqs[-1], run_id, begin, end, n, version, crc, data

    def forget(self, run_id: str) -> None:
        """Forget a run that was deleted: its numbers must not be used again."""
        self._waiting.pop(run_id, None)
        for series in [series for series in self._series if series.run_id == run_id]:
            self._numbered.pop(id(series))
            del self._series[series]

    def due(self) -> list[str]:
        """Return the runs whose ticks are enough for a block."""
        return [
            run_id
            for run_id, waiting in self._waiting.items()
            if waiting.instants >= BLOCK_INSTANTS or waiting.size >= BLOCK_BYTES
        ]

    def waiting(self) -> list[str]:
        """Return the runs that have ticks."""
        return list(self._waiting)

    def times(self, connection: sqlalchemy.Connection, run_id: str) -> list[int]:
        """Return the times of a run's ticks: the partitions that a block of them needs."""
        t = tables.tick.c
        query = select(t.t0_ns, t.t1_ns).where(t.host_id == self._host_id, t.run_id == run_id)
        found: set[int] = set()
        for t0_ns, t1_ns in connection.execute(query):
            found |= {*range(t0_ns, t1_ns, DAY_NS), t1_ns}
        return list(found)

    def close_run(self, connection: sqlalchemy.Connection, run_id: str) -> list[dict[str, Any]]:
        """Pack a run's ticks away as blocks and return their rows.

        A tick that is damaged is left out: the others must not wait for it for ever.
        """
        waiting = self._waiting.pop(run_id, None)
        if waiting is not None and waiting.kept is not None:
            kept = waiting.kept
            frame = Frame.of_rows(kept.rows, kept.seqs)
            keys = [(self._host_id, seq0) for seq0 in kept.ticks]
            delete_many(connection, tables.tick, _TICK[:2], keys)
        else:
            t = tables.tick.c
            mine = sqlalchemy.and_(t.host_id == self._host_id, t.run_id == run_id)
            query = select(t.seq0, t.n, t.codec, t.crc, t.data).where(mine).order_by(t.seq0)
            frame = _read_back(connection.execute(query))
            connection.execute(delete(tables.tick).where(mine))
        parts = _pieces(len(frame.times))
        return [self._write_block(connection, run_id, frame.cut(a, b)) for a, b in parts]

    def _write_block(
        self, connection: sqlalchemy.Connection, run_id: str, frame: Frame
    ) -> dict[str, Any]:
        number, day = self._next_block, frame.times[0] // DAY_NS
        self._next_block += 1
        rows = BlockRows(frame, self._host_id, day, number)
        version, data = codec.pack(codec.pack_times(frame.times, frame.seqs))
        block = {
            "host_id": self._host_id,
            "id": number,
            "day": day,
            "run_id": run_id,
            "seq0": frame.seqs[0],
            "seq1": frame.seqs[-1],
            "t0_ns": min(frame.times),
            "t1_ns": max(frame.times),
            "n": len(frame.times),
            "size_bytes": len(data) + rows.size_bytes,
            "codec": version,
            "crc": codec.checksum(data, frame.seqs[0], len(frame.times)),
            "data": data,
        }
        insert_many(connection, tables.block, tuple(block), [tuple(block.values())])
        insert_many(connection, tables.chunk, CHUNK, rows.chunks)
        add_rollups(connection, tables.rollup_1m, ROLLUP, rows.minutes)
        add_rollups(connection, tables.rollup_1h, ROLLUP, rows.hours)
        add_peaks(connection, tables.peak, PEAK, rows.peaks)
        return block

    def _register(self, connection: sqlalchemy.Connection, wanted: Iterable[Series]) -> None:
        """Give every new series, and every new thing that one is about, a number."""
        if len(self._series) > REMEMBERED_SERIES:
            self._series.clear()
            self._numbered.clear()
            self._entities.clear()
        new = [series for series in dict.fromkeys(wanted) if series not in self._series]
        self._register_entities(connection, [series.entity for series in new])
        self._find_series(connection, new)
        rows = []
        for series in new:
            if series in self._series:
                continue
            self._remember(series, self._next_series)
            rows.append(
                {
                    "host_id": self._host_id,
                    "id": self._next_series,
                    "run_id": series.run_id or tables.HOST_RUN,
                    "entity_id": self._entities[series.entity],
                    "metric": series.metric,
                    "unit": series.metric.rpartition("_")[2],
                }
            )
            self._next_series += 1
        if rows:
            connection.execute(insert(tables.series), rows)

    def _remember(self, series: Series, number: int) -> None:
        self._series[series] = self._numbered[id(series)] = number

    def _find_series(self, connection: sqlalchemy.Connection, wanted: list[Series]) -> None:
        """Remember the numbers that series have from before."""
        s = tables.series.c
        mine = {series: series for series in wanted}
        names = {number: name for name, number in self._entities.items()}
        for run_id in {series.run_id for series in wanted}:
            ids = {self._entities[x.entity] for x in wanted if x.run_id == run_id}
            for part in batched(sorted(ids), LOOKED_UP):
                query = select(s.id, s.entity_id, s.metric).where(
                    s.host_id == self._host_id,
                    s.run_id == (run_id or tables.HOST_RUN),
                    s.entity_id.in_(part),
                )
                for number, entity, metric in connection.execute(query):
                    found = Series(run_id=run_id, entity=names[entity], metric=metric)
                    if found in mine:
                        self._remember(mine[found], number)

    def _register_entities(self, connection: sqlalchemy.Connection, names: list[str]) -> None:
        new = [name for name in dict.fromkeys(names) if name not in self._entities]
        e = tables.entity.c
        for part in batched(new, LOOKED_UP):
            query = select(e.name, e.id).where(e.host_id == self._host_id, e.name.in_(part))
            for name, number in connection.execute(query):
                self._entities[name] = number
        rows = []
        for name in new:
            if name in self._entities:
                continue
            self._entities[name] = self._next_entity
            rows.append(
                {
                    "host_id": self._host_id,
                    "id": self._next_entity,
                    "kind": name.partition(":")[0],
                    "name": name,
                }
            )
            self._next_entity += 1
        if rows:
            connection.execute(insert(tables.entity), rows)


def _fitting(instant: Instant) -> Instant:
    """Return an instant without numbers that no column holds: one would stop all that follow."""
    values = instant.values
    if min(values) >= -_BEYOND and max(values) < _BEYOND:
        return instant
    pairs = [(s, v) for s, v in zip(*instant[1:], strict=True) if -_BEYOND <= v < _BEYOND]
    _log.warning("%d numbers beyond 64 bits are left out", len(values) - len(pairs))
    return Instant(instant.t_ns, tuple(s for s, _ in pairs), [v for _, v in pairs])


def batched(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Yield the items in parts of a size (itertools has this from Python 3.12 on)."""
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


def _read_back(rows: Iterable[Any]) -> Frame:
    """Return the frame of rows of `tick`; one that is damaged is left out."""
    frame = Frame()
    for row in rows:
        with contextlib.suppress(StoreDamagedError):
            frame.append(tick_frame(row))
    return frame


def _pieces(n: int) -> Iterator[tuple[int, int]]:
    """Yield (begin, end) of pieces of a block's length; the last one has up to twice as many."""
    begin = 0
    while n - begin >= 2 * BLOCK_INSTANTS:
        yield begin, begin + BLOCK_INSTANTS
        begin += BLOCK_INSTANTS
    if n:
        yield begin, n
