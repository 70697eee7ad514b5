"""Everyone else: read-only, in short transactions, never in the writer's way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import sqlalchemy
from sqlalchemy import select

from memplan.errors import NotStoredError, StoreMissingError, UsageError
from memplan.serialize import loads
from memplan.store import history, tables
from memplan.store.base import Curve, SampleBatch
from memplan.store.curves import curves as build_curves
from memplan.store.engine import reader_engine, translated
from memplan.store.identity import host_identity
from memplan.store.migrate import HEAD, check_known, current_version
from memplan.types import Device, Event, Peak, Phase, Plan, Run, Sample, Series

__all__ = ["StoreReader"]

T = TypeVar("T")

LAST = "last"


class StoreReader:
    """Implements `memplan.store.base.Reader`."""

    def __init__(self, database: str | Path, *, host: str | None = None) -> None:
        """Open and check the schema; nothing is written, not even a migration.

        Args:
            database: an SQLite file, or a PostgreSQL URL.
            host: the machine whose own samples are read, by name or key; None = this one, and
                where it is not in the database the first one.

        Raises StoreMissingError when it does not exist or is empty, StoreVersionError when it is
        newer than this program, StoreDamagedError when it is none of ours.
        """
        self._database = database
        self._host = host
        self._host_id: int | None = None
        self._ran_on: dict[str, int] = {}
        self._series: dict[tuple[int, str], dict[int, Series]] = {}
        self._engine = reader_engine(database)
        with translated(database), self._engine.connect() as connection, connection.begin():
            version = current_version(connection)
        check_known(version)
        if version != HEAD:
            raise StoreMissingError(
                f"the database at {database} is empty or older than this memplan",
                hint="any command that writes brings it up to date: memplan run -- true",
            )

    def _rows(self, *queries: sqlalchemy.Select[Any]) -> list[Sequence[Any]]:
        """Run queries in one short transaction and return all rows of each."""
        with translated(self._database), self._engine.connect() as connection, connection.begin():
            return [connection.execute(query).all() for query in queries]

    def _documents(self, query: sqlalchemy.Select[Any], cls: type[T]) -> tuple[T, ...]:
        (rows,) = self._rows(query)
        return tuple(loads(row.document, cls) for row in rows)

    def plans(self, limit: int = 50) -> tuple[Plan, ...]:
        """Return plans, newest first."""
        c = tables.plan.c
        query = select(c.document).order_by(c.created_ns.desc(), c.id.desc()).limit(limit)
        return self._documents(query, Plan)

    def plan(self, key: str) -> Plan:
        """Return the plan with this id, unique beginning of an id, or "last"."""
        return self._one(tables.plan, tables.plan.c.created_ns, key, Plan, "memplan plan --save")

    def runs(self, limit: int = 50) -> tuple[Run, ...]:
        """Return runs, newest first."""
        c = tables.run.c
        query = select(c.document).order_by(c.started_ns.desc(), c.id.desc()).limit(limit)
        return self._documents(query, Run)

    def run(self, key: str) -> Run:
        """Return the run with this id, unique beginning of an id, or "last"."""
        return self._one(tables.run, tables.run.c.started_ns, key, Run, "memplan runs")

    def _one(
        self,
        table: sqlalchemy.Table,
        newest: sqlalchemy.Column[Any],
        key: str,
        cls: type[T],
        hint: str,
    ) -> T:
        query = select(table.c.id, table.c.document)
        if key == LAST:
            query = query.order_by(newest.desc(), table.c.id.desc()).limit(1)
        else:
            query = query.where(table.c.id.startswith(key, autoescape=True)).limit(100)
        (rows,) = self._rows(query)
        exact = [row for row in rows if row.id == key] or rows
        if len(exact) == 1 and key:
            return loads(exact[0].document, cls)
        if not exact or not key:
            raise NotStoredError(f"no {table.name} {key!r} in {self._database}", hint=hint)
        names = ", ".join(sorted(row.id for row in exact)[:5])
        raise NotStoredError(
            f"{key!r} is the beginning of {len(exact)} {table.name} ids", hint=f"one of: {names}"
        )

    def phases(self, run_id: str) -> tuple[Phase, ...]:
        """Return a run's phases, oldest first."""
        c = tables.phase.c
        query = select(c.document).where(c.run_id == run_id).order_by(c.started_ns, c.pid, c.name)
        return self._documents(query, Phase)

    def devices(self) -> tuple[Device, ...]:
        """Return every device that was remembered."""
        c = tables.device.c
        return self._documents(select(c.document).order_by(c.name, c.uuid), Device)

    def events(
        self,
        run_id: str | None = None,
        *,
        since_ns: int | None = None,
        until_ns: int | None = None,
        limit: int = 1000,
    ) -> tuple[Event, ...]:
        """Return events in a window, oldest first; of all runs and the host when run_id is None.

        Where there are more than `limit`, the newest are returned.
        """
        c = tables.event.c
        query = select(c.document)
        if run_id is not None:
            query = query.where(c.run_id == run_id)
        if since_ns is not None:
            query = query.where(c.t_ns >= since_ns)
        if until_ns is not None:
            query = query.where(c.t_ns <= until_ns)
        newest = query.order_by(c.t_ns.desc(), c.kind.desc(), c.entity.desc()).limit(limit)
        return self._documents(newest, Event)[::-1]

    def hosts(self) -> tuple[str, ...]:
        """Return the names of the machines that are in the database."""
        c = tables.host.c
        (rows,) = self._rows(select(c.name).order_by(c.name, c.id))
        return tuple(name for (name,) in rows)

    @contextlib.contextmanager
    def _place(self, run_id: str | None) -> Iterator[history.Place]:
        """Open one read transaction on what belongs to a run, or to the host itself."""
        with translated(self._database), self._engine.connect() as connection, connection.begin():
            host_id = self._host_of(connection, run_id)
            run = tables.HOST_RUN if run_id is None else run_id
            yield history.Place(connection=connection, host_id=host_id, run=run)

    def _host_of(self, connection: sqlalchemy.Connection, run_id: str | None) -> int:
        """Return the host that a run ran on; without one, the host that is read."""
        if run_id is not None and run_id in self._ran_on:
            return self._ran_on[run_id]
        if run_id is not None:
            r = tables.run.c
            found = connection.execute(select(r.host_id).where(r.id == run_id).limit(1)).scalar()
            if found is not None:
                return self._ran_on.setdefault(run_id, int(found))
        if self._host_id is None:
            self._host_id = self._choose_host(connection)
        return self._host_id

    def _choose_host(self, connection: sqlalchemy.Connection) -> int:
        h = tables.host.c
        rows = connection.execute(select(h.id, h.key, h.name).order_by(h.id)).all()
        if self._host is None:
            key, _ = host_identity()
            mine = [row.id for row in rows if row.key == key] or [row.id for row in rows]
        else:
            mine = [row.id for row in rows if self._host in (row.name, row.key)]
        if not mine:
            known = ", ".join(row.name for row in rows) or "none"
            raise NotStoredError(
                f"no host {self._host!r} in {self._database}", hint=f"known hosts: {known}"
            )
        return int(mine[0])

    def _known(self, place: history.Place) -> dict[int, Series]:
        """Return series id -> series of a run; only new ones are read from the database."""
        known = self._series.setdefault((place.host_id, place.run), {})
        known.update(history.names(place, max(known, default=0)))
        return known

    def peaks(self, run_id: str | None) -> tuple[Peak, ...]:
        """Return the peak of every series of a run (None: of the host's own samples).

        They survive every retention tier.
        """
        with self._place(run_id) as place:
            return tuple(history.peaks(place, self._known(place)))

    def samples(
        self,
        run_id: str | None,
        *,
        after: int = 0,
        since_ns: int | None = None,
        until_ns: int | None = None,
        limit: int = 100_000,
    ) -> SampleBatch:
        """Return samples of a run (None: the host's own) newer than cursor `after`, in a window.

        Ticks are never cut: up to `limit` samples, or one whole tick where that has more. Only
        what is still there as samples; `curves` also shows what was rolled up.
        """
        with self._place(run_id) as place:
            rows = history.window(
                place, after=after, since_ns=since_ns, until_ns=until_ns, limit=limit
            )
            known = self._series.get((place.host_id, place.run), {})
            if any(row[1] not in known for row in rows):
                known = self._known(place)
        more = len(rows) > limit
        if more:
            cut, first = rows[limit][0], rows[0][0]
            rows = [row for row in rows if row[0] < cut] or [r for r in rows if r[0] == first]
        samples = [Sample(series=known[i], t_ns=t_ns, value=value) for _, i, t_ns, value in rows]
        cursor = rows[-1][0] if rows else after
        return SampleBatch(cursor=cursor, samples=tuple(samples), more=more)

    def curves(
        self,
        run_id: str | None,
        *,
        since_ns: int,
        until_ns: int,
        buckets: int = 200,
        entity: str | None = None,
        metric: str | None = None,
    ) -> tuple[Curve, ...]:
        """Return the series of a run (None: the host's own) in a window, in N buckets each.

        Args:
            run_id: the run; None = the host's own series.
            since_ns: begin of the window, wall clock, inclusive.
            until_ns: its end, exclusive.
            buckets: how many at the most.
            entity: only the series of this thing.
            metric: only the series of this metric.

        Raises UsageError for a window or a number of buckets that is not positive.
        """
        if until_ns <= since_ns or buckets < 1:
            raise UsageError("a window has an end behind its begin, and at least one bucket")
        with self._place(run_id) as place:
            known = self._known(place)
            wanted = {
                number: series
                for number, series in known.items()
                if entity in (None, series.entity) and metric in (None, series.metric)
            }
            return build_curves(
                place,
                wanted,
                whole=len(wanted) == len(known),
                since_ns=since_ns,
                until_ns=until_ns,
                buckets=buckets,
            )

    def span_ns(self, run_id: str | None) -> tuple[int, int] | None:
        """Return the times of the first and the last sample ever; None where there is none."""
        with self._place(run_id) as place:
            return history.span_ns(place)

    def last_sample_ns(self) -> int | None:
        """Return when anything was sampled last, wall clock; None when nothing ever was."""
        t, b = tables.tick.c, tables.block.c
        tick, block = self._rows(
            select(t.seq1, t.t1_ns).order_by(t.seq1.desc()).limit(1),
            select(b.seq1, b.t1_ns).order_by(b.id.desc()).limit(1),
        )
        newest = max((tuple(row) for row in (*tick, *block)), default=None)
        return None if newest is None else int(newest[1])

    def close(self) -> None:
        """Give the connection back."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *details: object) -> None:
        """Close."""
        self.close()
