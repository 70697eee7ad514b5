"""The seam between the sampler and what it reads: one method, plain readings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from memplan_daemon.proc import Process

__all__ = ["HOST", "Collector", "Reading", "Watch"]


class Reading(NamedTuple):
    """One number as a collector found it; the sampler adds run and time."""

    entity: str
    """"host", "tree", "process:4711", "gpu:<uuid>" ...: what it is about."""
    metric: str
    """"rss_bytes" ...: the unit is the last word."""
    value: int
    """Bytes, or a count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What is to be read in this tick: a run's processes, or the host at large."""

    run_id: str | None
    """The run; None = the host's own readings."""
    pid: int | None
    """Root of the run's tree; None for the host."""
    members: Mapping[int, Process] = field(default_factory=dict)
    """The tree's living processes by id."""
    tick: int = 0
    """Number of the tick: the same for all watches of one tick, so that a collector can read
    shared things once."""


HOST = Watch(run_id=None, pid=None)
"""The host's own readings, first tick."""


class Collector(Protocol):
    """Reads one kind of thing."""

    def collect(self, watch: Watch) -> Iterable[Reading]:
        """Return what can be read now; what is missing or denied is left out, never 0."""
        ...
