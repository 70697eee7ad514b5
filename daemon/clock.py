"""Two clocks: one that tells when, one that tells how long.

Samples carry the wall clock as data, which may jump either way; cadence and time-outs use the
monotonic one, so a jump neither loses nor repeats a tick.
"""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["NS", "Clock", "ClockWatch", "SystemClock"]

NS = 1_000_000_000

MOVED_NS = NS
"""A wall clock that has moved so far against the monotonic one was set, or the machine slept."""


class Clock(Protocol):
    """Where the time comes from."""

    def wall_ns(self) -> int:
        """Return nanoseconds since the epoch; may jump."""
        ...

    def monotonic_ns(self) -> int:
        """Return nanoseconds since some start; never goes back."""
        ...


class SystemClock:
    """The machine's clocks."""

    def wall_ns(self) -> int:
        """Return nanoseconds since the epoch; may jump."""
        return time.time_ns()

    def monotonic_ns(self) -> int:
        """Return nanoseconds since some start; never goes back."""
        return time.monotonic_ns()


class ClockWatch:
    """Remembers how far the wall clock is from the monotonic one."""

    def __init__(self, clock: Clock) -> None:
        """Begin with how it is now.

        Args:
            clock: has both.
        """
        self._clock = clock
        self._offset_ns = clock.wall_ns() - clock.monotonic_ns()

    def moved_ns(self, wall_ns: int) -> int:
        """Return by how much the wall clock has moved since that was last told; 0 = it has not.

        Args:
            wall_ns: what it shows now.
        """
        moved = wall_ns - self._clock.monotonic_ns() - self._offset_ns
        if abs(moved) < MOVED_NS:
            return 0
        self._offset_ns += moved
        return moved
