"""Windows of time in a given number of buckets, from whatever tier is left.

Samples where they are still there; their chunks' or minutes' summaries where a bucket is twice as
wide; roll-ups of a minute or an hour where samples have been deleted. What was summarised counts in
the bucket in which its highest value lies, so every peak is shown at its own time and height.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from memplan.store import queries
from memplan.store.base import Bucket, Curve, Tier
from memplan.store.frame import HOUR_NS, MINUTE_NS, Frame, SummaryRow, summary_row
from memplan.store.history import FIRST, Place, frames, ticks
from memplan.types import Series

__all__ = ["curves"]

_MINUTES, _HOURS = ("rollup_1m", MINUTE_NS), ("rollup_1h", HOUR_NS)

_MOST_LOOKUPS = 20_000
"""Look-ups of single roll-ups; where more would be needed, a range of all series is read."""


class _Filling:
    """Buckets of all series of a window."""

    def __init__(self, since_ns: int, until_ns: int, width_ns: int) -> None:
        self.since_ns, self.until_ns, self.width_ns = since_ns, until_ns, width_ns
        self.tier: Tier = "raw"
        self.series: dict[int, dict[int, list[Any]]] = {}

    def add_rows(self, rows: Iterable[SummaryRow]) -> None:
        """Add what was summarised, or single samples.

        A bucket is a list [n, low, high, time of the highest, total, last] while it is filled:
        this is the one loop that has to be fast.
        """
        since, until, width, known = self.since_ns, self.until_ns, self.width_ns, self.series
        for series, n, low, high, t_ns, total, last in rows:
            if not since <= t_ns < until:
                continue
            place = (t_ns - since) // width
            buckets = known.get(series)
            if buckets is None:
                buckets = known[series] = {}
            bucket = buckets.get(place)
            if bucket is None:
                buckets[place] = [n, low, high, t_ns, total, last]
                continue
            bucket[0] += n
            bucket[4] += total
            bucket[5] = last
            if low < bucket[1]:  # noqa: PLR1730 - min() takes four times as long
                bucket[1] = low
            if high > bucket[2]:
                bucket[2], bucket[3] = high, t_ns

    def add_frame(self, frame: Frame, wanted: Mapping[int, Series], from_ns: int) -> None:
        """Add the samples of a frame that are not before a time."""
        whole = self._stretches(frame.times, from_ns)
        if whole == [(0, len(frame.times))]:
            self.add_rows(row for row in frame.rows() if row[0] in wanted)
            return
        rows = []
        for series, column in frame.columns.items():
            if series not in wanted:
                continue
            times, stretches = frame.times, whole
            if column.index is not None:
                times = frame.column_times(column)
                stretches = self._stretches(times, from_ns)
            for begin, end in stretches:
                rows.append(summary_row(series, column.values[begin:end], times[begin:end]))
        self.add_rows(rows)

    def _stretches(self, times: list[int], from_ns: int) -> list[tuple[int, int]]:
        """Return (begin, end) of neighbours that fall into one bucket and into the window."""
        since, until, width = max(self.since_ns, from_ns), self.until_ns, self.width_ns
        origin, found, begin = self.since_ns, [], 0
        if times == sorted(times):
            begin, end = bisect_left(times, since), bisect_left(times, until)
            while begin < end:
                border = origin + ((times[begin] - origin) // width + 1) * width
                after = bisect_left(times, border, begin, end)
                found.append((begin, after))
                begin = after
            return found
        # a clock that jumped back: one by one
        places = [(t - origin) // width if since <= t < until else None for t in times]
        for place, group in groupby(places):
            end = begin + len(list(group))
            if place is not None:
                found.append((begin, end))
            begin = end
        return found

    def curve(self, number: int, series: Series) -> Curve:
        since, width = self.since_ns, self.width_ns
        return Curve(
            series=series,
            width_ns=width,
            tier=self.tier,
            buckets=tuple(
                [
                    Bucket(since + place * width, n, low, high, t_ns, total / n, last)
                    for place, (n, low, high, t_ns, total, last) in sorted(
                        self.series[number].items()
                    )
                ]
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
    some = None if whole else wanted
    for frame in ticks(place, since=from_ns, until=until_ns - 1, wanted=some):
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
    """Add blocks: by their chunks' summaries where they are narrow, else sample by sample.

    Minutes take their place where those are fewer, or where samples would have to be unpacked.
    Where samples are gone (from_ns lies behind the window's begin), a block across the border is
    taken apart: its first part is in the roll-ups already.
    """
    if _minutes_do(place, filling, from_ns):
        _add_rollups(place, filling, wanted, _MINUTES, (from_ns, filling.until_ns))
        return
    asked = {
        "since": from_ns,
        "until": filling.until_ns - 1,
        "half": filling.width_ns // 2,
        "whole": from_ns if from_ns > filling.since_ns else FIRST,
        "after": FIRST,
    }
    some = "" if ids is None else queries.WANTED_CHUNKS.format(ids=queries.among(ids))
    filling.add_rows(place.rows(queries.SUMMARIES.format(wanted=some), **asked))
    for frame in frames(place, queries.WIDE_BLOCKS, ids, **asked):
        filling.add_frame(frame, wanted, from_ns)


def _minutes_do(place: Place, filling: _Filling, from_ns: int) -> bool:
    """Tell whether minutes are fine enough for the buckets, and cheaper than blocks."""
    if filling.width_ns < 2 * MINUTE_NS or from_ns >= filling.until_ns:
        return False
    asked = {"since": from_ns, "until": filling.until_ns - 1}
    ((blocks, longest_ns),) = place.rows(queries.EXTENT, **asked)
    minutes = (filling.until_ns - from_ns) // MINUTE_NS
    if not blocks or (blocks <= minutes and longest_ns <= filling.width_ns // 2):
        return False
    ((first,),) = place.ask(queries.FIRST_MINUTE, host=place.host_id)
    return first is not None and first <= from_ns // MINUTE_NS


def _rolled_up(place: Place, filling: _Filling, wanted: Mapping[int, Series]) -> int:
    """Add roll-ups for the part of the window whose samples are gone; return where that ends."""
    since, wide = filling.since_ns, filling.width_ns >= 2 * HOUR_NS
    ((raw_ns,),) = place.rows(queries.RAW_BEGIN)
    if raw_ns is not None and since >= raw_ns:
        return since
    ((oldest, _),) = place.rows(queries.SPAN)
    if oldest is None or (raw_ns is not None and oldest >= raw_ns):
        return since
    end = filling.until_ns
    if raw_ns is not None:
        end = min(_ceil(raw_ns, HOUR_NS if wide else MINUTE_NS), end)
    if wide:
        _add_rollups(place, filling, wanted, _HOURS, (since, end))
        filling.tier = "1h"
        return end
    ((first,),) = place.ask(queries.FIRST_MINUTE, host=place.host_id)
    minutes_ns = end if first is None else min(_ceil(first * MINUTE_NS, HOUR_NS), end)
    if first is not None and oldest >= first * MINUTE_NS:
        minutes_ns = since
    _add_rollups(place, filling, wanted, _MINUTES, (max(since, minutes_ns), end))
    filling.tier = "1m"
    if since < minutes_ns:
        _add_rollups(place, filling, wanted, _HOURS, (since, minutes_ns))
        filling.tier = "1h"
    return end


def _add_rollups(
    place: Place,
    filling: _Filling,
    wanted: Mapping[int, Series],
    tier: tuple[str, int],
    window: tuple[int, int],
) -> None:
    table, period_ns = tier
    first, end = window[0] // period_ns, -(-window[1] // period_ns)
    asked: dict[str, Any] = {"host": place.host_id}
    if (end - first) * len(wanted) <= _MOST_LOOKUPS:
        periods, ids = queries.among(range(first, end)), queries.among(wanted)
        narrowed = queries.LOOKED_UP.format(periods=periods, ids=ids)
    else:
        narrowed = queries.PERIODS
        asked |= {"first": first, "end": end}
    rows = place.ask(queries.ROLLUPS.format(table=table, wanted=narrowed), **asked)
    filling.add_rows(row for row in rows if row[0] in wanted)


def _ceil(t_ns: int, period_ns: int) -> int:
    return -(-t_ns // period_ns) * period_ns
