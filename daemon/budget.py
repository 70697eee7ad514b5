"""What the sampler may cost: it measures itself, and samples less often when that is too much."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from memplan_daemon.clock import NS, Clock

__all__ = ["CpuBudget"]

WINDOW_S = 10.0
"""The cost is that of the last ten seconds."""

EVERY_S = 2.0
"""Looks are so far apart at least."""

MOST = 10.0
"""No interval grows beyond ten times what was asked for."""

_GROW, _SHRINK = 1.5, 0.8
_EASY = 0.6
"""Intervals shrink again when the cost is below this part of the budget."""


class CpuBudget:
    """A share of one core, and by how much intervals are stretched to stay within it."""

    def __init__(self, clock: Clock, cpu_ns: Callable[[], int], share: float) -> None:
        """Begin unstretched.

        Args:
            clock: what the share is of.
            cpu_ns: returns the CPU time so far, of this process and those that work for it.
            share: of one core; 0 = no limit.
        """
        self.limit = share
        """Share of one core that may be used; 0 = no limit."""
        self.stretch = 1.0
        """Intervals are so many times longer than asked for."""
        self.share: float | None = None
        """Share of one core that was used lately; None before the first window has passed."""
        self._clock = clock
        self._cpu_ns = cpu_ns
        self._marks: deque[tuple[int, int]] = deque()

    def update(self) -> None:
        """Look at what was used, in a tick; a window counts from its own first tick.

        A tick that follows the last look within EVERY_S is let go by: to look costs something, too.
        """
        now = self._clock.monotonic_ns()
        if self._marks and now - self._marks[-1][0] < EVERY_S * NS:
            return
        cpu = self._cpu_ns()
        if self._marks and cpu < self._marks[-1][1]:  # a helper was replaced: its time is gone
            self._marks.clear()
        self._marks.append((now, cpu))
        begin, used = self._marks[0]
        if now - begin < WINDOW_S * NS:
            return
        self.share = (cpu - used) / (now - begin)
        self._marks.popleft()
        while len(self._marks) > 1 and now - self._marks[1][0] >= WINDOW_S * NS:
            self._marks.popleft()
        self._adapt()

    def _adapt(self) -> None:
        if not self.limit or self.share is None:
            self.stretch = 1.0
        elif self.share > self.limit and self.stretch < MOST:
            self.stretch = min(self.stretch * _GROW, MOST)
            self._marks.clear()  # what the longer interval costs is to be seen first
        elif self.share < self.limit * _EASY and self.stretch > 1.0:
            self.stretch = max(self.stretch * _SHRINK, 1.0)
            self._marks.clear()
