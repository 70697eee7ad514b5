"""What a reader of the database tells the screens: one frozen value a second, nothing else.

No Textual here: the first value is read while the library is still being loaded. Nobody asks
whether two are equal, nor prints them, and each method that a dataclass writes delays the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from memplan.types import Comparison, FrozenMap, Peak, Phase, Run

if TYPE_CHECKING:
    from memplan.types import Plan

__all__ = [
    "FIRST_WINDOW_NS",
    "Detail",
    "Gpu",
    "Host",
    "Machine",
    "Points",
    "Process",
    "Request",
    "Snapshot",
    "State",
]

Points = Sequence[tuple[int, int]]
"""(nanoseconds, bytes), by time."""

State = Literal["reading", "ok", "missing", "newer", "locked", "broken"]
"""Can the database be read, and if not, why; "reading" = the first answer has not come."""


FIRST_WINDOW_NS = 600 * 10**9
"""How far back curves go at first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the screens want to know."""

    run_id: str | None = None
    """The run to show in detail; None = the one that runs, else the machine, else the newest."""
    window_ns: int | None = None
    """How far back curves go; None = all of the run."""
    beside: tuple[str, ...] = ()
    """Runs that are shown side by side."""
    plan_id: str | None = None
    """The plan to show; None = the run's, else the newest."""
    at_ns: int | None = None
    """Position of a replay; None = now."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Gpu:
    """One GPU of the machine, as sampled last."""

    name: str
    """"cuda:0", or its place in the list where no such name is known."""
    uuid: str
    """Its identity."""
    label: str
    """Product name, or the identity where the name is not known."""
    total_bytes: int | None
    """All of its memory."""
    used_bytes: int | None
    """Used by everybody."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Machine:
    """The machine itself, as sampled last; None = not sampled."""

    total_bytes: int | None = None
    """Host memory."""
    available_bytes: int | None = None
    """What programs can still get."""
    gpus: tuple[Gpu, ...] = ()
    """Its GPUs."""
    peaks: FrozenMap[int] = field(default_factory=FrozenMap)
    """Device name -> highest use that is known."""
    history: FrozenMap[Points] = field(default_factory=FrozenMap)
    """Device name -> use by everybody."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Process:
    """One process of a run."""

    pid: int
    """Its id."""
    rss_bytes: int
    """Resident memory now."""
    peak_bytes: int
    """The highest that was sampled."""
    phase: str | None
    """The last phase that its program began; None = it says nothing."""
    in_phase: bool = False
    """Does that phase go on."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Detail:
    """One run as of the clock."""

    run: Run
    """The run."""
    plan: Plan | None
    """Its plan, if it has one."""
    comparison: Comparison
    """Plan beside measurement, as far as it got."""
    phases: tuple[Phase, ...]
    """What its program reported."""
    peaks: tuple[Peak, ...]
    """The peak of each series."""
    now: FrozenMap[int]
    """Device name -> bytes as sampled last."""
    history: FrozenMap[Points]
    """Device name -> its curve."""
    processes: tuple[Process, ...] = ()
    """Its largest processes, largest first."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Host:
    """One machine that the database knows."""

    name: str
    """Host name."""
    runs: int
    """Its runs."""
    running: int
    """Those that go on."""
    over: int
    """Those that failed or were lost."""
    last_ns: int
    """When its newest run began."""
    peak_bytes: int | None
    """The highest process memory of its runs."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Snapshot:
    """Everything that the screens show."""

    state: State
    """Is there a database that can be read."""
    reason: str = ""
    """Why not, in words."""
    hint: str = ""
    """What to type."""
    kept: bool = False
    """The database cannot be read now; what is shown was read before."""
    glance: bool = False
    """Only a first look: what was before, and the other runs, come at once."""
    now_ns: int = 0
    """The clock: the wall clock, or the position of a replay."""
    last_sample_ns: int | None = None
    """When anything was sampled last."""
    machine: Machine = Machine()
    """The machine."""
    runs: tuple[Run, ...] = ()
    """Newest first."""
    peaks: FrozenMap[int] = field(default_factory=FrozenMap)
    """Run id -> its highest process memory."""
    detail: Detail | None = None
    """The selected run; None = the machine itself."""
    plan: Plan | None = None
    """The plan that the Plan screen shows."""
    plans: tuple[str, ...] = ()
    """Ids of stored plans, newest first."""
    beside: tuple[Detail, ...] = ()
    """Runs side by side."""
    hosts: tuple[Host, ...] = ()
    """Machines, the busiest first."""
