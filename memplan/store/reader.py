"""Everyone else: read-only, in short transactions, never in the writer's way."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from memplan.errors import NotStoredError, StoreMissingError, UsageError
from memplan.serialize import loads
from memplan.store import history, queries
from memplan.store.base import ColumnBatch, Curve, SampleBatch
from memplan.store.curves import curves as build_curves
from memplan.store.identity import host_identity
from memplan.store.readonly import shown
from memplan.store.source import Ask, open_source
from memplan.store.version import HEAD, VERSION, check_known, refuse_tables
from memplan.types import Device, Event, Peak, Phase, Run, Sample, Series

if TYPE_CHECKING:
    from memplan.types import Plan

__all__ = ["StoreReader"]

T = TypeVar("T")

LAST = "last"


_kept = lru_cache(maxsize=512)(loads)
"""Stored values that are read again and again: all are frozen."""


def _loaded(document: str, cls: type[T]) -> T:
    return cast(T, _kept(document, cast(Hashable, cls)))


class StoreReader:
    """Implements `memplan.store.base.Reader`."""

    def __init__(self, database: str | Path, *, host: str | None = None) -> None:
        """Open and check the schema; nothing is written, not even a migration.

        Args:
            database: an SQLite file, or a PostgreSQL URL.
            host: the machine whose own samples are read, by name or key; None = this one, and
                where it is not in the database the first one. One that began a new database counts
                in a fleet as another one of the same name: the newest is read.

        Raises StoreMissingError when it does not exist or is empty, StoreVersionError when it is
        newer than this program, StoreDamagedError when it is none of ours.
        """
        self._database = database
        self._host = host
        self._host_id: int | None = None
        self._ran_on: dict[str, int] = {}
        self._series: dict[tuple[int, str], dict[int, Series]] = {}
        self._source = open_source(database)
        try:
            self._check()
        except BaseException:
            self._source.close()
            raise

    def _check(self) -> None:
        """Refuse a database that this program cannot read as it is."""
        with self._source.reading() as ask:
            tables = [name for (name,) in ask(self._source.tables)]
            refuse_tables(tables)
            rows = ask(VERSION) if tables else []
        version = str(rows[0][0]) if rows else None
        check_known(version)
        if version != HEAD:
            raise StoreMissingError(
                f"the database at {shown(self._database)} is empty or older than this memplan",
                hint="any command that writes brings it up to date: memplan run -- true",
            )

    def _documents(self, cls: type[T], query: str, **asked: Any) -> tuple[T, ...]:
        with self._source.reading() as ask:
            rows = ask(query, **asked)
        return tuple(_loaded(document, cls) for (document,) in rows)

    def plans(self, limit: int = 50) -> tuple[Plan, ...]:
        """Return plans, newest first."""
        from memplan.types import Plan

        return self._documents(Plan, queries.PLANS, limit=limit)

    def plan_ids(self, limit: int = 50) -> tuple[str, ...]:
        """Return the ids of plans, newest first: a plan itself takes a while to read."""
        with self._source.reading() as ask:
            return tuple(key for (key,) in ask(queries.PLAN_IDS, limit=limit))

    def plan(self, key: str) -> Plan:
        """Return the plan with this id, unique beginning of an id, or "last"."""
        from memplan.types import Plan

        if key == LAST:
            return self._last("plan", self.plans(1), "memplan plan --save")
        return self._one("plan", key, Plan, "memplan plan --save")

    def runs(self, limit: int = 50) -> tuple[Run, ...]:
        """Return runs, newest first."""
        return self._documents(Run, queries.RUNS, limit=limit)

    def run(self, key: str) -> Run:
        """Return the run with this id, unique beginning of an id, or "last"."""
        if key == LAST:
            return self._last("run", self.runs(1), "memplan runs")
        return self._one("run", key, Run, "memplan runs")

    def _last(self, table: str, found: tuple[T, ...], hint: str) -> T:
        if not found:
            raise NotStoredError(f"no {table} {LAST!r} in {shown(self._database)}", hint=hint)
        return found[0]

    def _one(self, table: str, key: str, cls: type[T], hint: str) -> T:
        with self._source.reading() as ask:
            query = queries.BEGINNING.format(table=table)
            rows = ask(query, key=key, length=len(key))
        exact = [row for row in rows if row[0] == key] or rows
        if len(exact) == 1 and key:
            return _loaded(exact[0][1], cls)
        if not exact or not key:
            raise NotStoredError(f"no {table} {key!r} in {shown(self._database)}", hint=hint)
        names = ", ".join(sorted(row[0] for row in exact)[:5])
        raise NotStoredError(
            f"{key!r} is the beginning of {len(exact)} {table} ids", hint=f"one of: {names}"
        )

    def phases(self, run_id: str) -> tuple[Phase, ...]:
        """Return a run's phases, oldest first."""
        return self._documents(Phase, queries.PHASES, run=run_id)

    def devices(self) -> tuple[Device, ...]:
        """Return every device that was remembered."""
        return self._documents(Device, queries.DEVICES)

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
        asked: dict[str, Any] = {
            "since": history.FIRST if since_ns is None else since_ns,
            "until": history.LAST if until_ns is None else until_ns,
            "limit": limit,
        }
        if run_id is None:
            return self._documents(Event, queries.EVENTS, **asked)[::-1]
        return self._documents(Event, queries.EVENTS_OF_RUN, run=run_id, **asked)[::-1]

    def hosts(self) -> tuple[str, ...]:
        """Return the names of the machines that are in the database."""
        with self._source.reading() as ask:
            rows = ask(queries.HOSTS)
        return tuple(sorted({name for _, _, name in rows}))

    @contextlib.contextmanager
    def _place(self, run_id: str | None) -> Iterator[history.Place]:
        """Open one read transaction on what belongs to a run, or to the host itself."""
        with self._source.reading() as ask:
            host_id = self._host_of(ask, run_id)
            run = queries.HOST_RUN if run_id is None else run_id
            yield history.Place(ask=ask, host_id=host_id, run=run)

    def _host_of(self, ask: Ask, run_id: str | None) -> int:
        """Return the host that a run ran on; without one, the host that is read."""
        if run_id is not None and run_id in self._ran_on:
            return self._ran_on[run_id]
        if run_id is not None:
            found = ask(queries.RAN_ON, run=run_id)
            if found:
                return self._ran_on.setdefault(run_id, int(found[0][0]))
        if self._host_id is None:
            self._host_id = self._choose_host(ask)
        return self._host_id

    def _choose_host(self, ask: Ask) -> int:
        rows = ask(queries.HOSTS)
        wanted = host_identity()[0] if self._host is None else self._host
        ids = [n for n, key, name in rows if wanted in (name, key, key.partition(":")[0])]
        if self._host is None:
            ids = ids or [row[0] for row in rows[:1]]
        if not ids:
            known = ", ".join(name for _, _, name in rows) or "none"
            raise NotStoredError(
                f"no host {self._host!r} in {shown(self._database)}", hint=f"known hosts: {known}"
            )
        return int(ids[-1])

    def _known(self, place: history.Place) -> dict[int, Series]:
        """Return series id -> series of a run; only new ones are read from the database."""
        known = self._series.setdefault((place.host_id, place.run), {})
        known.update(history.names(place, max(known, default=0)))
        return known

    def _named(self, place: history.Place, numbers: Iterable[int]) -> dict[int, Series]:
        """Return series id -> series; the database is asked only when one of the ids is new."""
        known = self._series.get((place.host_id, place.run), {})
        return known if all(number in known for number in numbers) else self._known(place)

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
            known = self._named(place, (row[1] for row in rows))
        more = len(rows) > limit
        if more:
            cut, first = rows[limit][0], rows[0][0]
            rows = [row for row in rows if row[0] < cut] or [r for r in rows if r[0] == first]
        samples = [Sample(series=known[i], t_ns=t_ns, value=value) for _, i, t_ns, value in rows]
        cursor = rows[-1][0] if rows else after
        return SampleBatch(cursor=cursor, samples=tuple(samples), more=more)

    def columns(
        self,
        run_id: str | None,
        *,
        after: int = 0,
        since_ns: int | None = None,
        until_ns: int | None = None,
        limit: int = 100_000,
    ) -> ColumnBatch:
        """Return what `samples` returns as columns, many times as fast.

        It ends with the block, or the tick, that brings the samples to `limit`.
        """
        with self._place(run_id) as place:
            cursor, found, more = history.columns(
                place, after=after, since_ns=since_ns, until_ns=until_ns, limit=limit
            )
            known = self._named(place, found)
        columns = {known[number]: column for number, column in found.items()}
        return ColumnBatch(cursor=cursor, columns=columns, more=more)

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
        newest: dict[int, tuple[int, int]] = {}
        with self._source.reading() as ask:
            for host, seq, t_ns in (row for query in queries.NEWEST for row in ask(query)):
                newest[host] = max((seq, t_ns), newest.get(host, (seq, t_ns)))
        return max((t_ns for _, t_ns in newest.values()), default=None)

    def close(self) -> None:
        """Give the connection back."""
        self._source.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *details: object) -> None:
        """Close."""
        self.close()
