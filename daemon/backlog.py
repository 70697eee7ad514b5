"""Samples on their way to the store: those that it refuses wait here, for a while."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import NamedTuple

from memplan_daemon.clock import NS, Clock

from memplan.store.batch import Instants
from memplan.types import Sample

__all__ = ["BATCH_SAMPLES", "BUFFER_S", "Backlog"]

BUFFER_S = 60.0
"""Seconds of samples that are kept while the store refuses them; older ones are dropped."""

BATCH_SAMPLES = 20_000
"""Samples written in one transaction at most, so that a long backlog goes in parts."""


class _Tick(NamedTuple):
    """The samples of one tick."""

    monotonic_ns: int
    samples: Instants


class Backlog:
    """Ticks in the order in which they came."""

    def __init__(self, clock: Clock) -> None:
        """Begin empty.

        Args:
            clock: tells how long a tick has waited.
        """
        self.taken = 0
        """Samples handed over so far: the store has them, in its memory or on disk."""
        self._clock = clock
        self._ticks: deque[_Tick] = deque()

    def __len__(self) -> int:
        """Return how many samples wait."""
        return sum(len(tick.samples) for tick in self._ticks)

    def add(self, samples: Sequence[Sample]) -> None:
        """Put a tick's samples behind those that wait."""
        if samples:
            self._ticks.append(_Tick(self._clock.monotonic_ns(), Instants.of(samples)))

    def flush(self, write: Callable[[Instants], None]) -> None:
        """Hand over all that waits, part by part. Raises what `write` raises; the rest stays.

        Args:
            write: takes samples.
        """
        while self._ticks:
            count = size = 0
            for tick in self._ticks:
                if count and size + len(tick.samples) > BATCH_SAMPLES:
                    break
                size += len(tick.samples)
                count += 1
            ticks = list(islice(self._ticks, count))
            write(Instants(instant for tick in ticks for instant in tick.samples.instants))
            self.taken += size
            for _ in range(count):
                self._ticks.popleft()

    def trim(self) -> int:
        """Drop what has waited for too long; return how many samples that were."""
        dropped, oldest = 0, self._clock.monotonic_ns() - round(BUFFER_S * NS)
        while self._ticks and self._ticks[0].monotonic_ns < oldest:
            dropped += len(self._ticks.popleft().samples)
        return dropped

    def clear(self) -> int:
        """Drop all; return how many samples that were."""
        dropped = len(self)
        self._ticks.clear()
        return dropped
