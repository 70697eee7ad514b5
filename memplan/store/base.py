"""What a store does for others: two protocols, and nothing about SQL.

`Writer` has two implementations: `memplan.store.writer.LocalWriter` (this process holds the
writer's lock and the only read-write connection) and `memplan.store.remote.RemoteWriter` (a daemon
holds them; requests go through its socket). `Reader` is `memplan.store.reader.StoreReader`.
The layout of samples on disk is nobody's business but the store's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from memplan.types import Device, Peak, Phase, Plan, Run, Sample

__all__ = ["Reader", "SampleBatch", "Writer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleBatch:
    """Samples read in one go, and where to go on reading."""

    cursor: int
    """Pass it to the next call to get only newer samples; unchanged when nothing is newer."""
    samples: tuple[Sample, ...]
    """Oldest first."""


class Writer(Protocol):
    """The one who writes. Every method is one committed transaction when it returns."""

    def save_plan(self, plan: Plan) -> Plan:
        """Store a plan under a new id (kept if it has one) and return it with that id."""
        ...

    def save_run(self, run: Run) -> None:
        """Insert a run, or replace the stored one with the same id."""
        ...

    def save_phases(self, phases: Sequence[Phase]) -> None:
        """Insert phases; one with the same run, pid, name and start replaces the stored one."""
        ...

    def save_devices(self, devices: Sequence[Device]) -> None:
        """Remember devices by name and uuid."""
        ...

    def write_samples(self, samples: Sequence[Sample]) -> None:
        """Append a batch. A clock that jumps back loses nothing and collides with nothing."""
        ...

    def close(self) -> None:
        """Give the connection and the lock back; calling it twice is harmless."""
        ...

    def __enter__(self) -> Self:
        """Return itself."""
        ...

    def __exit__(self, *details: object) -> None:
        """Close."""
        ...


class Reader(Protocol):
    """Everyone else: read-only, short transactions. Raises StoreError's children."""

    def plans(self, limit: int = 50) -> tuple[Plan, ...]:
        """Return plans, newest first."""
        ...

    def plan(self, key: str) -> Plan:
        """Return the plan with this id, unique beginning of an id, or "last"."""
        ...

    def runs(self, limit: int = 50) -> tuple[Run, ...]:
        """Return runs, newest first."""
        ...

    def run(self, key: str) -> Run:
        """Return the run with this id, unique beginning of an id, or "last"."""
        ...

    def phases(self, run_id: str) -> tuple[Phase, ...]:
        """Return a run's phases, oldest first."""
        ...

    def devices(self) -> tuple[Device, ...]:
        """Return every device that was remembered."""
        ...

    def peaks(self, run_id: str | None) -> tuple[Peak, ...]:
        """Return the peak of every series of a run (None: of the host's own samples)."""
        ...

    def samples(
        self,
        run_id: str | None,
        *,
        after: int = 0,
        since_ns: int | None = None,
        until_ns: int | None = None,
        limit: int = 100_000,
    ) -> SampleBatch:
        """Return samples of a run (None: the host's own) newer than cursor `after`, in a window."""
        ...

    def last_sample_ns(self) -> int | None:
        """Return when anything was sampled last, wall clock; None when nothing ever was."""
        ...

    def close(self) -> None:
        """Give the connection back."""
        ...

    def __enter__(self) -> Self:
        """Return itself."""
        ...

    def __exit__(self, *details: object) -> None:
        """Close."""
        ...
