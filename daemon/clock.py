"""Two clocks: one that tells when, one that tells how long.

Samples carry the wall clock as data, which may jump either way; cadence and time-outs use the
monotonic one, so a jump neither loses nor repeats a tick.
"""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "ManualClock", "SystemClock"]

NS = 1_000_000_000


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


class ManualClock:
    """Clocks that only move when told to."""

    def __init__(self, wall_ns: int = 1_760_000_000 * NS, monotonic_ns: int = 0) -> None:
        """Set both clocks, in nanoseconds."""
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns

    def wall_ns(self) -> int:
        """Return the wall clock as set."""
        return self._wall_ns

    def monotonic_ns(self) -> int:
        """Return the monotonic clock as set."""
        return self._monotonic_ns

    def advance(self, seconds: float) -> None:
        """Let both clocks run for some seconds."""
        step = round(seconds * NS)
        self._wall_ns += step
        self._monotonic_ns += step

    def jump_wall(self, seconds: float) -> None:
        """Set the wall clock forth or back, as an administrator would."""
        self._wall_ns += round(seconds * NS)
