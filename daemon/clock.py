"""Two clocks: one that tells when, one that tells how long.

Samples carry the wall clock as data, which may jump either way; cadence and time-outs use the
monotonic one, so a jump neither loses nor repeats a tick.
"""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["NS", "Clock", "SystemClock"]

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
