"""A batch of samples on its way to the store, as columns: no object for each number.

A sampler reads the same hundreds of series every second. It hands over one `Instant` for each run,
with the same tuple of series every time where they are many; whoever wants samples walks over the
batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Self, overload

from memplan.types import Sample, Series

__all__ = ["SMALL", "Instant", "Instants"]

SMALL = 64
"""Series of an instant below which their numbers are looked up one by one: sets of so few are
others in every tick where only what has moved is stored, and would be remembered in vain."""


class Instant(NamedTuple):
    """What was read of one run, or of the host, at one moment; never empty."""

    t_ns: int
    """When, wall clock."""
    series: tuple[Series, ...]
    """What was read: the same object as at the moment before, where that was the same."""
    values: Sequence[int]
    """One for each series; kept until they are packed as a block, so not to be changed."""


class Instants(Sequence[Sample]):
    """Instants as a sequence of samples, which are made as they are asked for."""

    def __init__(self, instants: Iterable[Instant]) -> None:
        """Take the instants, in the order in which they were read."""
        self.instants = tuple(instants)
        """What it is made of."""
        self._size = sum(len(instant.values) for instant in self.instants)

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Self:
        """Return samples as instants; neighbours of the same run and time are one."""
        if isinstance(samples, cls):
            return samples
        return cls(_gathered(samples))

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._size

    def __iter__(self) -> Iterator[Sample]:
        """Yield the samples."""
        for t_ns, series, values in self.instants:
            for one, value in zip(series, values, strict=True):
                yield Sample(series=one, t_ns=t_ns, value=value)

    @overload
    def __getitem__(self, place: int) -> Sample: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Sample]: ...
    def __getitem__(self, place: int | slice) -> Sample | Sequence[Sample]:
        """Return one sample or several; each call makes all that are before it, too."""
        return tuple(self)[place]


def _gathered(samples: Iterable[Sample]) -> Iterator[Instant]:
    now: tuple[str | None, int] | None = None
    found: dict[Series, int] = {}
    for sample in samples:
        at = (sample.series.run_id, sample.t_ns)
        if at != now or sample.series in found:
            if now is not None:
                yield Instant(now[1], tuple(found), list(found.values()))
            now, found = at, {}
        found[sample.series] = sample.value
    if now is not None:
        yield Instant(now[1], tuple(found), list(found.values()))
