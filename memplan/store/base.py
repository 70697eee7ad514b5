"""What a store does for others: two protocols, and nothing about SQL.

`Writer` has two implementations: `memplan.store.writer.LocalWriter` (this process holds the
writer's lock and the only read-write connection) and `memplan.store.remote.RemoteWriter` (a daemon
holds them; requests go through its socket). `Reader` is `memplan.store.reader.StoreReader`.
The layout of samples on disk is nobody's business but the store's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, Self

from memplan.types import Device, Event, Peak, Phase, Run, Sample, Series

if TYPE_CHECKING:
    from memplan.types import Plan

__all__ = ["Bucket", "ColumnBatch", "Curve", "Reader", "SampleBatch", "Tier", "Writer"]

Tier = Literal["raw", "1m", "1h"]
"""How fine what is left of a stretch of time is: samples, or roll-ups of a minute or an hour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleBatch:
    """Samples read in one go, and where to go on reading."""

    cursor: int
    """Pass it to the next call to get only newer samples; unchanged when nothing is newer."""
    samples: tuple[Sample, ...]
    """Oldest first."""
    more: bool = False
    """Was the limit reached, so that the next call returns more at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnBatch:
    """The same by series, for whoever keeps arrays: no object for each sample."""

    cursor: int
    """As in `SampleBatch`."""
    columns: Mapping[Series, tuple[Sequence[int], Sequence[int]]]
    """Times and values of each series, oldest first."""
    more: bool = False
    """As in `SampleBatch`."""


class Bucket(NamedTuple):
    """What one stretch of time holds of one series; a tuple, as windows are made of thousands."""

    t_ns: int
    """Begin of the stretch, wall clock."""
    n: int
    """Samples in it."""
    low: int
    """Lowest value."""
    high: int
    """Highest value: a peak survives every roll-up."""
    high_t_ns: int
    """When the highest value was first reached, wall clock."""
    mean: float
    """Sum of the values over their number."""
    last: int
    """The value that came last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One series in a window, in buckets of one width."""

    series: Series
    """What it is about."""
    width_ns: int
    """Nanoseconds of a bucket."""
    tier: Tier
    """The coarsest tier that went into it."""
    buckets: tuple[Bucket, ...]
    """By time; a stretch without samples has none (a gap is no zero)."""


class Writer(Protocol):
    """The one who writes. Every method is one committed transaction when it returns.

    Except `stage_samples`, which says so.
    """

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

    def save_events(self, events: Sequence[Event]) -> None:
        """Append events; one that is stored already (same time, kind, thing) is left as it is."""
        ...

    def write_samples(self, samples: Sequence[Sample]) -> None:
        """Append a batch. A clock that jumps back loses nothing and collides with nothing."""
        ...

    def stage_samples(self, samples: Sequence[Sample]) -> None:
        """Append a batch that may wait in memory until the next flush is due.

        For the host's own series: packed flushes are what keeps a disk from wearing out. What
        waits is written before anything that comes later. It never raises because the store
        refuses: the batch then stays in a bounded ring, and the oldest go first.
        """
        ...

    def delete_run(self, run_id: str) -> bool:
        """Delete a run with all that belongs to it; tell whether to call again for the rest.

        Raises NotStoredError when there is no such run, UsageError while it is running.
        """
        ...

    def flush(self) -> None:
        """Commit what was staged. Raises StoreError when the store refuses; nothing is lost."""
        ...

    def close(self) -> None:
        """Flush, give the connection and the lock back; calling it twice is harmless."""
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

    def plan_ids(self, limit: int = 50) -> tuple[str, ...]:
        """Return the ids of plans, newest first: a plan itself takes a while to read."""
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

    def events(
        self,
        run_id: str | None = None,
        *,
        since_ns: int | None = None,
        until_ns: int | None = None,
        limit: int = 1000,
    ) -> tuple[Event, ...]:
        """Return events in a window, oldest first; of all runs and the host when run_id is None.

        Where there are more than `limit`, the newest are returned.
        """
        ...

    def peaks(self, run_id: str | None) -> tuple[Peak, ...]:
        """Return the peak of every series of a run (None: of the host's own samples).

        They survive every retention tier.
        """
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
        """Return samples of a run (None: the host's own) newer than cursor `after`, in a window.

        Only what is still there as samples; `curves` also shows what was rolled up.
        """
        ...

    def columns(
        self,
        run_id: str | None,
        *,
        after: int = 0,
        since_ns: int | None = None,
        until_ns: int | None = None,
        limit: int = 100_000,
    ) -> ColumnBatch:
        """Return what `samples` returns as columns, many times as fast."""
        ...

    def curves(
        self,
        run_id: str | None,
        *,
        since_ns: int,
        until_ns: int,
        buckets: int = 200,
        entity: str | None = None,
        metric: str | None = None,
    ) -> tuple[Curve, ...]:
        """Return the series of a run (None: the host's own) in a window, in N buckets each.

        Args:
            run_id: the run; None = the host's own series.
            since_ns: begin of the window, wall clock, inclusive.
            until_ns: its end, exclusive.
            buckets: how many at the most.
            entity: only the series of this thing.
            metric: only the series of this metric.
        """
        ...

    def span_ns(self, run_id: str | None) -> tuple[int, int] | None:
        """Return the times of the first and the last sample ever; None where there is none."""
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
