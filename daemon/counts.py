"""What a sampler did so far, and how often it reads what."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Counts", "Paces"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Paces:
    """Seconds between the slower readings; each is taken in the first tick, too."""

    medium_s: float = 5.0
    """What changes slowly, or seldom: control groups, OOM kills, power, temperature."""
    still_s: float = 30.0
    """In large runs, processes that have not moved."""
    rare_s: float = 60.0
    """What costs the driver something: PCIe, NVLink, ECC."""


@dataclass(slots=True, kw_only=True)
class Counts:
    """What a sampler did so far."""

    ticks: int = 0
    """Ticks taken."""
    late_ticks: int = 0
    """Ticks that were due while the one before was still running: skipped, never made up for."""
    samples_written: int = 0
    """Samples that the store has committed: they survive a kill."""
    samples_waiting: int = 0
    """Samples in memory: held back to be written together, or refused so far."""
    samples_dropped: int = 0
    """Samples given up because the store refused them for too long."""
    lateness_ns: int = 0
    """By how much the newest tick was late."""
