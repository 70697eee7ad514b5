"""The one who writes: holds the lock and the only read-write connection."""

from __future__ import annotations

import platform
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import sqlalchemy
from sqlalchemy import func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from memplan.errors import StoreLockedError
from memplan.serialize import dumps, loads
from memplan.store import tables
from memplan.store.engine import is_url, translated, writer_engine
from memplan.store.lock import WriterLock
from memplan.store.migrate import migrate
from memplan.types import Device, Phase, Plan, Run, Sample, Series

__all__ = ["LocalWriter", "new_id"]

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Digits and letters without i, l, o and u: nothing that reads like something else."""

_EPOCH_S = 1_735_689_600
"""Start of 2025: keeps ids short for a thousand years."""

_ADVISORY_KEY = 0x6D656D70
"""PostgreSQL's advisory lock of the one writer."""


def new_id(prefix: str) -> str:
    """Return a short id that sorts by time: prefix, seconds since 2025, 15 random bits."""
    number = ((int(time.time()) - _EPOCH_S) << 15) | secrets.randbits(15)
    digits = ""
    while number:
        number, rest = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[rest] + digits
    return f"{prefix}-{digits.rjust(9, '0')}"


class LocalWriter:
    """Implements `memplan.store.base.Writer` on a database that nobody else writes to."""

    def __init__(self, database: str | Path) -> None:
        """Take the lock, create or migrate the database, and mark broken-off runs as lost.

        Args:
            database: an SQLite file, or a PostgreSQL URL.

        Raises StoreLockedError when another process writes, StoreVersionError when the database
        is newer than this program, StoreDamagedError when it is none, StoreError otherwise.
        """
        self._database = database
        self._lock = None if is_url(database) else WriterLock(Path(database))
        self._engine: sqlalchemy.Engine | None = None
        self._connection: sqlalchemy.Connection | None = None
        if self._lock is not None:
            self._lock.acquire()
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self._engine = writer_engine(self._database)
        with translated(self._database):
            self._connection = self._engine.connect()
        if self._lock is None:
            self._take_advisory_lock()
        migrate(self._connection, self._database)
        self._series: dict[Series, int] = {}
        with translated(self._database), self._begin() as connection:
            last = connection.execute(select(func.max(tables.tick.c.seq))).scalar()
            top = connection.execute(select(func.max(tables.series.c.id))).scalar()
            self._next_seq, self._next_series = (last or 0) + 1, (top or 0) + 1
            self._mark_lost(connection)

    def _take_advisory_lock(self) -> None:
        with translated(self._database), self._begin() as connection:
            query = select(func.pg_try_advisory_lock(_ADVISORY_KEY))
            free = connection.execute(query).scalar()
        if not free:
            raise StoreLockedError(
                "another process writes to this database", hint="memplan daemon status"
            )

    def _begin(self) -> _Transaction:
        assert self._connection is not None, "the writer is closed"
        return _Transaction(self._connection)

    def _mark_lost(self, connection: sqlalchemy.Connection) -> None:
        """End this host's runs whose sampler died: whoever wrote to this database is gone."""
        running = select(tables.run.c.document).where(
            tables.run.c.status == "running", tables.run.c.host == platform.node()
        )
        for (document,) in connection.execute(running).all():
            run = loads(document, Run)
            last = connection.execute(
                select(func.max(tables.tick.c.t_ns))
                .join(tables.sample, tables.sample.c.seq == tables.tick.c.seq)
                .join(tables.series, tables.series.c.id == tables.sample.c.series_id)
                .where(tables.series.c.run_id == run.id)
            ).scalar()
            ended = max(last or run.started_ns, run.started_ns)
            self._write_run(connection, replace(run, status="lost", ended_ns=ended))

    def save_plan(self, plan: Plan) -> Plan:
        """Store a plan under a new id (kept if it has one) and return it with that id."""
        stored = plan if plan.id else replace(plan, id=new_id("p"))
        row = {
            "id": stored.id,
            "created_ns": stored.created_ns,
            "model_name": stored.model.name,
            "fits": stored.verdict.fits,
            "document": dumps(stored, indent=None),
        }
        with translated(self._database), self._begin() as connection:
            _upsert(connection, tables.plan, [row])
        return stored

    def save_run(self, run: Run) -> None:
        """Insert a run, or replace the stored one with the same id."""
        with translated(self._database), self._begin() as connection:
            self._write_run(connection, run)

    def _write_run(self, connection: sqlalchemy.Connection, run: Run) -> None:
        ended = run.status != "running"
        row = {
            "id": run.id,
            "plan_id": run.plan_id,
            "host": run.host,
            "pid": run.pid,
            "started_ns": run.started_ns,
            "ended_ns": run.ended_ns,
            "exit_code": run.exit_code,
            "status": run.status,
            "last_seq": self._next_seq - 1 if ended else None,
            "document": dumps(run, indent=None),
        }
        _upsert(connection, tables.run, [row])

    def save_phases(self, phases: Sequence[Phase]) -> None:
        """Insert phases; one with the same run, pid, name and start replaces the stored one."""
        rows = [
            {
                "run_id": phase.run_id,
                "pid": phase.pid,
                "name": phase.name,
                "started_ns": phase.started_ns,
                "ended_ns": phase.ended_ns,
                "document": dumps(phase, indent=None),
            }
            for phase in phases
        ]
        with translated(self._database), self._begin() as connection:
            _upsert(connection, tables.phase, rows)

    def save_devices(self, devices: Sequence[Device]) -> None:
        """Remember devices by name and uuid."""
        rows = [
            {"name": d.name, "uuid": d.uuid or "", "document": dumps(d, indent=None)}
            for d in devices
        ]
        with translated(self._database), self._begin() as connection:
            _upsert(connection, tables.device, rows)

    def write_samples(self, samples: Sequence[Sample]) -> None:
        """Append a batch. A clock that jumps back loses nothing and collides with nothing."""
        if not samples:
            return
        before = self._next_seq, self._next_series, dict(self._series)
        try:
            with translated(self._database), self._begin() as connection:
                self._append(connection, samples)
        except BaseException:
            self._next_seq, self._next_series, self._series = before
            raise

    def _append(self, connection: sqlalchemy.Connection, samples: Sequence[Sample]) -> None:
        known = self._series_ids(connection, samples)
        ticks: list[dict[str, int]] = []
        rows: list[dict[str, int]] = []
        seen: set[int] = set()
        for sample in samples:
            series_id = known[sample.series]
            if not ticks or ticks[-1]["t_ns"] != sample.t_ns or series_id in seen:
                ticks.append({"seq": self._next_seq, "t_ns": sample.t_ns})
                self._next_seq += 1
                seen.clear()
            seen.add(series_id)
            rows.append({"seq": ticks[-1]["seq"], "series_id": series_id, "value": sample.value})
        connection.execute(insert(tables.tick), ticks)
        connection.execute(insert(tables.sample), rows)
        self._extend_ended(connection, samples)

    def _extend_ended(self, connection: sqlalchemy.Connection, samples: Sequence[Sample]) -> None:
        """Let a run that has ended already reach as far as its late samples."""
        ids = {sample.series.run_id for sample in samples if sample.series.run_id is not None}
        for run_id in ids:
            connection.execute(
                update(tables.run)
                .where(tables.run.c.id == run_id, tables.run.c.last_seq.is_not(None))
                .values(last_seq=self._next_seq - 1)
            )

    def _series_ids(
        self, connection: sqlalchemy.Connection, samples: Iterable[Sample]
    ) -> dict[Series, int]:
        new = list(dict.fromkeys(s.series for s in samples if s.series not in self._series))
        runs = {series.run_id or tables.HOST_RUN for series in new}
        for run_id in runs:
            self._load_series(connection, run_id)
        rows = []
        for series in new:
            if series in self._series:
                continue
            self._series[series] = self._next_series
            rows.append(
                {
                    "id": self._next_series,
                    "run_id": series.run_id or tables.HOST_RUN,
                    "entity": series.entity,
                    "metric": series.metric,
                    "first_seq": self._next_seq,
                }
            )
            self._next_series += 1
        if rows:
            connection.execute(insert(tables.series), rows)
        return self._series

    def _load_series(self, connection: sqlalchemy.Connection, run_id: str) -> None:
        c = tables.series.c
        query = select(c.id, c.entity, c.metric).where(c.run_id == run_id)
        for number, entity, metric in connection.execute(query):
            series = Series(run_id=run_id or None, entity=entity, metric=metric)
            self._series[series] = number

    def close(self) -> None:
        """Give the connection and the lock back; calling it twice is harmless."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *details: object) -> None:
        """Close."""
        self.close()


class _Transaction:
    """`with` one transaction on the one connection; SQLAlchemy begins it immediately."""

    def __init__(self, connection: sqlalchemy.Connection) -> None:
        self._connection = connection
        self._transaction: Any = None

    def __enter__(self) -> sqlalchemy.Connection:
        self._transaction = self._connection.begin()
        return self._connection

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if kind is None:
            self._transaction.commit()
        else:
            self._transaction.rollback()


def _upsert(
    connection: sqlalchemy.Connection, table: sqlalchemy.Table, rows: Sequence[dict[str, Any]]
) -> None:
    """Insert rows, replacing those with the same primary key."""
    if not rows:
        return
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table)
    keys = [column.name for column in table.primary_key]
    values = {c.name: statement.excluded[c.name] for c in table.c if c.name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=values), rows)
