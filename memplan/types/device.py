"""Where bytes can go: what is detected, known by its name, and stored."""

from __future__ import annotations

from dataclasses import dataclass, field

from memplan.types.base import DeviceKind, Extra, no_extra, not_negative

__all__ = ["Device"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Where bytes can go."""

    name: str
    """"cuda:0", "cpu", "disk": the name used in device maps."""
    kind: DeviceKind
    """What it is."""
    capacity_bytes: int
    """All of its memory (disk: free space)."""
    reserve_bytes: int = 0
    """Left untouched for others."""
    bandwidth: int | None = None
    """Bytes a second from here to the device that computes; None = not known."""
    memory_bandwidth: int | None = None
    """Bytes a second of its own memory, as the maker says; None = not known."""
    link_bandwidth: int | None = None
    """Bytes a second from host memory to a GPU, as the link can carry; None = not known."""
    measured: str = ""
    """Day on which its bandwidths were measured on this machine; "" = they were not."""
    label: str = ""
    """Product name for people."""
    uuid: str | None = None
    """Stable identity of a GPU."""
    vendor: str | None = None
    """Who makes a GPU, if known."""
    compute: str | None = None
    """Compute capability ("8.9") or gfx name of a GPU, if known."""
    source: str = ""
    """Where the numbers come from."""
    extra: Extra = field(default_factory=no_extra)
    """Unknown fields of a newer version."""

    def __post_init__(self) -> None:
        """Check that the sizes make sense."""
        not_negative(self, "capacity_bytes", "reserve_bytes", "bandwidth")
        not_negative(self, "memory_bandwidth", "link_bandwidth")
