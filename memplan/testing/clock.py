"""Clocks that only move when told to."""

from __future__ import annotations

__all__ = ["ManualClock"]

_NS = 1_000_000_000


class ManualClock:
    """A wall clock and a monotonic one, as the daemon's `Clock` protocol wants them."""

    def __init__(self, wall_ns: int = 1_760_000_000 * _NS, monotonic_ns: int = 0) -> None:
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
        step = round(seconds * _NS)
        self._wall_ns += step
        self._monotonic_ns += step

    def jump_wall(self, seconds: float) -> None:
        """Set the wall clock forth or back, as an administrator would."""
        self._wall_ns += round(seconds * _NS)
