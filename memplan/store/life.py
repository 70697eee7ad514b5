"""What a writer that died left behind: runs without an end, and a stretch without samples."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import replace

import sqlalchemy
from sqlalchemy import func, select

from memplan.serialize import loads
from memplan.store import tables
from memplan.types import Event, FrozenMap, Run

__all__ = ["gap", "lost_runs", "mark"]


def mark(host_id: int) -> str:
    """Return the row of `meta` that is there while a writer is open, and after it died."""
    return f"open:{host_id}"


def gap(connection: sqlalchemy.Connection, host_id: int, now_ns: int) -> Event | None:
    """Return the event that says since when nothing was sampled, after a writer that died."""
    m = tables.meta.c
    left = connection.execute(select(m.value).where(m.key == mark(host_id))).scalar()
    last = _last_ns(connection, host_id)
    if left is None or last is None:
        return None
    return Event(
        kind="store.gap",
        t_ns=last,
        severity="warning",
        message=f"the writer ended without closing: no samples for {(now_ns - last) / 1e9:.1f} s",
        data=FrozenMap({"until_ns": str(now_ns)}),
    )


def lost_runs(connection: sqlalchemy.Connection, host_id: int) -> Iterator[Run]:
    """Yield this host's runs whose sampler died, ended: whoever wrote to this database is gone."""
    r = tables.run.c
    running = select(r.document).where(
        r.status == "running", r.host_id == host_id, r.host == platform.node()
    )
    for (document,) in connection.execute(running).all():
        run = loads(document, Run)
        last = _last_ns(connection, host_id, run.id)
        ended = max(last or run.started_ns, run.started_ns)
        yield replace(run, status="lost", ended_ns=ended)


def _last_ns(
    connection: sqlalchemy.Connection, host_id: int, run_id: str | None = None
) -> int | None:
    """Return the time of the last sample, of one run or of all."""
    p, s, t = tables.peak.c, tables.series.c, tables.tick.c
    ticks = select(func.max(t.t1_ns)).where(t.host_id == host_id)
    peaks = (
        select(func.max(p.last_t_ns))
        .join(tables.series, sqlalchemy.and_(s.host_id == p.host_id, s.id == p.series_id))
        .where(p.host_id == host_id)
    )
    if run_id is not None:
        ticks, peaks = ticks.where(t.run_id == run_id), peaks.where(s.run_id == run_id)
    found = [connection.execute(query).scalar() for query in (ticks, peaks)]
    return max((int(t_ns) for t_ns in found if t_ns is not None), default=None)
