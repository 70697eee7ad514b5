"""What each device holds: lines per device, and the assignment of units that led to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from memplan.footprint.lines import exact_line
from memplan.footprint.overhead import host_line
from memplan.placement.units import Unit
from memplan.types import PARTS, Device, Footprint, FrozenMap, Ledger, Line

__all__ = ["Assignment", "budget", "ledgers", "spill"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A complete answer of the solver, in names of devices."""

    where: Mapping[int, str]
    """Unit position -> device name."""
    lines: Mapping[str, tuple[Line, ...]]
    """Device name -> what it holds."""
    offloaded: Mapping[str, int] = field(default_factory=dict)
    """Device name -> weight bytes that are streamed from there."""
    policy: str = ""
    """The rule in words."""
    modules: FrozenMap[str] | None = None
    """Module path -> device name, where pieces of a unit lie apart; None = by `where`."""
    reads: Mapping[str, int] = field(default_factory=dict)
    """Device name -> bytes that one token reads there, where every device computes what it has."""
    options: tuple[str, ...] = ()
    """The engine's own options that the answer counts on."""


def budget(device: Device, lines: Sequence[Line], *, high: bool) -> int:
    """Return the bytes that lines leave on a device: by best estimates, or by upper ends."""
    taken = sum(line.high_bytes if high else line.bytes for line in lines)
    return device.capacity_bytes - device.reserve_bytes - taken


def spill(
    units: Sequence[Unit], devices: Sequence[Device], *, gpu: bool, hosted: Sequence[Line] = ()
) -> tuple[dict[int, str], dict[str, tuple[Line, ...]], dict[str, int]]:
    """Put the streamed units on the slow devices: host memory first, then disk, largest first.

    What finds no room anywhere is charged to the last device, whose free bytes then go below
    zero: a plan that does not fit still says by how much.

    Args:
        units: what does not live on a computing device.
        devices: slow devices, fastest first.
        gpu: True when a GPU computes, so that the host's process overhead is charged there.
        hosted: what else the host memory holds while a GPU computes.

    Returns unit position -> device, the lines of each slow device, weight bytes by device.
    """
    lines = {d.name: (*hosted, host_line()) if gpu and d.kind == "cpu" else () for d in devices}
    room = {d.name: budget(d, lines[d.name], high=True) for d in devices}
    where: dict[int, str] = {}
    held = {d.name: 0 for d in devices}
    for unit in sorted(units, key=lambda u: (-u.weight_bytes, u.position)):
        name = next((n for n in room if unit.weight_bytes <= room[n]), devices[-1].name)
        where[unit.position] = name
        room[name] -= unit.weight_bytes
        held[name] += unit.weight_bytes
    with_weights = {
        name: (exact_line("weights", held[name], "offloaded"), *own) if held[name] else own
        for name, own in lines.items()
    }
    return where, with_weights, held


def ledgers(devices: Sequence[Device], lines: Mapping[str, Sequence[Line]]) -> tuple[Ledger, ...]:
    """Return the `devices` block of a plan."""
    return tuple(_ledger(device, lines.get(device.name, ())) for device in devices)


def _ledger(device: Device, lines: Sequence[Line]) -> Ledger:
    own = Footprint(lines=tuple(lines))
    present = [part for part in PARTS if any(line.part == part for line in lines)]
    return Ledger(
        name=device.name,
        kind=device.kind,
        capacity_bytes=device.capacity_bytes,
        reserve_bytes=device.reserve_bytes,
        parts=FrozenMap({part: own.part(part) for part in present}),
        low_bytes=own.low_bytes,
        high_bytes=own.high_bytes,
    )
