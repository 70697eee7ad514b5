"""Deleting a run for good: at once from every list, its samples in short transactions behind that.

A row of `meta` says that a run was deleted, and from which minute on there are roll-ups of it. It
stays, so that nothing brings the run back: a deletion that is killed goes on at the next
housekeeping, and a fleet's database that was told does not take the run again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import sqlalchemy
from sqlalchemy import delete, func, select, text

from memplan.errors import UsageError
from memplan.store import queries, tables
from memplan.store.append import LOOKED_UP, batched
from memplan.store.frame import HOUR_NS, MINUTE_NS
from memplan.store.upsert import insert_new, replace_rows

__all__ = ["AT_ONCE", "Kind", "begin", "erased", "hold_off", "is_there", "pending", "step"]

Kind = Literal["blocks", "minutes", "series"]

AT_ONCE: Mapping[Kind, int] = {"blocks": 64, "minutes": 256, "series": 512}
"""A part of each kind where nobody waits."""

_LOCK_KEY = 0x6D706572
"""PostgreSQL's advisory lock of whoever deletes runs."""

_MARK = "erased:"
_DONE = "done"


def hold_off(connection: sqlalchemy.Connection, *, only_deletions: bool = False) -> None:
    """Keep others from deleting runs, and from copying some, until the transaction ends.

    Without it a run that is deleted between a shipper's look and its commit would come back.

    Args:
        connection: in a transaction; SQLite has one writer, so there nothing is needed.
        only_deletions: others may go on copying.
    """
    if connection.dialect.name == "postgresql":
        lock = "pg_advisory_xact_lock_shared" if only_deletions else "pg_advisory_xact_lock"
        connection.execute(text(f"SELECT {lock}({_LOCK_KEY})"))


def is_there(connection: sqlalchemy.Connection, run_id: str) -> bool:
    """Tell whether there is a run. Raises UsageError while it is still being measured."""
    query = select(tables.run.c.status).where(tables.run.c.id == run_id)
    status = connection.execute(query).scalars().all()
    if "running" in status:
        raise UsageError(f"run {run_id} is still running", hint="end it first, then delete it")
    return bool(status)


def begin(connection: sqlalchemy.Connection, run_id: str) -> None:
    """Take a run out of every list and remember that it is deleted."""
    hold_off(connection)
    insert_new(connection, tables.meta, [{"key": _MARK + run_id, "value": ""}])
    connection.execute(delete(tables.run).where(tables.run.c.id == run_id))
    for table in (tables.phase, tables.event, tables.tick):
        connection.execute(delete(table).where(table.c.run_id == run_id))


def step(
    connection: sqlalchemy.Connection, run_id: str, sizes: Mapping[Kind, int] = AT_ONCE
) -> Kind | None:
    """Delete one part of what is left of a run; return of which kind, None when nothing is left.

    Args:
        connection: the writer's, in a transaction.
        run_id: a run for which `begin` was called.
        sizes: how many of each kind make one part.
    """
    m = tables.meta.c
    state = connection.execute(select(m.value).where(m.key == _MARK + run_id)).scalar()
    if state is None or state == _DONE:
        return None
    if _drop_blocks(connection, run_id, sizes["blocks"]):
        return "blocks"
    after = _drop_minutes(connection, run_id, state, sizes["minutes"])
    if after is None and not _drop_series(connection, run_id, sizes["series"]):
        after = _DONE
    if after is not None:
        replace_rows(connection, tables.meta, [{"key": _MARK + run_id, "value": after}])
    return "series" if after in (None, _DONE) else "minutes"


def pending(connection: sqlalchemy.Connection) -> str | None:
    """Return a run of which something is left."""
    m = tables.meta.c
    query = select(m.key).where(m.key.startswith(_MARK, autoescape=True), m.value != _DONE)
    found = connection.execute(query.limit(1)).scalar()
    return None if found is None else str(found).removeprefix(_MARK)


def erased(connection: sqlalchemy.Connection, runs: Iterable[str]) -> set[str]:
    """Return which of some runs were deleted."""
    m, found = tables.meta.c, set()
    for part in batched(sorted(runs), LOOKED_UP):
        query = select(m.key).where(m.key.in_([_MARK + run_id for run_id in part]))
        found |= {str(key).removeprefix(_MARK) for key in connection.execute(query).scalars()}
    return found


def _hosts(connection: sqlalchemy.Connection) -> list[int]:
    return list(connection.execute(select(tables.host.c.id)).scalars())


def _drop_blocks(connection: sqlalchemy.Connection, run_id: str, size: int) -> bool:
    b, c = tables.block.c, tables.chunk.c
    mine = sqlalchemy.and_(b.host_id.in_(_hosts(connection)), b.run_id == run_id)
    query = select(b.host_id, b.id, b.day).where(mine).order_by(b.host_id, b.id).limit(size)
    rows = connection.execute(query).all()
    for host_id, number, day in rows:
        chunks = sqlalchemy.and_(c.host_id == host_id, c.day == day, c.block_id == number)
        connection.execute(delete(tables.chunk).where(chunks))
        connection.execute(delete(tables.block).where(b.host_id == host_id, b.id == number))
    return bool(rows)


def _drop_minutes(
    connection: sqlalchemy.Connection, run_id: str, state: str, size: int
) -> str | None:
    """Delete some minutes of roll-ups, and their hours; return the next one, None behind the last.

    By time and not by series, as what is of one time lies together.
    """
    p, s = tables.peak.c, tables.series.c
    of_run = sqlalchemy.and_(s.host_id == p.host_id, s.id == p.series_id, s.run_id == run_id)
    span = select(func.min(p.first_t_ns), func.max(p.last_t_ns))
    first_ns, last_ns = connection.execute(span.join(tables.series, of_run)).one()
    if first_ns is None:
        return None
    hosts, each = _hosts(connection), HOUR_NS // MINUTE_NS
    begin, end = int(state) if state else first_ns // HOUR_NS * each, last_ns // MINUTE_NS + 1
    found = _next_minute(connection, hosts, begin, each)
    if found is None or found >= end:
        return None
    begin = found
    end = min(begin + size, end)
    periods = {
        tables.rollup_1m: range(begin, end),
        tables.rollup_1h: range(begin // each, (end - 1) // each + 1),
    }
    for host_id in hosts:
        query = select(s.id).where(s.host_id == host_id, s.run_id == run_id)
        for ids in batched(list(connection.execute(query).scalars()), LOOKED_UP):
            for table, those in periods.items():
                connection.execute(
                    delete(table).where(
                        table.c.host_id == host_id,
                        text(f"period IN {queries.among(those)}"),
                        text(f"series_id IN {queries.among(ids)}"),
                    )
                )
    return str(end)


def _next_minute(
    connection: sqlalchemy.Connection, hosts: list[int], begin: int, each: int
) -> int | None:
    """Return the next minute of which anybody has roll-ups: a wrong clock leaves years of none."""
    m, h = tables.rollup_1m.c, tables.rollup_1h.c
    minutes = select(func.min(m.period)).where(m.host_id.in_(hosts), m.period >= begin)
    hours = select(func.min(h.period)).where(h.host_id.in_(hosts), h.period >= -(-begin // each))
    found = connection.execute(minutes).scalar()
    hour = connection.execute(hours).scalar()
    return min(
        (at for at in (found, None if hour is None else hour * each) if at is not None),
        default=None,
    )


def _drop_series(connection: sqlalchemy.Connection, run_id: str, size: int) -> bool:
    """Delete some series and their peaks; tell whether there were any."""
    s, p = tables.series.c, tables.peak.c
    mine = sqlalchemy.and_(s.host_id.in_(_hosts(connection)), s.run_id == run_id)
    rows = connection.execute(select(s.host_id, s.id).where(mine).limit(size)).all()
    for host_id, number in rows:
        connection.execute(delete(tables.peak).where(p.host_id == host_id, p.series_id == number))
        connection.execute(delete(tables.series).where(s.host_id == host_id, s.id == number))
    return bool(rows)
