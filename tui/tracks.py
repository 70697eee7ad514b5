"""Samples of one run, or of the machine, kept by series: what was now, and highest, at any time."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import overload

from memplan_tui.messages import Points, Process

from memplan.chart import downsample
from memplan.store.base import Curve
from memplan.types import Peak, Phase, Series

__all__ = ["KEPT_POINTS", "Track", "Tracks", "Window"]

KEPT_POINTS = 4096
"""Points of one series while it is watched; beyond, of neighbours the extremes stay."""

_GONE_NS = 60 * 10**9
"""A process without a sample for so long, as the run went on, has ended, though nobody has seen it
end. One that does not move is stored every 15 s, or more seldom where the daemon must save."""

Key = tuple[str, str]
"""Entity and metric."""


class Window(Sequence[tuple[int, int]]):
    """Samples of a window as they stand in a track: nothing is copied.

    A track only ever appends to its arrays, so a window stays what it was when it was made.
    """

    __slots__ = ("first", "last", "times", "values")

    def __init__(self, times: array[int], values: array[int], first: int, last: int) -> None:
        """Look at samples `first` (included) to `last` (excluded)."""
        self.times, self.values, self.first, self.last = times, values, first, max(first, last)

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.last - self.first

    @overload
    def __getitem__(self, index: int) -> tuple[int, int]: ...

    @overload
    def __getitem__(self, index: slice) -> Window: ...

    def __getitem__(self, index: int | slice) -> tuple[int, int] | Window:
        """Return a sample, or a part of the window."""
        place = range(self.first, self.last)[index]
        if isinstance(place, int):
            return self.times[place], self.values[place]
        if place.step != 1:
            raise ValueError("a window has no steps")
        return Window(self.times, self.values, place.start, place.stop)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield (time, value)."""
        part = slice(self.first, self.last)
        return zip(self.times[part], self.values[part], strict=True)

    def __eq__(self, other: object) -> bool:
        """Compare the samples, with any sequence of them."""
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        """Agree with equality."""
        return hash(tuple(self))

    def after(self, before: Window) -> Window | None:
        """Return what has come since an earlier window; None when that one does not go on here."""
        if self.times is not before.times or not before.first <= self.first <= before.last:
            return None
        if before.last > self.last:
            return None
        return Window(self.times, self.values, before.last, self.last)


class Track:
    """One series: times, values, and the highest value so far."""

    __slots__ = ("_high", "count", "times", "top", "top_ns", "values")

    def __init__(self) -> None:
        self.times = array("q")
        self.values = array("q")
        self.count = 0
        """Samples that were looked at, also those that are not kept."""
        self.top = 0
        """The highest value of all of them."""
        self.top_ns = 0
        """When it was first reached."""
        self._high = array("q")

    def add(self, t_ns: int, value: int) -> None:
        """Append a sample; the wall clock may have jumped back, the order then stays."""
        self.times.append(max(t_ns, self.times[-1]) if self.times else t_ns)
        self.values.append(value)
        self._rise(value, self.times[-1])
        self.count += 1

    def _rise(self, value: int, t_ns: int) -> None:
        if not self.count or value > self.top:
            self.top, self.top_ns = value, t_ns

    def extend(self, times: Sequence[int], values: Sequence[int]) -> None:
        """Append samples, oldest first."""
        before = self.times[-1] if self.times else times[0]
        if len(times) == 1 or times[0] < before or list(times) != sorted(times):
            for t_ns, value in zip(times, values, strict=True):
                self.add(t_ns, value)
            return
        high = max(values)
        self._rise(high, times[values.index(high)])
        self.times.extend(array("q", times))  # an array of a list is made faster than it grows
        self.values.extend(array("q", values))
        self.count += len(times)

    def know(self, peak: Peak) -> None:
        """Take over the peak of all samples, of which these are the last ones or all."""
        self.top, self.top_ns, self.count = peak.value, peak.t_ns, peak.count

    def thin(self, limit: int) -> None:
        """Keep about half the limit of points once there are more than it."""
        if len(self.times) > limit:
            points = downsample(list(zip(self.times, self.values, strict=True)), limit // 2)
            self.times = array("q", [t_ns for t_ns, _ in points])
            self.values = array("q", [value for _, value in points])
            self._high = array("q")

    def last(self, at_ns: int) -> int | None:
        """Return the index of the newest sample at a time; None before the first."""
        index = bisect_right(self.times, at_ns) - 1
        return index if index >= 0 else None

    def points(self, since_ns: int, until_ns: int) -> Points:
        """Return the samples of a window."""
        first, last = bisect_left(self.times, since_ns), bisect_right(self.times, until_ns)
        return Window(self.times, self.values, first, last)

    def high(self, index: int) -> int:
        """Return the highest value up to a sample; of what is kept, but at the newest of all."""
        if index == len(self.times) - 1:
            return self.top
        return self._highs()[index]

    def _highs(self) -> array[int]:
        """Return the highest value up to each sample: only a replay asks for all of them."""
        if len(self._high) < len(self.values):
            self._high = array("q", accumulate(self.values, max))
        return self._high

    def peak(self, series: Series, at_ns: int) -> Peak | None:
        """Return the highest value up to a time."""
        index = self.last(at_ns)
        if index is None and (self.times or not self.count):
            return None
        if index is None or index == len(self.times) - 1:
            return Peak(series=series, value=self.top, t_ns=self.top_ns, count=self.count)
        highs = self._highs()
        t_ns = self.times[bisect_left(highs, highs[index])]
        return Peak(series=series, value=highs[index], t_ns=t_ns, count=index + 1)


class Tracks:
    """All series of one run (None: of the machine)."""

    def __init__(self, run_id: str | None, *, limit: int = KEPT_POINTS) -> None:
        """Begin empty.

        Args:
            run_id: whose samples these are.
            limit: points kept of one series.
        """
        self.run_id = run_id
        self.series: dict[Key, Track] = {}
        self._limit = limit

    def add(self, columns: Mapping[Series, tuple[Sequence[int], Sequence[int]]]) -> None:
        """Append the times and values of each series, oldest first."""
        for series, (times, values) in columns.items():
            key = (series.entity, series.metric)
            track = self.series.get(key)
            if track is None:
                track = self.series[key] = Track()
            track.extend(times, values)
            track.thin(self._limit)

    def add_curves(self, curves: Iterable[Curve]) -> None:
        """Append what is left of older samples: of each bucket the lowest and the highest."""
        for curve in curves:
            key = (curve.series.entity, curve.series.metric)
            track = self.series.setdefault(key, Track())
            for bucket in curve.buckets:
                if bucket.low != bucket.high:
                    track.add(bucket.t_ns, bucket.low)
                track.add(bucket.high_t_ns, bucket.high)
                if bucket.last != bucket.high:
                    track.add(bucket.t_ns + curve.width_ns - 1, bucket.last)
                track.count += bucket.n - 1
            track.thin(self._limit)

    def know(self, peaks: Iterable[Peak]) -> None:
        """Take over the peaks of all samples, of which these are the last ones or all."""
        for peak in peaks:
            key = (peak.series.entity, peak.series.metric)
            self.series.setdefault(key, Track()).know(peak)

    def peaks(self, at_ns: int) -> tuple[Peak, ...]:
        """Return the peak of each series up to a time."""
        found = (
            track.peak(Series(run_id=self.run_id, entity=entity, metric=metric), at_ns)
            for (entity, metric), track in self.series.items()
        )
        return tuple(peak for peak in found if peak is not None)

    def now(self, entity: str, metric: str, at_ns: int) -> int | None:
        """Return a series' value at a time."""
        track = self.series.get((entity, metric))
        index = track.last(at_ns) if track is not None else None
        return track.values[index] if track is not None and index is not None else None

    def high(self, entity: str, metric: str, at_ns: int) -> int | None:
        """Return a series' highest value up to a time."""
        track = self.series.get((entity, metric))
        index = track.last(at_ns) if track is not None else None
        return track.high(index) if track is not None and index is not None else None

    def entities(self, metric: str) -> Iterator[str]:
        """Yield what has a series of a metric."""
        return (entity for entity, known in self.series if known == metric)

    def ends(self) -> tuple[int, int] | None:
        """Return the times of the first and the last sample."""
        tracks = [track for track in self.series.values() if track.times]
        if not tracks:
            return None
        return min(t.times[0] for t in tracks), max(t.times[-1] for t in tracks)

    def processes(self, phases: Iterable[Phase], at_ns: int) -> tuple[Process, ...]:
        """Return the run's living processes, the largest first, with what they say they do."""
        doing = {phase.pid: phase for phase in phases if phase.started_ns <= at_ns}
        tree = self.series.get(("tree", "rss_bytes"))
        index = tree.last(at_ns) if tree is not None else None
        newest = tree.times[index] if tree is not None and index is not None else at_ns
        found = []
        for entity in self.entities("rss_bytes"):
            track = self.series[entity, "rss_bytes"]
            last = track.last(at_ns)
            if not entity.startswith("process:") or last is None:
                continue
            final = self.series.get((entity, "final_rss_bytes"))
            ended = final.last(at_ns) if final is not None else None
            if ended is None and track.times[last] >= newest - _GONE_NS:
                pid = int(entity.removeprefix("process:"))
                phase = doing.get(pid)
                found.append(
                    Process(
                        pid=pid,
                        rss_bytes=track.values[last],
                        peak_bytes=track.high(last),
                        phase=phase.name if phase is not None else None,
                        in_phase=phase is not None and phase.ended_ns is None,
                    )
                )
        return tuple(sorted(found, key=lambda process: -process.rss_bytes))
