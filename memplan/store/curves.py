"""Windows of time in a given number of buckets, from whatever tier is left.

Samples where they are still there; their chunks' summaries where a bucket is much wider than a
chunk; roll-ups of a minute or an hour where samples have been deleted. What was summarised counts
in the bucket in which its highest value lies, so every peak is shown at its own time and height.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from sqlalchemy import and_, func, not_, select

from memplan.store import tables
from memplan.store.append import HOUR_NS, MINUTE_NS
from memplan.store.base import Bucket, Curve, Tier
from memplan.store.frame import Frame
from memplan.store.history import Place, frames, ticks
from memplan.types import Series

__all__ = ["curves"]

_MINUTES, _HOURS = (tables.rollup_1m, MINUTE_NS), (tables.rollup_1h, HOUR_NS)

_MOST_LOOKUPS = 20_000
"""Look-ups of single roll-ups; where more would be needed, a range of all series is read."""


Row = Any
"""(series id, n, low, high, time of the highest, total, last): what was summarised."""


class _Bucket:
    """A bucket while it is filled."""

    __slots__ = ("high", "high_t_ns", "last", "low", "n", "total")

    def __init__(self, row: Row) -> None:
        _, self.n, self.low, self.high, self.high_t_ns, self.total, self.last = row

    def add(self, row: Row) -> None:
        _, n, low, high, high_t_ns, total, last = row
        self.n += n
        self.total += total
        self.last = last
        if low < self.low:  # noqa: PLR1730 - a call to min() takes four times as long
            self.low = low
        if high > self.high:
            self.high, self.high_t_ns = high, high_t_ns


class _Filling:
    """Buckets of all series of a window."""

    def __init__(self, since_ns: int, until_ns: int, width_ns: int) -> None:
        self.since_ns, self.until_ns, self.width_ns = since_ns, until_ns, width_ns
        self.tier: Tier = "raw"
        self.series: dict[int, dict[int, _Bucket]] = {}

    def add_rows(self, rows: Iterable[Row]) -> None:
        """Add what was summarised, or single samples."""
        since, until, width = self.since_ns, self.until_ns, self.width_ns
        for row in rows:
            if not since <= row[4] < until:
                continue
            buckets = self.series.setdefault(row[0], {})
            place = (row[4] - since) // width
            bucket = buckets.get(place)
            if bucket is None:
                buckets[place] = _Bucket(row)
            else:
                bucket.add(row)

    def add_frame(self, frame: Frame, wanted: Mapping[int, Series], from_ns: int) -> None:
        """Add the samples of a frame that are not before a time."""
        whole = self._stretches(frame.times, from_ns)
        for series, column in frame.columns.items():
            if series not in wanted:
                continue
            times, stretches = frame.times, whole
            if column.index is not None:
                times = frame.column_times(column)
                stretches = self._stretches(times, from_ns)
            rows = []
            for begin, end in stretches:
                values = column.values[begin:end]
                high = max(values)
                t_ns = times[begin + values.index(high)]
                row = (series, end - begin, min(values), high, t_ns, sum(values), values[-1])
                rows.append(row)
            self.add_rows(rows)

    def _stretches(self, times: list[int], from_ns: int) -> list[tuple[int, int]]:
        """Return (begin, end) of neighbours that fall into one bucket and into the window."""
        since, until, width = max(self.since_ns, from_ns), self.until_ns, self.width_ns
        origin, found, begin = self.since_ns, [], 0
        places = [(t - origin) // width if since <= t < until else None for t in times]
        for place, group in groupby(places):
            end = begin + len(list(group))
            if place is not None:
                found.append((begin, end))
            begin = end
        return found

    def curve(self, number: int, series: Series) -> Curve:
        buckets = self.series[number]
        return Curve(
            series=series,
            width_ns=self.width_ns,
            tier=self.tier,
            buckets=tuple(
                Bucket(
                    t_ns=self.since_ns + place * self.width_ns,
                    n=bucket.n,
                    low=bucket.low,
                    high=bucket.high,
                    high_t_ns=bucket.high_t_ns,
                    mean=bucket.total / bucket.n,
                    last=bucket.last,
                )
                for place, bucket in sorted(buckets.items())
            ),
        )


def curves(
    place: Place,
    wanted: Mapping[int, Series],
    *,
    whole: bool,
    since_ns: int,
    until_ns: int,
    buckets: int,
) -> tuple[Curve, ...]:
    """Return one curve for each wanted series that has samples in the window.

    Args:
        place: whose.
        wanted: series id -> series.
        whole: the wanted ones are all series of the run.
        since_ns: begin of the window, inclusive.
        until_ns: its end, exclusive.
        buckets: how many at the most.
    """
    width = max(-(-(until_ns - since_ns) // buckets), 1)
    filling = _Filling(since_ns, until_ns, width)
    from_ns = _rolled_up(place, filling, wanted)
    _from_blocks(place, filling, wanted, None if whole else list(wanted), from_ns)
    t = tables.tick.c
    for frame in ticks(place, t.t1_ns >= from_ns, t.t0_ns < until_ns):
        filling.add_frame(frame, wanted, from_ns)
    found = [filling.curve(i, wanted[i]) for i in filling.series if i in wanted]
    return tuple(sorted(found, key=lambda curve: (curve.series.entity, curve.series.metric)))


def _from_blocks(
    place: Place,
    filling: _Filling,
    wanted: Mapping[int, Series],
    ids: list[int] | None,
    from_ns: int,
) -> None:
    """Add blocks: by their chunks' summaries where they are narrow, else sample by sample."""
    b, c = tables.block.c, tables.chunk.c
    inside = and_(b.t0_ns >= from_ns, b.t1_ns < filling.until_ns)
    narrow = and_(inside, b.t1_ns - b.t0_ns <= filling.width_ns // 2)
    query = (
        select(c.series_id, c.n, c.low, c.high, c.high_t_ns, c.total, c.last)
        .join_from(
            tables.block,
            tables.chunk,
            and_(c.host_id == b.host_id, c.day == b.day, c.block_id == b.id),
        )
        .where(b.host_id == place.host_id, b.run_id == place.run, narrow)
    )
    if ids is not None:
        query = query.where(c.series_id.in_(ids))
    filling.add_rows(place.connection.execute(query.order_by(b.id)).all())
    touched = and_(b.t1_ns >= from_ns, b.t0_ns < filling.until_ns)
    for frame in frames(place, and_(touched, not_(narrow)), series=ids):
        filling.add_frame(frame, wanted, from_ns)


def _rolled_up(place: Place, filling: _Filling, wanted: Mapping[int, Series]) -> int:
    """Add roll-ups for the part of the window whose samples are gone; return where that ends."""
    since, wide = filling.since_ns, filling.width_ns >= 2 * HOUR_NS
    raw_ns = _raw_begin(place)
    if raw_ns is None or since >= raw_ns:
        return since
    finest = HOUR_NS if wide else MINUTE_NS
    end = min(_ceil(raw_ns, finest), filling.until_ns)
    if wide:
        _add_rollups(place, filling, wanted, _HOURS, (since, end))
        filling.tier = "1h"
        return end
    m = tables.rollup_1m.c
    first = place.connection.execute(
        select(func.min(m.period)).where(m.host_id == place.host_id)
    ).scalar()
    minutes_ns = end if first is None else min(_ceil(first * MINUTE_NS, HOUR_NS), end)
    oldest = _first_ns(place)
    if oldest is None or first is None or oldest >= first * MINUTE_NS:
        minutes_ns = since if first is not None else end
    _add_rollups(place, filling, wanted, _MINUTES, (max(since, minutes_ns), end))
    filling.tier = "1m"
    if since < minutes_ns:
        _add_rollups(place, filling, wanted, _HOURS, (since, minutes_ns))
        filling.tier = "1h"
    return end


def _raw_begin(place: Place) -> int | None:
    """Return from when on samples are there; None when none was ever deleted."""
    b, t = tables.block.c, tables.tick.c
    block = (
        select(b.t0_ns)
        .where(b.host_id == place.host_id, b.run_id == place.run)
        .order_by(b.id)
        .limit(1)
    )
    tick = select(func.min(t.t0_ns)).where(t.host_id == place.host_id, t.run_id == place.run)
    raw = place.connection.execute(block).scalar()
    if raw is None:
        raw = place.connection.execute(tick).scalar()
    oldest = _first_ns(place)
    if oldest is None or (raw is not None and oldest >= raw):
        return None
    return int(raw) if raw is not None else 2**62


def _first_ns(place: Place) -> int | None:
    """Return the time of the run's first packed sample ever."""
    p, s = tables.peak.c, tables.series.c
    query = (
        select(func.min(p.first_t_ns))
        .join(tables.series, and_(s.host_id == p.host_id, s.id == p.series_id))
        .where(p.host_id == place.host_id, s.run_id == place.run)
    )
    found = place.connection.execute(query).scalar()
    return None if found is None else int(found)


def _add_rollups(
    place: Place,
    filling: _Filling,
    wanted: Mapping[int, Series],
    tier: tuple[Any, int],
    window: tuple[int, int],
) -> None:
    table, period_ns = tier
    c = table.c
    first, end = window[0] // period_ns, -(-window[1] // period_ns)
    query = select(c.series_id, c.n, c.low, c.high, c.high_t_ns, c.total, c.last)
    query = query.where(c.host_id == place.host_id).order_by(c.period)
    ids = list(wanted)
    if (end - first) * len(ids) <= _MOST_LOOKUPS:
        query = query.where(c.period.in_(list(range(first, end))), c.series_id.in_(ids))
    else:
        query = query.where(c.period >= first, c.period < end)
    rows = place.connection.execute(query)
    filling.add_rows(row for row in rows if row[0] in wanted)


def _ceil(t_ns: int, period_ns: int) -> int:
    return -(-t_ns // period_ns) * period_ns
