"""Shipping to a fleet's PostgreSQL: what happened here is copied there, and nothing depends on it.

The local database is the source of truth. Its writer notes in `outbox`, in the same transaction,
what a fleet is to get; a shipper reads that in order, copies the rows as they are now and lets the
writer forget them. Every row is keyed by host, so sending one twice changes nothing: a shipper
that is killed between the two steps sends again. Roll-ups, peaks, plans, runs, phases, devices and
events go by default; packed samples on demand. A run that was deleted on either side stays deleted.
"""

from __future__ import annotations

import json
import random
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import delete, func, insert, select, text

from memplan.errors import StoreError
from memplan.store import erase, outbox, queries, tables
from memplan.store.append import batched
from memplan.store.engine import check_encoding, is_url, reader_engine, translated, writer_engine
from memplan.store.frame import HOUR_NS, MINUTE_NS
from memplan.store.migrate import migrate
from memplan.store.partition import DAY_NS, Partitions
from memplan.store.readonly import shown
from memplan.store.upsert import replace_rows

__all__ = ["Backoff", "Shipped", "Shipper", "ship_all"]

BATCH = 500
"""Notes of the outbox that are shipped in one transaction at the most."""

BATCH_BYTES = 512 * 1024
"""Packed bytes that they may stand for: all their rows are in memory at once."""

_HOUR_BYTES = 64 * 1024
"""What an hour of roll-ups counts for here."""

_ROLLUPS = ((tables.rollup_1m, MINUTE_NS), (tables.rollup_1h, HOUR_NS))
"""Table -> its period."""

_ROWS = 1000
_HOST_LOCK = 0x6D70686F
"""Advisory lock under which a host gets its number."""

_DOCUMENTS = {
    table.name: table
    for table in (tables.plan, tables.run, tables.phase, tables.device, tables.event)
}

Rows = dict[sqlalchemy.Table, dict[tuple[Any, ...], dict[str, Any]]]
"""Table -> key -> row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """What one step did."""

    upto: int | None
    """Number up to which the outbox may be forgotten; None = there was nothing to do."""
    waiting: tuple[int, int]
    """Notes that were in it before, and the bytes of what they stand for."""


class Backoff:
    """Seconds to wait after failures: twice as long each time, with some chance in it."""

    def __init__(self, first_s: float = 1.0, longest_s: float = 300.0) -> None:
        self._first_s, self._longest_s = first_s, longest_s
        self._failures = 0

    def failed(self) -> float:
        """Return the seconds to wait now."""
        self._failures += 1
        longest = min(self._first_s * 2.0 ** min(self._failures - 1, 30), self._longest_s)
        return longest * (0.5 + random.random() / 2)  # noqa: S311 - no secret

    def succeeded(self) -> None:
        """Begin anew."""
        self._failures = 0


def check_url(url: str) -> None:
    """Raise StoreError for what is no URL of a PostgreSQL database; it may hold a password."""
    if not (is_url(url) and url.startswith("postgresql")):
        raise StoreError(
            "the fleet's address is no database URL of PostgreSQL",
            hint="e.g. postgresql+psycopg://HOST/NAME",
        )


class Shipper:
    """Copies one batch at a call."""

    def __init__(self, database: str | Path, url: str, *, raw: bool = False) -> None:
        """Prepare; nothing is opened yet.

        Args:
            database: the local database's file.
            url: PostgreSQL's, e.g. postgresql+psycopg://HOST/NAME.
            raw: ship packed samples, too.

        Raises StoreError when the URL is none.
        """
        check_url(url)
        self.waiting = (0, 0)
        """What the last step found in the outbox, also one that failed behind that."""
        self._database, self._url, self._raw = database, url, raw
        self._local: sqlalchemy.Engine | None = None
        self._remote: sqlalchemy.Engine | None = None
        self._partitions = Partitions()

    def connect(self) -> None:
        """Reach the fleet's database and bring its schema up to date.

        A step does so by itself, where there is something to send.

        Raises StoreError when it cannot be reached, or is not one that we can write to.
        """
        with translated(self._url):
            self._connected()

    def step(self) -> Shipped:
        """Copy one batch. Raises StoreError when either side cannot be reached."""
        if self._local is None:
            self._local = reader_engine(self._database)
        with translated(self._database), self._local.connect() as local, local.begin():
            self.waiting = outbox.waiting(local)
            found = _Batch(local, raw=self._raw)
        if found.upto is not None:
            with translated(self._url):
                try:
                    self._send(found)
                except BaseException:
                    self._partitions = Partitions()  # somebody may have dropped some
                    raise
        return Shipped(upto=found.upto, waiting=self.waiting)

    def _send(self, batch: _Batch) -> None:
        engine = self._connected()
        with engine.connect() as remote:
            with remote.begin():
                self._partitions.ensure(remote, batch.times)
                numbers = {h: _remote_host(remote, key, name) for h, key, name in batch.hosts}
            with remote.begin():
                erase.hold_off(remote, only_deletions=not batch.erased)
                for run_id in batch.erased:
                    erase.begin(remote, run_id)
                    while erase.step(remote, run_id):
                        pass
                batch.leave_out(erase.erased(remote, batch.runs()))
                for table, rows in batch.rows.items():
                    moved = [{**r, "host_id": numbers[r["host_id"]]} for r in rows.values()]
                    for part in batched(moved, _ROWS):
                        _make_way(remote, table, part)
                        replace_rows(remote, table, part)

    def _connected(self) -> sqlalchemy.Engine:
        if self._remote is None:
            engine = writer_engine(self._url)
            with self._reached(engine) as remote:
                with remote.begin():
                    check_encoding(remote)
                migrate(remote, self._url)
            self._remote = engine
        return self._remote

    def _reached(self, engine: sqlalchemy.Engine) -> sqlalchemy.Connection:
        """Return the first connection; where there is none, say where to look."""
        try:
            return engine.connect()
        except sqlalchemy.exc.OperationalError as error:
            raise StoreError(
                f"cannot reach {shown(self._url)}: {' '.join(str(error.orig).split())}",
                hint=f"try it: psql {_psql(self._url)}",
            ) from error

    def close(self) -> None:
        """Give both connections back."""
        for engine in (self._local, self._remote):
            if engine is not None:
                engine.dispose()
        self._local = self._remote = None


def _psql(url: str) -> str:
    """Return the URL as PostgreSQL's own tools take it, quoted for a shell, without a password."""
    scheme, _, rest = shown(url).replace(":***@", "@").partition("://")
    return shlex.quote(f"{scheme.partition('+')[0]}://{rest}")


def _remote_host(remote: sqlalchemy.Connection, key: str, name: str) -> int:
    """Return the number that a host has in the fleet's database."""
    h = tables.host.c
    query = select(h.id).where(h.key == key)
    found = remote.execute(query).scalar()
    if found is None:
        remote.execute(text(f"SELECT pg_advisory_xact_lock({_HOST_LOCK})"))
        found = remote.execute(query).scalar()
    if found is None:
        found = (remote.execute(select(func.max(h.id))).scalar() or 0) + 1
        remote.execute(insert(tables.host), {"id": found, "key": key, "name": name})
    return int(found)


def _make_way(
    remote: sqlalchemy.Connection, table: sqlalchemy.Table, rows: Sequence[dict[str, Any]]
) -> None:
    """Delete what has the same name under another number: a mended database gives new ones."""
    c = table.c
    if table is tables.entity:
        same = sqlalchemy.and_(c.host_id == _b("host_id"), c.name == _b("name"))
    elif table is tables.series:
        same = sqlalchemy.and_(
            c.host_id == _b("host_id"),
            c.run_id == _b("run_id"),
            c.entity_id == _b("entity_id"),
            c.metric == _b("metric"),
        )
    else:
        return
    if rows:
        names = [{f"b_{name}": value for name, value in row.items()} for row in rows]
        remote.execute(delete(table).where(same, c.id != _b("id")), names)


def _b(name: str) -> sqlalchemy.BindParameter[Any]:
    return sqlalchemy.bindparam(f"b_{name}")


class _Batch:
    """What one batch of the outbox stands for, as the rows are now."""

    def __init__(self, local: sqlalchemy.Connection, *, raw: bool) -> None:
        self.rows: Rows = {
            table: {}
            for table in (
                tables.entity,
                tables.series,
                *_DOCUMENTS.values(),
                *((tables.block, tables.chunk) if raw else ()),
                *(table for table, _ in _ROLLUPS),
                tables.peak,
            )
        }
        self.erased: list[str] = []
        """Runs that were deleted."""
        self.upto: int | None = None
        """Number of the last note."""
        self._local, self._raw = local, raw
        h, m = tables.host.c, tables.meta.c
        mine = local.execute(select(m.value).where(m.key == outbox.IDENTITY)).scalar()
        hosts = local.execute(select(h.id, h.key, h.name)).all()
        self.hosts = [(number, f"{key}:{mine}", name) for number, key, name in hosts]
        periods: dict[str, dict[str, set[int]]] = {}
        for kind, key in self._notes():
            if kind == "block":
                number, run_id, t0_ns, t1_ns = key
                found = periods.setdefault(run_id, {})
                for table, period_ns in _ROLLUPS:
                    touched = range(t0_ns // period_ns, t1_ns // period_ns + 1)
                    found.setdefault(table.name, set()).update(touched)
                if raw:
                    self._add_block(number)
            elif kind == "hour":
                self._add_hour(key)
            elif kind == "erased":
                self.erased.append(key)
            else:
                self._add_document(_DOCUMENTS[kind], key)
        for run_id, found in periods.items():
            self._add_rollups(run_id, found)
        self._add_series()
        minutes = self.rows[tables.rollup_1m].values()
        self.times = {row["period"] * MINUTE_NS for row in minutes}
        self.times |= {r["day"] * DAY_NS for r in self.rows.get(tables.chunk, {}).values()}

    def _notes(self) -> Iterable[tuple[str, Any]]:
        """Yield kind and key of the oldest notes, as many as make a batch."""
        o, size = tables.outbox.c, 0
        query = select(o.id, o.kind, o.key, o.size_bytes).order_by(o.id).limit(BATCH)
        for number, kind, key, size_bytes in self._local.execute(query).all():
            size += _HOUR_BYTES if kind == "hour" else size_bytes
            if size > BATCH_BYTES and self.upto is not None:
                return
            self.upto = int(number)
            yield kind, json.loads(key)

    def runs(self) -> set[str]:
        """Return the runs that there are rows of."""
        found = {str(row["id"]) for row in self.rows[tables.run].values()}
        for table in (tables.series, tables.phase, tables.event, tables.block):
            found |= {str(row["run_id"]) for row in self.rows.get(table, {}).values()}
        return found - {tables.HOST_RUN}

    def leave_out(self, runs: set[str]) -> None:
        """Drop all rows of some runs."""
        if not runs:
            return
        named = self.rows[tables.series].values()
        gone = {(row["host_id"], row["id"]) for row in named if row["run_id"] in runs}
        for table, rows in self.rows.items():
            self.rows[table] = {
                key: row
                for key, row in rows.items()
                if row.get("run_id") not in runs
                and (table is not tables.run or row["id"] not in runs)
                and (row["host_id"], row.get("series_id")) not in gone
            }

    def _add(self, table: sqlalchemy.Table, *conditions: Any) -> None:
        keys = [column.name for column in table.primary_key]
        for row in self._local.execute(select(table).where(*conditions)):
            mapped = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
            self.rows[table][tuple(mapped[key] for key in keys)] = mapped

    def _add_document(self, table: sqlalchemy.Table, key: list[Any]) -> None:
        columns = [column for column in table.primary_key if column.name != "host_id"]
        values = zip(columns, key, strict=True)
        self._add(table, self._mine(table), *(c == value for c, value in values))

    def _mine(self, table: sqlalchemy.Table) -> sqlalchemy.ColumnElement[bool]:
        """Name the hosts, as every key begins with one: without it all rows would be read."""
        return table.c.host_id.in_([number for number, _, _ in self.hosts])

    def _add_rollups(self, run_id: str, periods: dict[str, set[int]]) -> None:
        """Add the roll-ups that blocks of a run went into, and its peaks."""
        s = tables.series.c
        ids = self._local.execute(
            select(s.id).where(self._mine(tables.series), s.run_id == run_id)
        ).scalars()
        for part in batched(sorted(ids), _ROWS):
            wanted = text(f"series_id IN {queries.among(part)}")
            for table, _ in _ROLLUPS:
                there = text(f"period IN {queries.among(sorted(periods[table.name]))}")
                self._add(table, self._mine(table), there, wanted)
            self._add(tables.peak, self._mine(tables.peak), wanted)

    def _add_hour(self, hour: int) -> None:
        """Add the roll-ups of an hour, with the peaks of their series."""
        for table, period_ns in _ROLLUPS:
            c, each = table.c, HOUR_NS // period_ns
            self._add(
                table, self._mine(table), c.period >= hour * each, c.period < (hour + 1) * each
            )
        ids = {row["series_id"] for row in self.rows[tables.rollup_1h].values()}
        for part in batched(sorted(ids), _ROWS):
            wanted = text(f"series_id IN {queries.among(part)}")
            self._add(tables.peak, self._mine(tables.peak), wanted)

    def _add_block(self, number: int) -> None:
        """Add a block with its chunks, if it is still there."""
        b, c = tables.block.c, tables.chunk.c
        self._add(tables.block, self._mine(tables.block), b.id == number)
        for row in list(self.rows[tables.block].values()):
            if row["id"] == number:
                self._add(
                    tables.chunk,
                    c.host_id == row["host_id"],
                    c.day == row["day"],
                    c.block_id == number,
                )

    def _add_series(self) -> None:
        """Add what the numbers in the rows mean."""
        s, e = tables.series.c, tables.entity.c
        ids = sorted({row["series_id"] for row in self.rows[tables.peak].values()})
        for part in batched(ids, _ROWS):
            self._add(tables.series, self._mine(tables.series), s.id.in_(part))
        named = sorted({row["entity_id"] for row in self.rows[tables.series].values()})
        for part in batched(named, _ROWS):
            self._add(tables.entity, self._mine(tables.entity), e.id.in_(part))


def ship_all(shipper: Shipper, forget: Callable[[int], None]) -> int:
    """Ship until the outbox is empty; return how many batches."""
    count = 0
    while (upto := shipper.step().upto) is not None:
        forget(upto)
        count += 1
    return count
