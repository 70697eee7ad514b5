"""Samples of one run as a table in memory: instants down, series across.

Pure: a frame is built from instants or from rows of `tick`, joined with others and cut into the
columns of a block. An instant is one reading of several series; its number grows by one and
never depends on the clock.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, groupby
from typing import NamedTuple

from memplan.errors import StoreDamagedError
from memplan.store import codec

__all__ = [
    "HOUR_NS",
    "MINUTE_NS",
    "Column",
    "Frame",
    "InstantRow",
    "Summary",
    "SummaryRow",
    "by_period",
    "merge",
    "period_cuts",
    "summarize",
    "summarize_parts",
    "summary_row",
    "tick_frame",
]

MINUTE_NS, HOUR_NS = 60 * 10**9, 3600 * 10**9


SummaryRow = tuple[int, int, int, int, int, float, int]
"""(series id, n, low, high, time of the highest, total, last): what was summarised."""

InstantRow = tuple[int, tuple[int, ...], Sequence[int]]
"""An instant on its way into a tick or a frame: (time, ids of series, a value for each)."""


def summary_row(series: int, values: Sequence[int], times: Sequence[int]) -> SummaryRow:
    """Return values of a series and the times of their instants (same length, not empty)."""
    high = max(values)
    t_ns = times[values.index(high)]
    return series, len(values), min(values), high, t_ns, sum(values), values[-1]


@dataclass(slots=True, kw_only=True)
class Column:
    """The values of one series in a frame."""

    values: list[int]
    """In the order of the instants."""
    index: list[int] | None = None
    """Position of each value's instant; None = one value at every instant."""


class Summary(NamedTuple):
    """What is left of samples when they are rolled up; a tuple, as a block makes thousands."""

    n: int
    """How many."""
    low: int
    """Lowest value."""
    low_t_ns: int
    """When it was first reached."""
    high: int
    """Highest value."""
    high_t_ns: int
    """When it was first reached."""
    total: float
    """Sum of the values."""
    first_t_ns: int
    """Time of the earliest."""
    last_t_ns: int
    """Time of the latest."""
    last: int
    """The value that came last."""


def summarize(values: Sequence[int], times: Sequence[int]) -> Summary:
    """Return the summary of values and the times of their instants (same length, not empty)."""
    low, high = min(values), max(values)
    return Summary(  # in order: names would take as long as all the rest
        len(values),
        low,
        times[values.index(low)],
        high,
        times[values.index(high)],
        float(sum(values)),
        min(times),
        max(times),
        values[-1],
    )


def merge(before: Summary, after: Summary) -> Summary:
    """Return the summary of two stretches, the second of which was sampled later."""
    lower = after if after.low < before.low else before
    higher = after if after.high > before.high else before
    return Summary(
        before.n + after.n,
        lower.low,
        lower.low_t_ns,
        higher.high,
        higher.high_t_ns,
        before.total + after.total,
        min(before.first_t_ns, after.first_t_ns),
        max(before.last_t_ns, after.last_t_ns),
        after.last,
    )


def by_period(
    stretches: Mapping[int, Iterable[tuple[int, Summary]]], each_ns: int, period_ns: int
) -> dict[tuple[int, int], Summary]:
    """Return (period number, series id) -> summary; a period is `period_ns` of wall clock.

    Args:
        stretches: as `Frame.stretches` returns them.
        each_ns: their periods: these, or parts of them.
        period_ns: the periods that are wanted.
    """
    found: dict[tuple[int, int], Summary] = {}
    for series, parts in stretches.items():
        for number, part in parts:
            key = number * each_ns // period_ns, series
            found[key] = merge(found[key], part) if key in found else part
    return found


@dataclass(slots=True, kw_only=True)
class Frame:
    """Instants of one run and what was read at them."""

    seqs: list[int] = field(default_factory=list)
    """Number of each instant, growing."""
    times: list[int] = field(default_factory=list)
    """Its wall clock in nanoseconds; may jump."""
    columns: dict[int, Column] = field(default_factory=dict)
    """Series id -> values."""
    _rows: list[SummaryRow] | None = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, readings: Iterable[tuple[int, int, int]], first_seq: int) -> Frame:
        """Build a frame from (series id, time, value) in the order in which they were read.

        A new instant begins where the time changes, and where a series comes a second time.
        """
        rows: list[tuple[int, dict[int, int]]] = []
        for series, t_ns, value in readings:
            if not rows or rows[-1][0] != t_ns or series in rows[-1][1]:
                rows.append((t_ns, {}))
            rows[-1][1][series] = value
        seqs = range(first_seq, first_seq + len(rows))
        return cls.of_rows([(t, tuple(row), list(row.values())) for t, row in rows], seqs)

    @classmethod
    def of_rows(cls, rows: Sequence[InstantRow], seqs: Iterable[int]) -> Frame:
        """Build a frame from instants, each series once in each, and their numbers.

        Columns that were always read together share one index.
        """
        sets: dict[tuple[int, ...], list[int]] = {}
        for at, row in enumerate(rows):
            sets.setdefault(row[1], []).append(at)
        within: dict[int, list[int]] = {}  # series -> the sets that it is in
        for number, ids in enumerate(sets):
            for series in ids:
                within.setdefault(series, []).append(number)
        together: dict[tuple[int, ...], list[int]] = {}
        for series, numbers in within.items():
            together.setdefault(tuple(numbers), []).append(series)
        # of each set: the places of its instants, and the values of each series at them
        stretches = [
            (places, dict(zip(ids, zip(*[rows[at][2] for at in places], strict=True), strict=True)))
            for ids, places in sets.items()
        ]
        columns = {}
        for common, group in together.items():
            parts = [stretches[number] for number in common]
            places = list(chain.from_iterable(part for part, _ in parts))
            index = None if len(places) == len(rows) else sorted(places)
            in_order = sorted(range(len(places)), key=places.__getitem__)
            for series in group:
                values = [*parts[0][1][series]]
                if len(parts) > 1:
                    for _, others in parts[1:]:
                        values += others[series]
                    values = [values[k] for k in in_order]
                columns[series] = Column(values=values, index=index)
        return cls(seqs=list(seqs), times=[row[0] for row in rows], columns=columns)

    @property
    def samples(self) -> int:
        """Values in all columns."""
        return sum(len(column.values) for column in self.columns.values())

    def column_times(self, column: Column) -> list[int]:
        """Return the time of each value of a column."""
        if column.index is None:
            return self.times
        return [self.times[i] for i in column.index]

    def rows(self) -> list[SummaryRow]:
        """Return each column summarised; made once, for frames that do not change any more."""
        if self._rows is None:
            self._rows = []
            for series, column in self.columns.items():
                row = summary_row(series, column.values, self.column_times(column))
                self._rows.append(row)
        return self._rows

    def append(self, other: Frame) -> None:
        """Put the instants of another frame behind these."""
        before, n = len(self.times), len(other.times)
        self.seqs += other.seqs
        self.times += other.times
        for series, column in self.columns.items():
            if column.index is None and series not in other.columns:
                column.index = list(range(before))
        for series, column in other.columns.items():
            known = self.columns.get(series)
            if known is None:
                known = self.columns[series] = Column(values=[], index=[] if before else None)
            if known.index is None and column.index is not None:
                known.index = list(range(before))
            if known.index is not None:  # a new list: other columns may share the old one
                places = column.index if column.index is not None else range(n)
                known.index = [*known.index, *(before + i for i in places)]
            known.values += column.values

    def cut(self, begin: int, end: int) -> Frame:
        """Return the instants begin to end (excluded) as a frame of their own."""
        if (begin, end) == (0, len(self.times)):
            return self
        part = Frame(seqs=self.seqs[begin:end], times=self.times[begin:end])
        for series, column in self.columns.items():
            if column.index is None:
                part.columns[series] = Column(values=column.values[begin:end])
                continue
            kept = [k for k, i in enumerate(column.index) if begin <= i < end]
            if kept:
                values = [column.values[k] for k in kept]
                index = [column.index[k] - begin for k in kept]
                full = len(index) == len(part.times)
                part.columns[series] = Column(values=values, index=None if full else index)
        return part

    @classmethod
    def unpack(cls, version: int, blob: bytes, wanted: Container[int] | None = None) -> Frame:
        """Return what `pack_rows` was given. Raises StoreDamagedError when it is no such thing.

        Args:
            version: of the codec.
            blob: what `pack_rows` returned.
            wanted: the series that are to be in it; None = all.
        """
        stream = codec.unpack(version, blob)
        times, seqs = codec.unpack_times(stream)
        try:
            columns = _columns(stream, len(times), wanted)
        except IndexError as error:
            raise StoreDamagedError(
                "a packed tick is shorter than it says", hint="memplan db repair"
            ) from error
        return cls(seqs=seqs, times=times, columns=columns)

    def stretches(self, period_ns: int) -> dict[int, list[tuple[int, Summary]]]:
        """Return series id -> (period number, summary) of neighbours in the same period.

        In the order in which they were read: a clock that jumps brings a period a second time.
        """
        cuts: dict[tuple[int, ...] | None, list[Cut]] = {}
        found = {}
        for series, column in self.columns.items():
            key = None if column.index is None else tuple(column.index)
            if key not in cuts:
                cuts[key] = period_cuts(self.column_times(column), period_ns)
            found[series] = summarize_parts(column.values, cuts[key])
        return found


def tick_frame(
    row: tuple[int, int, int, int, bytes], wanted: Container[int] | None = None
) -> Frame:
    """Return the frame of a row of `tick`, with the wanted series (None: all) in it.

    Raises StoreDamagedError when its checksum is wrong.

    Args:
        row: its seq0, n, codec, crc and data.
        wanted: ids of series.
    """
    seq0, n, version, crc, data = row
    if codec.checksum(data, seq0, n) != crc:
        raise StoreDamagedError(f"tick {seq0} is damaged", hint="memplan db repair")
    return Frame.unpack(version, data, wanted)


def _columns(stream: list[int], n: int, wanted: Container[int] | None) -> dict[int, Column]:
    at = 2 * n + 1
    count = stream[at]
    ids = list(accumulate(stream[at + 1 : at + 1 + count]))
    at += 1 + count
    if n == 1:
        values = stream[at : at + count]
        if len(values) != count or len(ids) != count:
            raise IndexError(count)
        pairs = zip(ids, values, strict=True)
        return {i: Column(values=[v]) for i, v in pairs if wanted is None or i in wanted}
    sizes = stream[at : at + count]
    at += count
    if len(stream) != at + sum(2 * k or n for k in sizes):
        raise IndexError(count)
    columns = {}
    for series, k in zip(ids, sizes, strict=True):
        size = k or n
        if wanted is None or series in wanted:
            values = list(accumulate(stream[at : at + size]))
            index = stream[at + size : at + 2 * size] if k else None
            columns[series] = Column(values=values, index=index)
        at += 2 * k or n
    return columns


Cut = tuple[int, int, int, Sequence[int]]
"""(period number, begin, end, times) of neighbours in the same period."""


def period_cuts(times: Sequence[int], period_ns: int) -> list[Cut]:
    """Return where times of instants, in the order in which they were read, change the period."""
    cuts: list[Cut] = []
    begin = 0
    for period, group in groupby(times, lambda t_ns: t_ns // period_ns):
        part = list(group)
        cuts.append((period, begin, begin + len(part), part))
        begin += len(part)
    return cuts


def summarize_parts(values: Sequence[int], cuts: Sequence[Cut]) -> list[tuple[int, Summary]]:
    """Return (period number, summary) of each part of a column's values."""
    stays = values.count(values[0]) == len(values)
    return [
        (period, _constant(values[0], times) if stays else summarize(values[begin:end], times))
        for period, begin, end, times in cuts
    ]


def _constant(value: int, times: Sequence[int]) -> Summary:
    """Return what `summarize` does of a value that stays."""
    n = len(times)
    return Summary(
        n, value, times[0], value, times[0], float(value * n), min(times), max(times), value
    )
