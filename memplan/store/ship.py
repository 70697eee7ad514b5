"""Shipping to a fleet's PostgreSQL: what happened here is copied there, and nothing depends on it.

The local database is the source of truth. Its writer notes in `outbox`, in the same transaction,
what a fleet is to get; a shipper reads that in order, copies the rows as they are now and lets the
writer forget them. Every row is keyed by host, so sending one twice changes nothing: a shipper
that is killed between the two steps sends again. Roll-ups, peaks, plans, runs, phases, devices and
events go by default; packed samples on demand.
"""

from __future__ import annotations

import json
import random
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import func, insert, select, text

from memplan.errors import MemplanError, StoreError
from memplan.store import tables
from memplan.store.append import MINUTE_NS, ROLLUPS, batched
from memplan.store.engine import check_encoding, is_url, reader_engine, translated, writer_engine
from memplan.store.migrate import migrate
from memplan.store.partition import DAY_NS, Partitions
from memplan.store.upsert import replace_rows

__all__ = ["Backoff", "ShipThread", "Shipper", "ship_all"]

BATCH = 500
"""Notes of the outbox that are shipped in one transaction."""

_ROWS = 1000
_HOST_LOCK = 0x6D70686F
"""Advisory lock under which a host gets its number."""

_DOCUMENTS = {
    table.name: table
    for table in (tables.plan, tables.run, tables.phase, tables.device, tables.event)
}

Rows = dict[sqlalchemy.Table, dict[tuple[Any, ...], dict[str, Any]]]
"""Table -> key -> row."""


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
        if not is_url(url):
            raise StoreError(
                f"{url!r} is no database URL", hint="e.g. postgresql+psycopg://HOST/NAME"
            )
        self._database, self._url, self._raw = database, url, raw
        self._local: sqlalchemy.Engine | None = None
        self._remote: sqlalchemy.Engine | None = None
        self._partitions = Partitions()

    def step(self) -> int | None:
        """Copy one batch; return the number up to which the outbox may be forgotten.

        None when there is nothing to do. Raises StoreError when either side cannot be reached.
        """
        if self._local is None:
            self._local = reader_engine(self._database)
        with translated(self._database), self._local.connect() as local, local.begin():
            found = _Batch(local, raw=self._raw)
        if found.upto is None:
            return None
        with translated(self._url):
            self._send(found)
        return found.upto

    def _send(self, batch: _Batch) -> None:
        engine = self._connected()
        with engine.connect() as remote:
            with remote.begin():
                self._partitions.ensure(remote, batch.times)
                numbers = {h: _remote_host(remote, key, name) for h, key, name in batch.hosts}
            with remote.begin():
                for table, rows in batch.rows.items():
                    moved = [{**r, "host_id": numbers[r["host_id"]]} for r in rows.values()]
                    for part in batched(moved, _ROWS):
                        replace_rows(remote, table, part)

    def _connected(self) -> sqlalchemy.Engine:
        if self._remote is None:
            engine = writer_engine(self._url)
            with engine.connect() as remote:
                with remote.begin():
                    check_encoding(remote)
                migrate(remote, self._url)
            self._remote = engine
        return self._remote

    def close(self) -> None:
        """Give both connections back."""
        for engine in (self._local, self._remote):
            if engine is not None:
                engine.dispose()
        self._local = self._remote = None


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
                *(table for table, _ in ROLLUPS),
                tables.peak,
            )
        }
        self._local, self._raw = local, raw
        o = tables.outbox.c
        notes = local.execute(select(o.id, o.kind, o.key).order_by(o.id).limit(BATCH)).all()
        self.upto: int | None = notes[-1].id if notes else None
        h = tables.host.c
        self.hosts = local.execute(select(h.id, h.key, h.name)).all()
        for _, kind, key in notes:
            if kind == "block":
                self._add_block(*json.loads(key))
            else:
                self._add_document(_DOCUMENTS[kind], json.loads(key))
        self._add_series()
        minutes = self.rows[tables.rollup_1m].values()
        self.times = {row["period"] * MINUTE_NS for row in minutes}
        self.times |= {r["day"] * DAY_NS for r in self.rows.get(tables.chunk, {}).values()}

    def _add(self, table: sqlalchemy.Table, *conditions: Any) -> None:
        keys = [column.name for column in table.primary_key]
        for row in self._local.execute(select(table).where(*conditions)):
            mapped = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
            self.rows[table][tuple(mapped[key] for key in keys)] = mapped

    def _add_document(self, table: sqlalchemy.Table, key: list[Any]) -> None:
        columns = [column for column in table.primary_key if column.name != "host_id"]
        self._add(table, *(c == value for c, value in zip(columns, key, strict=True)))

    def _add_block(self, number: int, run_id: str, t0_ns: int, t1_ns: int) -> None:
        """Add the roll-ups and peaks that a block went into, and the block if it is still there."""
        s, b, c = tables.series.c, tables.block.c, tables.chunk.c
        ids = select(s.id).where(s.run_id == run_id)
        for table, period_ns in ROLLUPS:
            self._add(
                table,
                table.c.period >= t0_ns // period_ns,
                table.c.period <= t1_ns // period_ns,
                table.c.series_id.in_(ids),
            )
        self._add(tables.peak, tables.peak.c.series_id.in_(ids))
        if self._raw:
            self._add(tables.block, b.id == number)
            self._add(
                tables.chunk, c.block_id == number, c.day.in_(select(b.day).where(b.id == number))
            )

    def _add_series(self) -> None:
        """Add what the numbers in the rows mean."""
        s, e = tables.series.c, tables.entity.c
        ids = sorted({row["series_id"] for row in self.rows[tables.peak].values()})
        for part in batched(ids, _ROWS):
            self._add(tables.series, s.id.in_(part))
        named = sorted({row["entity_id"] for row in self.rows[tables.series].values()})
        for part in batched(named, _ROWS):
            self._add(tables.entity, e.id.in_(part))


class ShipThread:
    """Ships in a thread of its own, so that a slow network is never waited for.

    The thread only reads the local database. Whoever writes calls `acknowledge` now and then.
    """

    def __init__(self, shipper: Shipper, *, pause_s: float = 10.0) -> None:
        """Prepare.

        Args:
            shipper: does the work.
            pause_s: seconds between two looks into an empty outbox.
        """
        self.problem = ""
        """Why the last attempt failed; empty while all is well."""
        self._shipper, self._pause_s = shipper, pause_s
        self._backoff = Backoff()
        self._done: deque[int] = deque()
        self._wake = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="memplan-ship", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def _work(self) -> None:
        wait_s = 0.0
        while not self._ended:
            self._wake.wait(wait_s)
            self._wake.clear()
            if self._done:  # not forgotten yet: the same would be sent again
                wait_s = self._pause_s
                continue
            try:
                upto = self._shipper.step()
            except MemplanError as error:
                self.problem, wait_s = str(error), self._backoff.failed()
                continue
            self.problem = ""
            self._backoff.succeeded()
            if upto is not None:
                self._done.append(upto)
            wait_s = self._pause_s

    def acknowledge(self, forget: Callable[[int], None]) -> None:
        """Let the writer forget what has arrived, and go on with the next batch.

        Args:
            forget: `LocalWriter.shipped`.
        """
        if self._done:
            forget(self._done[0])
            self._done.popleft()
            self._wake.set()

    def close(self, timeout_s: float = 1.0) -> None:
        """End; a batch on its way is sent again by the next one."""
        self._ended = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self._shipper.close()


def ship_all(shipper: Shipper, forget: Callable[[int], None]) -> int:
    """Ship until the outbox is empty; return how many batches."""
    count = 0
    while (upto := shipper.step()) is not None:
        forget(upto)
        count += 1
    return count
