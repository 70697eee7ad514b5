"""What the poller tells the screens: one frozen value a second, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from textual.message import Message

from memplan.types import Comparison, FrozenMap, Peak, Phase, Plan, Run

__all__ = ["Detail", "Gpu", "Machine", "Points", "Polled", "Snapshot"]

Points = tuple[tuple[int, int], ...]
"""(nanoseconds, bytes), by time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU of the machine, as sampled last."""

    uuid: str
    """Its identity."""
    label: str
    """Product name, or the identity where the name is not known."""
    total_bytes: int | None
    """All of its memory."""
    used_bytes: int | None
    """Used by everybody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The machine itself, as sampled last; None = not sampled."""

    total_bytes: int | None = None
    """Host memory."""
    available_bytes: int | None = None
    """What programs can still get."""
    gpus: tuple[Gpu, ...] = ()
    """Its GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """The selected run."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything that the screens show."""

    state: Literal["ok", "missing", "broken"]
    """Is there a database that can be read."""
    reason: str = ""
    """Why not, and what to do, in words."""
    now_ns: int = 0
    """When it was read."""
    last_sample_ns: int | None = None
    """When anything was sampled last."""
    machine: Machine = Machine()
    """The machine."""
    runs: tuple[Run, ...] = ()
    """Newest first."""
    peaks: FrozenMap[int] = field(default_factory=FrozenMap)
    """Run id -> its highest process memory."""
    detail: Detail | None = None
    """The selected run."""


class Polled(Message):
    """A new snapshot is there."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        self.snapshot = snapshot
