"""What each device holds: lines per device, and the assignment of units that led to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from memplan.footprint.lines import exact_line
from memplan.footprint.overhead import host_line
from memplan.placement.engines import EngineProfile
from memplan.placement.units import Unit
from memplan.types import PARTS, Device, Footprint, FrozenMap, Ledger, Line

__all__ = ["Assignment", "Spill", "budget", "buffer_line", "ledgers", "spill"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A complete answer of the solver, in names of devices."""

    where: Mapping[int, str]
    """Unit position -> device name."""
    lines: Mapping[str, tuple[Line, ...]]
    """Device name -> what it holds."""
    offloaded: Mapping[str, int] = field(default_factory=dict)
    """Device name -> weight bytes that are kept there for a device that computes."""
    reused: Mapping[str, int] = field(default_factory=dict)
    """Disk's name -> of those, bytes that are read from the checkpoint and written nowhere."""
    hosted: frozenset[int] = field(default_factory=frozenset)
    """Positions of embeddings that the host looks up."""
    settings: FrozenMap[int] = field(default_factory=FrozenMap)
    """What the engine must be told."""
    short_bytes: int = 0
    """What the first computing device lacks to hold all of its share; 0 = nothing."""
    policy: str = ""
    """The rule in words."""
    modules: FrozenMap[str] | None = None
    """Module path -> device name, where pieces of a unit lie apart; None = by `where`."""
    reads: Mapping[str, int] = field(default_factory=dict)
    """Device name -> bytes that one token reads there, where every device computes what it has."""


def budget(device: Device, lines: Sequence[Line], *, high: bool) -> int:
    """Return the bytes that lines leave on a device: by best estimates, or by upper ends."""
    taken = sum(line.high_bytes if high else line.bytes for line in lines)
    return device.capacity_bytes - device.reserve_bytes - taken


def buffer_line(engine: EngineProfile, size: int) -> list[Line]:
    """Return the line of the buffer through which pieces that are away are used."""
    what = "copy of the largest streamed module" if engine.buffer == "largest" else "layers ahead"
    return [exact_line("activations", size, f"{_BUFFER[engine.buffer]}: {what}")] if size else []


_BUFFER = {"largest": "reload buffer", "layers": "prefetch buffer", "none": "buffer"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spill:
    """What the slow devices hold."""

    where: dict[int, str]
    """Unit position -> device name."""
    lines: dict[str, tuple[Line, ...]]
    """Device name -> what it holds."""
    held: dict[str, int]
    """Device name -> bytes of weights that are kept there."""
    reused: dict[str, int]
    """Disk's name -> of those, what stays in the checkpoint's own files."""


def spill(
    units: Sequence[Unit],
    devices: Sequence[Device],
    *,
    gpu: bool,
    hosted: Sequence[Line] = (),
    pins: Mapping[int, str] | None = None,
) -> Spill:
    """Put the streamed units on the slow devices: host memory first, then disk, largest first.

    What finds no room anywhere is charged to the last device, whose free bytes then go below
    zero: a plan that does not fit still says by how much. A disk is charged for what is written
    anew; the rest is read from the checkpoint (transformers 5.23, accelerate_disk_offload).

    Args:
        units: what does not live on a computing device.
        devices: slow devices, fastest first.
        gpu: True when a GPU computes, so that the host's process overhead is charged there.
        hosted: what else the host memory holds while a GPU computes.
        pins: unit position -> slow device that it must be on.
    """
    lines = {d.name: (*hosted, host_line()) if gpu and d.kind == "cpu" else () for d in devices}
    room = {d.name: budget(d, lines[d.name], high=True) for d in devices}
    disks = {device.name for device in devices if device.kind == "disk"}
    found = Spill(where={}, lines={}, held=dict.fromkeys(room, 0), reused=dict.fromkeys(disks, 0))
    wishes = pins or {}
    order = sorted(units, key=lambda u: (u.position not in wishes, -u.away_bytes, u.position))
    for unit in order:
        needs = {n: unit.resaved_bytes if n in disks else unit.away_bytes for n in room}
        fits = (n for n in room if needs[n] <= room[n])
        name = wishes.get(unit.position) or next(fits, devices[-1].name)
        found.where[unit.position] = name
        room[name] -= needs[name]
        found.held[name] += unit.away_bytes
        if name in disks:
            found.reused[name] += unit.away_bytes - needs[name]
    for name, own in lines.items():
        size = found.held[name] - found.reused.get(name, 0)
        found.lines[name] = (exact_line("weights", size, "offloaded"), *own) if size else own
    return found


def ledgers(
    devices: Sequence[Device],
    lines: Mapping[str, Sequence[Line]],
    reused: Mapping[str, int] | None = None,
) -> tuple[Ledger, ...]:
    """Return the `devices` block of a plan.

    Args:
        devices: of the plan.
        lines: device name -> what it holds.
        reused: device name -> weights that are read there from files that exist anyway.
    """
    return tuple(
        _ledger(device, lines.get(device.name, ()), (reused or {}).get(device.name, 0))
        for device in devices
    )


def _ledger(device: Device, lines: Sequence[Line], reused: int) -> Ledger:
    own = Footprint(lines=tuple(lines))
    present = [part for part in PARTS if any(line.part == part for line in lines)]
    items: dict[str, int] = {}
    for line in lines:
        name = _item(line)
        items[name] = items.get(name, 0) + line.bytes
    return Ledger(
        name=device.name,
        kind=device.kind,
        capacity_bytes=device.capacity_bytes,
        reserve_bytes=device.reserve_bytes,
        parts=FrozenMap({part: own.part(part) for part in present}),
        low_bytes=own.low_bytes,
        high_bytes=own.high_bytes,
        items=FrozenMap(items),
        reused_bytes=reused,
    )


def _item(line: Line) -> str:
    """Return a line's name in the proof: its part, with buffers and contexts told apart."""
    for name in (_BUFFER["largest"], _BUFFER["layers"]):
        if line.source.startswith(name):
            return name.replace(" ", "_")
    if line.source.startswith("loading: "):
        return "loading"
    if line.part == "overhead":
        return "context"
    shared = ("FSDP2", "ZeRO", "DDP")
    communicates = line.part == "buffers" and line.source.startswith(shared)
    return "communication" if communicates else line.part
