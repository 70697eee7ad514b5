"""The arithmetic behind the chart: columns of time, the top of the axis, round numbers on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from memplan.units import UNITS

__all__ = ["Columns", "Points", "downsample", "ticks", "top_of"]

Points = Sequence[tuple[int, int]]
"""(nanoseconds, bytes), by time."""

_NEAR = 1.6
"""The capacity's line is drawn when it lies within this many times all else."""


class Scale(Protocol):
    """What of an axis counts here."""

    @property
    def start_ns(self) -> int:
        """Time at the left edge."""
        ...

    @property
    def end_ns(self) -> int:
        """Time at the right edge."""
        ...

    @property
    def plan(self) -> int | None:
        """Planned peak."""
        ...

    @property
    def high(self) -> int | None:
        """Upper end of the planned band."""
        ...

    @property
    def capacity(self) -> int | None:
        """All that the device has."""
        ...

    @property
    def gap_ns(self) -> int:
        """A longer time without a sample is left empty."""
        ...


def downsample(points: Points, limit: int) -> list[tuple[int, int]]:
    """Return at most `limit` points: of each stretch the highest and the lowest, in their order.

    Raises ValueError when the limit is below two.
    """
    if limit < 2:
        raise ValueError(f"cannot keep {limit} points")
    result = list(points)
    while len(result) > limit:
        size = max(math.ceil(2 * len(result) / limit), 3)
        kept: list[tuple[int, int]] = []
        for i in range(0, len(result), size):
            group = result[i : i + size]
            ends = {min(group, key=lambda p: p[1]), max(group, key=lambda p: p[1])}
            kept += sorted(ends)
        result = kept
    return result


def top_of(highest: int | None, axis: Scale) -> int:
    """Return the value at the upper end of the vertical axis, a twentieth above all shown.

    Args:
        highest: the largest value that is shown; None = there is none.
        axis: what else is shown.
    """
    known = [v for v in (axis.plan, axis.high, highest) if v is not None]
    top = max([1, *known])
    if axis.capacity is not None and (axis.capacity <= _NEAR * top or not known):
        top = max(top, axis.capacity)
    return top + max(top // 20, 1)


class Columns:
    """(lowest, highest) of each column; short gaps hold the last value, long ones are None.

    Points may come little by little, oldest first: each costs its own column alone. The last one
    before the left edge is held, too.
    """

    def __init__(self, axis: Scale, count: int) -> None:
        """Begin empty.

        Args:
            axis: its times, and what is a gap.
            count: columns.
        """
        self.spans: list[tuple[int, int] | None] = [None] * count
        self.highest: int | None = None
        self._axis = axis
        self._last: tuple[int, int, int] | None = None

    def add(self, points: Iterable[tuple[int, int]]) -> int:
        """Count points in; return the first column that may have changed."""
        start, end = self._axis.start_ns, self._axis.end_ns
        found, count, span = self.spans, len(self.spans), max(end - start, 1)
        first = count
        for t, value in points:
            if t > end:
                continue
            if t < start:
                self._last = (-1, t, value)
                continue
            column = min((t - start) * count // span, count - 1)
            if first == count:
                first = column if self._last is None else max(self._last[0], 0)
            self._hold(column, t)
            known = found[column]
            if known is None:
                found[column] = (value, value)
            elif value > known[1]:
                found[column] = (known[0], value)
            elif value < known[0]:
                found[column] = (value, known[1])
            if self.highest is None or value > self.highest:
                self.highest = value
            self._last = (column, t, value)
        return first

    def _hold(self, column: int, t_ns: int) -> None:
        """Hold the last value up to a column, unless that is a gap."""
        if self._last is None or t_ns - self._last[1] > self._axis.gap_ns:
            return
        before, _, value = self._last
        for between in range(max(before + 1, 0), column):
            self.spans[between] = (value, value)
        if before < 0 < column:
            self.highest = value if self.highest is None else max(self.highest, value)

    def move(self, axis: Scale, across: int) -> int | None:
        """Go on over a later stretch of time; return by how many columns it lies further on.

        None, and nothing is done, when it is of another length or does not begin at a cell.

        Args:
            axis: its times.
            across: columns in a cell.
        """
        count, moved = len(self.spans), axis.start_ns - self._axis.start_ns
        span = axis.end_ns - axis.start_ns
        if not count or span % count or span != self._axis.end_ns - self._axis.start_ns:
            return None
        steps, rest = divmod(moved, span // count)
        if rest or steps % across or not 0 <= steps <= count:
            return None
        self._axis = axis
        if not steps:
            return 0
        self.spans = self.spans[steps:] + [None] * steps
        self.highest = max((known[1] for known in self.spans if known is not None), default=None)
        if self._last is not None:
            self._last = (self._last[0] - steps, *self._last[1:])
        return steps


def ticks(top: int, rows: int, unit: str) -> Iterator[tuple[float, str]]:
    """Yield (bytes, label) of round numbers (1, 2 or 5 times a power of ten) up to the top."""
    size = UNITS[unit]
    wanted = top / size / max(rows // 3, 1)
    power = 10.0 ** math.floor(math.log10(wanted)) if wanted > 0 else 1.0
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= wanted * 0.999)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    value = step
    while value * size <= top:
        yield value * size, f"{value:.{digits}f}"
        value += step
