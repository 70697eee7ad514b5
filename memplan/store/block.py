"""What a block's columns become: a chunk each, and what they add to minutes, hours and peaks.

Pure. Most columns of a block are of values that stay, and were read together with many others: but
for series and value, all numbers of their rows are the same, and are found once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import chain
from typing import Any

from memplan.store import codec
from memplan.store.frame import (
    HOUR_NS,
    MINUTE_NS,
    Frame,
    by_period,
    merge,
    period_cuts,
    summarize_parts,
)

__all__ = ["CHUNK", "PEAK", "ROLLUP", "BlockRows"]

CHUNK = (
    *("host_id", "day", "block_id", "series_id"),
    *("n", "low", "low_t_ns", "high", "high_t_ns", "total", "last", "codec", "crc", "data"),
)
ROLLUP = ("host_id", "period", "series_id", "n", "low", "high", "high_t_ns", "total", "last")
PEAK = ("host_id", "series_id", "n", "low", "high", "high_t_ns", "first_t_ns", "last_t_ns")

Row = tuple[Any, ...]


class _Periods(dict[int, list[Row]]):
    """Rows of each period, which is there as soon as it is asked for."""

    def __missing__(self, period: int) -> list[Row]:
        rows: list[Row] = []
        self[period] = rows
        return rows

    def in_order(self) -> list[Row]:
        return list(chain.from_iterable(rows for _, rows in sorted(self.items())))


class _Read:
    """What columns that were read together have in common."""

    def __init__(self, times: Sequence[int], index: Sequence[int] | None) -> None:
        """Take the times of their values, and the places of those among the block's instants."""
        self.times, self.index = times, index
        self.cuts = period_cuts(times, MINUTE_NS)
        minutes = {period for period, *_ in self.cuts}
        hours = {period * MINUTE_NS // HOUR_NS for period in minutes}
        self.hour = hours.pop() if len(hours) == 1 else None
        """The one hour of wall clock in which all were read; None where there are several."""
        self.ordered = len(minutes) == len(self.cuts)
        """No minute comes a second time: the clock did not jump back."""
        self.n, self.begin_t_ns = len(times), times[0]
        self.first_t_ns, self.last_t_ns = min(times), max(times)
        self.rest = codec.rest_of_constant(self.n, index)


class BlockRows:
    """Rows of a block's tables, each list in the order of its table's key."""

    def __init__(self, frame: Frame, host_id: int, day: int, block: int) -> None:
        """Make them.

        Args:
            frame: the block's instants.
            host_id: whose.
            day: the block's.
            block: its number.
        """
        self._host_id = host_id
        self._chunk = (host_id, day, block)
        self.chunks: list[Row] = []
        """Rows of CHUNK."""
        self.size_bytes = 0
        """Packed bytes of the chunks."""
        self.peaks: list[Row] = []
        """Rows of PEAK."""
        self._minutes, self._hours = _Periods(), _Periods()
        known: dict[tuple[int, ...] | None, _Read] = {}
        for series in sorted(frame.columns):
            column = frame.columns[series]
            key = None if column.index is None else tuple(column.index)
            read = known.get(key)
            if read is None:
                read = known[key] = _Read(frame.column_times(column), column.index)
            values = column.values
            if read.hour is None or not read.ordered:
                self._add(series, values, read)
            elif values.count(values[0]) == read.n:
                self._add_constant(series, values[0], read, read.hour)
            else:
                self._add_plain(series, values, read, read.hour)

    @property
    def minutes(self) -> list[Row]:
        """Rows of ROLLUP for minutes."""
        return self._minutes.in_order()

    @property
    def hours(self) -> list[Row]:
        """Rows of ROLLUP for hours."""
        return self._hours.in_order()

    def _add_constant(self, series: int, value: int, read: _Read, hour: int) -> None:
        """Add what `_add` would of a value that stays, in minutes of one hour, one after another.

        Without a `Summary`: there are hundreds of such columns to a block.
        """
        host, n, t_ns, total = self._host_id, read.n, read.begin_t_ns, 0.0
        for period, begin, end, times in read.cuts:
            count = end - begin
            of_minute = float(value * count)
            total += of_minute  # one by one, as `merge` does: large ones are rounded
            row = (host, period, series, count, value, value, times[0], of_minute, value)
            self._minutes[period].append(row)
        self._hours[hour].append((host, hour, series, n, value, value, t_ns, total, value))
        version, data = codec.pack_constant(value, read.rest)
        crc = codec.checksum(data, n, value, value, value)
        numbers = (n, value, t_ns, value, t_ns, total, value)
        self.chunks.append((*self._chunk, series, *numbers, version, crc, data))
        self.size_bytes += len(data)
        self.peaks.append((host, series, n, value, value, t_ns, read.first_t_ns, read.last_t_ns))

    def _add_plain(self, series: int, values: list[int], read: _Read, hour: int) -> None:
        """Add what `_add` would, of minutes of one hour, one after another."""
        host, n, total, last = self._host_id, read.n, 0.0, values[-1]
        for period, begin, end, times in read.cuts:
            part = values[begin:end]
            low, high = min(part), max(part)
            t_ns, of_minute = times[part.index(high)], float(sum(part))
            total += of_minute
            row = (host, period, series, end - begin, low, high, t_ns, of_minute, part[-1])
            self._minutes[period].append(row)
        low, high = min(values), max(values)
        low_t_ns, high_t_ns = read.times[values.index(low)], read.times[values.index(high)]
        self._hours[hour].append((host, hour, series, n, low, high, high_t_ns, total, last))
        self._add_chunk(series, values, read, (n, low, low_t_ns, high, high_t_ns, total, last))

    def _add(self, series: int, values: list[int], read: _Read) -> None:
        """Add the rows of a column, whatever its values and its clock did."""
        parts = summarize_parts(values, read.cuts)
        whole = reduce(merge, [part for _, part in parts])
        for periods, period_ns in ((self._minutes, MINUTE_NS), (self._hours, HOUR_NS)):
            for (period, _), found in by_period({series: parts}, MINUTE_NS, period_ns).items():
                n, low, _, high, high_t_ns, total, _, _, last = found
                row = (self._host_id, period, series, n, low, high, high_t_ns, total, last)
                periods[period].append(row)
        n, low, low_t_ns, high, high_t_ns, total, _, _, last = whole
        self._add_chunk(series, values, read, (n, low, low_t_ns, high, high_t_ns, total, last))

    def _add_chunk(
        self,
        series: int,
        values: list[int],
        read: _Read,
        numbers: tuple[int, int, int, int, int, float, int],
    ) -> None:
        """Add a column's chunk and its peak."""
        n, low, _, high, high_t_ns, _, last = numbers
        version, data = codec.pack_column(values, read.index)
        crc = codec.checksum(data, n, low, high, last)
        self.chunks.append((*self._chunk, series, *numbers, version, crc, data))
        self.size_bytes += len(data)
        peak = (self._host_id, series, n, low, high, high_t_ns, read.first_t_ns, read.last_t_ns)
        self.peaks.append(peak)
