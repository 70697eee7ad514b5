"""Samples of one run as a table in memory: instants down, series across.

Pure: a frame is built from a batch, packed into a row of `tick`, joined with others and cut into
the columns of a block. An instant is one reading of several series; its number grows by one and
never depends on the clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, chain, groupby, repeat
from operator import sub
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
    "pack_rows",
    "period_cuts",
    "singles",
    "summarize",
    "summarize_parts",
    "summary_row",
    "tick_frame",
]

MINUTE_NS, HOUR_NS = 60 * 10**9, 3600 * 10**9


SummaryRow = tuple[int, int, int, int, int, float, int]
"""(series id, n, low, high, time of the highest, total, last): what was summarised."""

InstantRow = tuple[int, tuple[int, ...], Sequence[int]]
"""An instant on its way into a frame: (time, ids of series, a value for each)."""


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
    return Summary(
        n=len(values),
        low=low,
        low_t_ns=times[values.index(low)],
        high=high,
        high_t_ns=times[values.index(high)],
        total=float(sum(values)),
        first_t_ns=min(times),
        last_t_ns=max(times),
        last=values[-1],
    )


def merge(before: Summary, after: Summary) -> Summary:
    """Return the summary of two stretches, the second of which was sampled later."""
    lower, higher = after.low < before.low, after.high > before.high
    return Summary(
        n=before.n + after.n,
        low=after.low if lower else before.low,
        low_t_ns=after.low_t_ns if lower else before.low_t_ns,
        high=after.high if higher else before.high,
        high_t_ns=after.high_t_ns if higher else before.high_t_ns,
        total=before.total + after.total,
        first_t_ns=min(before.first_t_ns, after.first_t_ns),
        last_t_ns=max(before.last_t_ns, after.last_t_ns),
        last=after.last,
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
        often: dict[int, tuple[list[int], list[int]]]
        often = {series: ([], []) for series in _in_several(sets)}
        columns: dict[int, Column] = {}
        for ids, places in sets.items():  # what is in one set only has its values together there
            index = None if len(places) == len(rows) else places
            stretches = zip(*[rows[at][2] for at in places], strict=True)
            for series, stretch in zip(ids, stretches, strict=True):
                if series not in often:
                    columns[series] = Column(values=list(stretch), index=index)
        for at, (_, ids, values) in enumerate(rows):
            for found, value in zip(map(often.get, ids), values, strict=True):
                if found is not None:
                    found[0].append(value)
                    found[1].append(at)
        for series, (column, places) in often.items():
            full = len(column) == len(rows)
            columns[series] = Column(values=column, index=None if full else places)
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


def singles(row: InstantRow) -> list[InstantRow]:
    """Return an instant in parts that have each series once: the later values are the second's."""
    t_ns, ids, values = row
    if len(set(ids)) == len(ids):
        return [row]
    parts: list[dict[int, int]] = [{}]
    for series, value in zip(ids, values, strict=True):
        if series in parts[-1]:
            parts.append({})
        parts[-1][series] = value
    return [(t_ns, tuple(part), list(part.values())) for part in parts]


def pack_rows(rows: Sequence[InstantRow], seqs: Sequence[int]) -> tuple[int, bytes]:
    """Return (codec version, blob) of instants, at least one, and their numbers: a row of `tick`.

    Each series is once in each. `Frame.of_rows` would take longer than all the rest of this.
    """
    n = len(rows)
    sizes = Counter(chain.from_iterable([row[1] for row in rows]))
    ids = sorted(sizes)
    head = codec.encode(codec.pack_times([row[0] for row in rows], seqs)) + _names(tuple(ids))
    if n == 1:
        only = dict(zip(rows[0][1], rows[0][2], strict=True))
        return codec.shorter(head + codec.encode(map(only.__getitem__, ids)))
    columns: dict[int, Sequence[int]] = {}
    often: dict[int, list[int]] = {one: [] for one, size in sizes.items() if size > 1}
    for at, (_, series, values) in enumerate(rows):
        if not often.keys() >= set(series):
            # a value and its place are the whole column of what comes once, as most do
            columns.update(zip(series, zip(values, repeat(at), strict=False), strict=False))
        for column, value in zip(map(often.get, series), values, strict=True):
            if column is not None:
                column += (value, at)  # noqa: PLW2901 - the column grows
    for one, column in often.items():
        found = column[::2]
        stream = [found[0], *map(sub, found[1:], found)]
        if len(found) == n:
            sizes[one] = 0
        else:
            stream += column[1::2]
        columns[one] = stream
    every = chain.from_iterable(map(columns.__getitem__, ids))
    return codec.shorter(head + codec.encode(chain(map(sizes.__getitem__, ids), every)))


@lru_cache(maxsize=64)
def _names(ids: tuple[int, ...]) -> bytes:
    """Return the part of a tick that says whose it is: a run's is mostly the one before."""
    return codec.encode([len(ids), *ids[:1], *map(sub, ids[1:], ids)])


def _in_several(sets: Iterable[tuple[int, ...]]) -> set[int]:
    """Return what is in more than one of the sets."""
    seen: set[int] = set()
    found: set[int] = set()
    for ids in sets:
        found |= seen.intersection(ids)
        seen.update(ids)
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
