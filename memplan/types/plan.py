"""What it needs and where it goes: lines, footprints, devices, ledgers, placements, plans."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from memplan.types.base import Basis, DeviceKind, Extra, FrozenMap, Part, no_extra, not_negative
from memplan.types.model import ModelSummary
from memplan.types.workload import Workload

__all__ = [
    "Beside",
    "Change",
    "Footprint",
    "Ledger",
    "Line",
    "Placement",
    "Plan",
    "Range",
    "Verdict",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One part of a footprint at the peak, with where the number comes from."""

    part: Part
    """Which part."""
    bytes: int
    """Best estimate."""
    low_bytes: int
    """Lower end of the band."""
    high_bytes: int
    """Upper end of the band."""
    basis: Basis
    """How it is known."""
    source: str
    """The rule in words, or where the number was read."""
    extra: Extra = field(default_factory=no_extra)
    """Unknown fields of a newer version."""

    def __post_init__(self) -> None:
        """Check that the band holds the estimate."""
        not_negative(self, "low_bytes")
        if not self.low_bytes <= self.bytes <= self.high_bytes:
            raise ValueError(
                f"{self.part}: {self.bytes} lies outside its band "
                f"{self.low_bytes}..{self.high_bytes}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What one workload needs on one device that holds everything, part by part."""

    SCHEMA: ClassVar[str] = "memplan.footprint/1"
    DERIVED: ClassVar[tuple[str, ...]] = ("total_bytes", "low_bytes", "high_bytes")

    lines: tuple[Line, ...]
    """Parts that are alive at the peak; they add up to the total."""
    extra: Extra = field(default_factory=no_extra)
    """Unknown fields of a newer version."""

    @property
    def total_bytes(self) -> int:
        """Best estimate of the peak."""
        return sum(line.bytes for line in self.lines)

    @property
    def low_bytes(self) -> int:
        """Lower end of the peak's band."""
        return sum(line.low_bytes for line in self.lines)

    @property
    def high_bytes(self) -> int:
        """Upper end of the peak's band."""
        return sum(line.high_bytes for line in self.lines)

    def part(self, part: Part) -> int:
        """Return the bytes of one part (0 when it has no line)."""
        return sum(line.bytes for line in self.lines if line.part == part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What one device of a plan holds: the `devices` block."""

    DERIVED: ClassVar[tuple[str, ...]] = ("total_bytes", "free_bytes", "proof")

    name: str
    """Device name."""
    kind: DeviceKind
    """What it is."""
    capacity_bytes: int
    """All of its memory."""
    reserve_bytes: int
    """Left untouched."""
    parts: FrozenMap[int]
    """Bytes of each part that lives here at the peak."""
    low_bytes: int
    """Lower end of the band of the total."""
    high_bytes: int
    """Upper end of the band of the total."""
    items: FrozenMap[int] = field(default_factory=FrozenMap)
    """The same total by purpose: "weights", "kv_cache", "activations", "reload_buffer",
    "prefetch_buffer", "loading", "communication", "context" ..."""
    reused_bytes: int = 0
    """Weights that are read here from the checkpoint's own files, so that they take no new room
    (disk)."""
    extra: Extra = field(default_factory=no_extra)
    """Unknown fields of a newer version."""

    @property
    def proof(self) -> str:
        """The sum in bytes, item by item with the reserve, and whether it is within capacity."""
        terms = [f"{name} {size}" for name, size in (self.items or self.parts).items() if size]
        terms += [f"reserve {self.reserve_bytes}"] if self.reserve_bytes else []
        total = self.total_bytes + self.reserve_bytes
        sign = "<=" if self.free_bytes >= 0 else ">"
        return f"{' + '.join(terms) or '0'} = {total} {sign} {self.capacity_bytes}"

    @property
    def total_bytes(self) -> int:
        """Everything that lives here at the peak."""
        return sum(self.parts.values())

    @property
    def free_bytes(self) -> int:
        """What is left after parts and reserve; negative when it does not fit."""
        return self.capacity_bytes - self.reserve_bytes - self.total_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """An estimate with its band; all None when nothing is known."""

    value: float | None = None
    """Best estimate."""
    low: float | None = None
    """Lower end."""
    high: float | None = None
    """Upper end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What somebody else would do with the same model and devices."""

    name: str
    """Who: "accelerate", "optimum" ..."""
    resident_bytes: int
    """Weights on devices that compute."""
    difference_bytes: int
    """The plan's resident bytes less these; embeddings that the host looks up count as resident."""
    runs: bool
    """False when it needs more than a device has, cache, activations and buffers counted."""
    note: str
    """Why not, or what it does, in words."""
    decode_tokens_per_s: Range = field(default_factory=Range)
    """By the same rates as the plan's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where every module goes, and what that costs."""

    device_map: FrozenMap[str]
    """Module path -> device name; prefix-free, covers every parameter and buffer."""
    offloaded_bytes: int
    """Weights that do not live on a device that computes."""
    streamed_bytes_per_token: int
    """Bytes copied to the computing device for each forward pass."""
    decode_tokens_per_s: Range
    """Speed of one sequence's decoding, bound by the bytes that are read; None when nothing is
    offloaded and the device's own rate is not known."""
    policy: str
    """The rule that made this placement, in words."""
    engine: str = ""
    """How what is offloaded is used: "stream", "cpu-compute", "uva", "prefetch", "shard" ..."""
    host_lookup: tuple[str, ...] = ()
    """Embeddings that the host looks up: their row is sent, they are never copied whole."""
    prefill_tokens_per_s: Range = field(default_factory=Range)
    """Prompt tokens a second in one pass; None when nothing is offloaded."""
    speed_source: str = ""
    """Where the rates behind both speeds come from."""
    settings: FrozenMap[int] = field(default_factory=FrozenMap)
    """What the engine must be told, such as "cpu_offload_bytes", "offload_group_size"."""
    warnings: tuple[str, ...] = ()
    """What speaks against this engine for this model."""
    beside: tuple[Beside, ...] = ()
    """What other planners or engines would do, with the difference."""
    extra: Extra = field(default_factory=no_extra)
    """Unknown fields of a newer version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change of one option that would make the plan fit."""

    option: str
    """Command-line option without dashes."""
    value: str
    """Its new value."""
    total_bytes: int
    """The peak with it."""
    note: str
    """What it costs, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Does it fit, and why."""

    fits: bool
    """True when every device holds its share within capacity less reserve."""
    reason: str
    """One sentence."""
    changes: tuple[Change, ...] = ()
    """What would make it fit, smallest change first."""
    binding: str = ""
    """The constraint that cannot be met, in words; "" when it fits."""
    sensitivity: tuple[str, ...] = ()
    """What a little more memory would change, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where everything goes and whether it fits."""

    SCHEMA: ClassVar[str] = "memplan.plan/1"

    id: str | None
    """Name in the database; None when it was not saved."""
    model: ModelSummary
    """What is loaded."""
    workload: Workload
    """What is done with it."""
    footprint: Footprint
    """What it needs (on the most loaded device when there are several GPUs)."""
    devices: tuple[Ledger, ...]
    """What each device holds."""
    placement: Placement
    """Where each module goes."""
    verdict: Verdict
    """Does it fit."""
    created_ns: int = 0
    """When it was made."""
    memplan_version: str = ""
    """Which memplan made it."""
    extra: Extra = field(default_factory=no_extra)
    """Unknown fields of a newer version."""
