"""The seam between the sampler and what it reads: one method, plain readings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from memplan_daemon.proc import Process

__all__ = [
    "ALWAYS_IN_FULL",
    "EVERYTHING",
    "HOST",
    "Collector",
    "Event",
    "Gap",
    "GapState",
    "HostOnly",
    "Pace",
    "Reading",
    "Steady",
    "Watch",
]

GapState = Literal["not-supported", "no-permission", "lost", "late", "failed"]
"""Why there is no number."""

Pace = Literal["medium", "still", "slow", "rare"]
"""What is not read in every tick: "medium" what changes slowly, "still" what did not move when it
was looked at last, "slow" what costs the target something, "rare" what costs a driver something."""

EVERYTHING: frozenset[Pace] = frozenset(("medium", "still", "slow", "rare"))

ALWAYS_IN_FULL = 8
"""Processes of a run up to which every tick reads and stores all of each; in larger runs what has
moved, and all at the pace "still". The run's total is stored in every tick."""


class Reading(NamedTuple):
    """One number as a collector found it; the sampler adds run and time."""

    entity: str
    """"host", "tree", "process:4711", "gpu:<uuid>" ...: what it is about."""
    metric: str
    """"rss_bytes" ...: the unit is the last word."""
    value: int
    """Bytes, or a count."""


class Gap(NamedTuple):
    """A number that should be there and is not: no sample is stored, its state is shown."""

    entity: str
    """What it is about."""
    metric: str
    """Which number; "state" for all of the entity's."""
    state: GapState
    """Why."""


class Event(NamedTuple):
    """Something that happened once; stored as a `memplan.types.Event`."""

    entity: str
    """What it happened to."""
    kind: str
    """"gpu.xid", "gpu.ecc_double", "gpu.state", "host.oom_kill", "cgroup.oom_kill" ..."""
    code: int
    """The XID, the victim's process id ...; 0 where there is none. Stored as data["code"]."""
    text: str
    """One line for the log."""
    t_ns: int | None = None
    """When, wall clock; None = in this tick."""


def _nobody(run_id: str) -> Sequence[Process]:
    del run_id
    return ()


class Steady(NamedTuple):
    """What a collector has found of a large run, where it knows itself what is new."""

    found: Sequence[Reading | Gap]
    """All of it; the same object as in the tick before while nothing in it is new."""
    news: Sequence[Reading]
    """What is stored in a tick that stores what has moved: that, and the run's total."""


@dataclass(slots=True, kw_only=True)
class Watch:
    """What is to be read in this tick: a run's processes, or the host at large.

    Nobody changes it; a frozen one takes three times as long to make.
    """

    run_id: str | None
    """The run; None = the host's own readings."""
    pid: int | None
    """Root of the run's tree; None for the host."""
    members: Mapping[int, Process] = field(default_factory=dict)
    """The tree's living processes by id; another object as soon as one came or went."""
    moved: Sequence[Process] | None = None
    """Those whose memory is another than at the last look, or that are new; None = that is not
    known."""
    late: Callable[[str], Sequence[Process]] = _nobody
    """Looks at those of a run whose turn it was not in this tick; returns who of them has moved."""
    tick: int = 0
    """Number of the tick: the same for all watches of one tick, so that a collector can read
    shared things once."""
    due: frozenset[Pace] = EVERYTHING
    """Which of the slower readings are due in this tick."""
    quiet: bool = False
    """True while the program asks not to be disturbed: nothing is read that could stall it."""

    @property
    def in_full(self) -> bool:
        """Tell whether also what did not move is read and stored in this tick."""
        return len(self.members) <= ALWAYS_IN_FULL or "still" in self.due


HOST = Watch(run_id=None, pid=None)
"""The host's own readings, first tick."""


class HostOnly:
    """Marks a collector that has nothing to say of a run."""


class Collector(Protocol):
    """Reads one kind of thing."""

    def collect(self, watch: Watch) -> Iterable[Reading | Gap | Event] | Steady:
        """Return what can be read now; what is missing or denied is left out, never 0.

        A list that is returned must not change any more.
        """
        ...
