"""Samples that wait in memory until they are written: bounded, the oldest go first."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from memplan.store.batch import Instant, Instants
from memplan.types import Sample

__all__ = ["Ring"]


class Ring:
    """Instants in the order in which they came."""

    def __init__(self) -> None:
        """Begin empty."""
        self.samples = 0
        """How many samples wait."""
        self._instants: deque[Instant] = deque()

    def __iter__(self) -> Iterator[Instant]:
        """Yield the instants, oldest first."""
        return iter(self._instants)

    def __len__(self) -> int:
        """Return how many instants wait."""
        return len(self._instants)

    def add(self, samples: Sequence[Sample], most: int) -> int:
        """Put samples behind the others; return how many of the oldest had to go.

        Args:
            samples: a batch.
            most: samples that may wait.
        """
        batch = Instants.of(samples)
        self._instants.extend(batch.instants)
        self.samples += len(batch)
        lost = 0
        while self.samples > most:
            lost += self.forget(1)
        return lost

    def oldest(self, most: int) -> list[Instant]:
        """Return the oldest instants: so many samples at the most, but at least one instant."""
        found: list[Instant] = []
        for instant in self._instants:
            most -= len(instant.values)
            if found and most < 0:
                break
            found.append(instant)
        return found

    def forget(self, instants: int) -> int:
        """Drop the oldest instants and return how many samples they were."""
        samples = sum(len(self._instants.popleft().values) for _ in range(instants))
        self.samples -= samples
        return samples
