"""Everyone else: read-only, in short transactions, never in the writer's way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import sqlalchemy
from sqlalchemy import and_, func, select

from memplan.errors import NotStoredError, StoreMissingError
from memplan.serialize import loads
from memplan.store import tables
from memplan.store.base import SampleBatch
from memplan.store.engine import reader_engine, translated
from memplan.store.migrate import HEAD, check_known, current_version
from memplan.types import Device, Peak, Phase, Plan, Run, Sample, Series

__all__ = ["StoreReader"]

T = TypeVar("T")

LAST = "last"


class StoreReader:
    """Implements `memplan.store.base.Reader`."""

    def __init__(self, database: str | Path) -> None:
        """Open and check the schema; nothing is written, not even a migration.

        Args:
            database: an SQLite file, or a PostgreSQL URL.

        Raises StoreMissingError when it does not exist or is empty, StoreVersionError when it is
        newer than this program, StoreDamagedError when it is none of ours.
        """
        self._database = database
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

    def peaks(self, run_id: str | None) -> tuple[Peak, ...]:
        """Return the peak of every series of a run (None: of the host's own samples)."""
        s, x, t = tables.series.c, tables.sample.c, tables.tick.c
        ranked = (
            select(
                x.series_id,
                x.seq,
                x.value,
                func.count().over(partition_by=x.series_id).label("count"),
                func.row_number()
                .over(partition_by=x.series_id, order_by=(x.value.desc(), x.seq))
                .label("rank"),
            )
            .where(self._of_run(run_id))
            .subquery()
        )
        query = (
            select(s.entity, s.metric, ranked.c.value, ranked.c.count, t.t_ns)
            .join_from(ranked, tables.series, s.id == ranked.c.series_id)
            .join(tables.tick, t.seq == ranked.c.seq)
            .where(ranked.c.rank == 1)
            .order_by(s.entity, s.metric)
        )
        (rows,) = self._rows(query)
        return tuple(
            Peak(
                series=Series(run_id=run_id, entity=row.entity, metric=row.metric),
                value=row.value,
                t_ns=row.t_ns,
                count=row.count,
            )
            for row in rows
        )

    def _of_run(self, run_id: str | None) -> sqlalchemy.ColumnElement[bool]:
        """Return the condition that a sample is a run's, bounded by where the run lies.

        Samples are ordered by tick; without the bounds each question would read all of them.
        """
        s, x = tables.series.c, tables.sample.c
        key = run_id if run_id is not None else tables.HOST_RUN
        ids = select(s.id).where(s.run_id == key)
        begin = select(func.min(s.first_seq)).where(s.run_id == key).scalar_subquery()
        last = select(tables.run.c.last_seq).where(tables.run.c.id == key).scalar_subquery()
        end = func.coalesce(last, 2**62)
        return and_(x.series_id.in_(ids), x.seq >= begin, x.seq <= end)

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

        Ticks are never cut: up to `limit` samples, or one whole tick where that has more.
        """
        s, x, t = tables.series.c, tables.sample.c, tables.tick.c
        query = (
            select(x.seq, t.t_ns, s.entity, s.metric, x.value)
            .join_from(tables.sample, tables.tick, t.seq == x.seq)
            .join(tables.series, s.id == x.series_id)
            .where(self._of_run(run_id), x.seq > after)
            .order_by(x.seq, x.series_id)
        )
        if since_ns is not None:
            query = query.where(t.t_ns >= since_ns)
        if until_ns is not None:
            query = query.where(t.t_ns <= until_ns)
        (rows,) = self._rows(query.limit(limit + 1))
        if len(rows) > limit:
            cut = rows[-1].seq
            whole = [row for row in rows if row.seq < cut]
            rows = whole or self._rows(query.where(x.seq == cut))[0]
        return SampleBatch(
            cursor=rows[-1].seq if rows else after,
            samples=tuple(
                Sample(
                    series=Series(run_id=run_id, entity=row.entity, metric=row.metric),
                    t_ns=row.t_ns,
                    value=row.value,
                )
                for row in rows
            ),
        )

    def last_sample_ns(self) -> int | None:
        """Return when anything was sampled last, wall clock; None when nothing ever was."""
        query = select(tables.tick.c.t_ns).order_by(tables.tick.c.seq.desc()).limit(1)
        (rows,) = self._rows(query)
        return rows[0].t_ns if rows else None

    def close(self) -> None:
        """Give the connection back."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *details: object) -> None:
        """Close."""
        self.close()
