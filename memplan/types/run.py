"""What really happened, and how it compares: runs, samples, peaks, phases, comparisons."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from memplan.types.base import CompareVerdict, Extra, FrozenMap, Part, RunStatus, no_extra

__all__ = [
    "Comparison",
    "DeviceComparison",
    "Event",
    "PartComparison",
    "Peak",
    "Phase",
    "Run",
    "Sample",
    "Series",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """What a number is about: one quantity of one thing, in one run or on the host at large."""

    run_id: str | None
    """The run it was sampled for; None for the host's own samples."""
    entity: str
    """"host", "tree", "process:4711", "cgroup", "gpu:<uuid>", "torch:cuda:0" ..."""
    metric: str
    """"rss_bytes", "used_bytes", "allocated_bytes" ...: the unit is the last word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measured number."""

    series: Series
    """What it is about."""
    t_ns: int
    """When, wall clock."""
    value: int
    """Bytes (or a count, by the metric's name)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The highest value of one series."""

    series: Series
    """What it is about."""
    value: int
    """The highest value."""
    t_ns: int
    """When it was first reached, wall clock."""
    count: int
    """Samples that were looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of a run that the program itself named, with counters read at its end."""

    SCHEMA: ClassVar[str] = "memplan.phase/1"

    run_id: str
    """The run it belongs to."""
    name: str
    """"load", "prefill", "decode", "forward", "backward", "optimizer_step" ..."""
    pid: int
    """The process that reported it."""
    started_ns: int
    """Begin, wall clock."""
    ended_ns: int | None
    """End; None while it runs or when it was cut off."""
    counters: FrozenMap[int]
    """Name -> bytes at the end of the phase:
    "<device>.weights|gradients|optimizer|kv_cache|buffers" (sums over live tensors, device being
    "cpu", "cuda:0" or "disk"), "<device>.allocated|reserved|peak_allocated|peak_reserved"
    (the allocator's counters, where there is one), "process.rss|rss_anon|rss_file|hwm"."""
    extra: Extra = field(default_factory=no_extra)
    """Unknown fields of a newer version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened at one instant: an XID, an OOM kill, a lost probe, an alert."""

    SCHEMA: ClassVar[str] = "memplan.event/1"

    kind: str
    """What, in one word with dots: "gpu.xid", "host.oom", "store.gap", "alert.over_plan" ..."""
    t_ns: int
    """When, wall clock."""
    message: str
    """One sentence for people."""
    severity: Literal["info", "warning", "error"] = "info"
    """How much it matters."""
    run_id: str | None = None
    """The run that it belongs to; None = the host."""
    entity: str | None = None
    """What it happened to, named as in Series; None = the host or run as a whole."""
    data: FrozenMap[str] = field(default_factory=FrozenMap)
    """What a program may want to know: name -> text."""
    extra: Extra = field(default_factory=no_extra)
    """Unknown fields of a newer version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One command that was watched."""

    SCHEMA: ClassVar[str] = "memplan.run/1"

    id: str
    """Name in the database."""
    plan_id: str | None
    """The plan it is held against."""
    command: tuple[str, ...]
    """What was started."""
    host: str
    """Machine's name."""
    pid: int | None
    """Process at the root of the tree."""
    started_ns: int
    """Begin, wall clock."""
    ended_ns: int | None = None
    """End; None while it runs."""
    exit_code: int | None = None
    """The command's exit code (128 + signal when it was killed)."""
    status: RunStatus = "running"
    """"lost" = the sampler died before the command did."""
    versions: FrozenMap[str] = field(default_factory=FrozenMap)
    """memplan, python, torch, driver ... at the time."""
    extra: Extra = field(default_factory=no_extra)
    """Unknown fields of a newer version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartComparison:
    """One part, planned beside measured."""

    part: Part
    """Which part."""
    planned_bytes: int | None
    """By the plan; 0 = the plan says that there is none, None = there is no plan."""
    measured_bytes: int | None
    """By the run; None = nobody measured it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceComparison:
    """One device, planned beside measured."""

    name: str
    """Device name of the plan."""
    planned_bytes: int | None
    """Planned peak of what `measured_by` counts; None = there is no plan."""
    low_bytes: int | None
    """Lower end of the plan's band."""
    high_bytes: int | None
    """Upper end of the plan's band."""
    peak_bytes: int | None
    """Measured peak (process or allocated bytes, see `measured_by`)."""
    peak_reserved_bytes: int | None
    """Peak of the allocator's reserved bytes, where there is one."""
    gap_bytes: int | None
    """Measured less planned peak."""
    within_band: bool | None
    """Is the measured peak inside the band; None when nothing was measured."""
    parts: tuple[PartComparison, ...]
    """Part by part."""
    unaccounted_bytes: int | None
    """Measured peak less every part as measured (as planned where not measured)."""
    measured_by: str = ""
    """The counter behind `peak_bytes`."""
    extra: Extra = field(default_factory=no_extra)
    """Unknown fields of a newer version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Plan beside measurement."""

    SCHEMA: ClassVar[str] = "memplan.comparison/1"

    run: Run
    """What was measured."""
    plan_id: str | None
    """What it is held against."""
    devices: tuple[DeviceComparison, ...]
    """Device by device."""
    verdict: CompareVerdict | None
    """"over" when a peak lies above its band, else "under" when one lies below, else "within";
    None when nothing was both planned and measured."""
    notes: tuple[str, ...] = ()
    """What a reader must know to judge the numbers."""
    extra: Extra = field(default_factory=no_extra)
    """Unknown fields of a newer version."""
