"""What one token costs: bytes that each device reads or copies, over the rates that it has.

Decoding is bound by bytes: every weight that a token passes through is read once where it is
computed, and what lies elsewhere crosses a link first. A prompt's pass reads everything once for
all of its tokens and computes 2 operations for each active parameter and token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memplan.placement.engines import EngineProfile
from memplan.placement.units import Unit
from memplan.types import Device, DeviceKind, Range

__all__ = ["Band", "Speeds", "decode_seconds", "decode_speed", "prefill_speed", "speeds"]


@dataclass(frozen=True, slots=True)
class Band:
    """Bytes (or operations, or seconds) with what it may be at worst and at best."""

    value: float
    low: float
    high: float
    source: str = "assumed"
    """Where it comes from: "stated", "table", "measured here" with the day, "assumed"."""


_LINK: dict[DeviceKind, Band] = {
    "cpu": Band(25e9, 6e9, 55e9),
    "disk": Band(3e9, 0.2e9, 12e9),
}
"""Copies to the computing device where nothing is known. cpu: PCIe 4.0 x16 pinned 25 GB/s,
pageable from 6, PCIe 5.0 up to 55. disk: NVMe 3 GB/s, a network disk 0.2; 12 GB/s was measured
when the page cache held the file."""

_OWN: dict[DeviceKind, Band] = {
    "gpu": Band(900e9, 190e9, 3350e9),
    "cpu": Band(60e9, 15e9, 300e9),
}
"""What a device reads of its own memory where nothing is known: from a GTX 1060 to an H100 SXM
(device table); two channels of DDR4 to twelve of DDR5."""

_OPERATIONS: dict[DeviceKind, Band] = {
    "gpu": Band(60e12, 8e12, 600e12),
    "cpu": Band(1e12, 0.1e12, 6e12),
}
"""16-bit operations a second that a prompt's pass reaches; assumed."""

_CALL = Band(20e-6, 100e-6, 5e-6)
"""Seconds that one copy takes whatever its size: launch, hook and allocation."""

_STATED = 0.25
"""Relative band of a bandwidth that the user stated."""

_LINK_SHARE = Band(0.8, 0.2, 0.9)
"""Part of a link's nominal rate that copies reach: pinned memory (25 of 31.5 GB/s on PCIe 4.0
x16), pageable, and the best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """Rates of one machine, bytes and operations a second."""

    own: Mapping[str, Band]
    """Device name -> reading its own memory."""
    link: Mapping[str, Band]
    """Device name -> from there to the computing device."""
    operations: Band
    """Of the computing device."""
    known: bool
    """True when the computing device's own rate is more than an assumption."""

    @property
    def source(self) -> str:
        """Where the constants come from, in words."""
        named = [f"{name} {_gb(band)} own" for name, band in self.own.items()]
        named += [f"{name} {_gb(band)} link" for name, band in self.link.items()]
        return ", ".join(named)


def _gb(band: Band) -> str:
    return f"{band.value / 1e9:.4g} GB/s ({band.source})"


def speeds(devices: Sequence[Device]) -> Speeds:
    """Return the rates of a machine: stated, measured, of the device table, or assumed ones."""
    main = next((d for d in devices if d.kind == "gpu"), devices[0])
    own = {d.name: _own(d) for d in devices if d.kind != "disk"}
    link = {d.name: _link(d, main) for d in devices if d.kind != "gpu" and d is not main}
    return Speeds(
        own=own,
        link=link,
        operations=_OPERATIONS[main.kind],
        known=main.memory_bandwidth is not None,
    )


def _own(device: Device) -> Band:
    if device.memory_bandwidth:
        rate = float(device.memory_bandwidth)
        if device.measured:
            return _measured(rate, device)
        return Band(0.8 * rate, 0.5 * rate, rate, "table")
    return _OWN[device.kind]


def _link(device: Device, main: Device) -> Band:
    if device.bandwidth:
        stated = float(device.bandwidth)
        if device.measured:
            return _measured(stated, device)
        return Band(stated, stated * (1 - _STATED), stated * (1 + _STATED), "stated")
    if device.kind == "cpu" and main.link_bandwidth:
        rate, share = float(main.link_bandwidth), _LINK_SHARE
        return Band(share.value * rate, share.low * rate, share.high * rate, "table")
    return _LINK[device.kind]


def _measured(rate: float, device: Device) -> Band:
    """Return a rate that was measured: programs copy in other sizes and from other threads."""
    source = f"measured here {device.measured}"
    return Band(rate, rate * (1 - _STATED), rate * (1 + _STATED), source)


def decode_seconds(
    units: Sequence[Unit],
    where: Mapping[int, str],
    engine: EngineProfile,
    rates: Speeds,
    *,
    pick: str = "value",
    cache_bytes: int = 0,
    hosted: frozenset[int] = frozenset(),
) -> float:
    """Return the seconds of one token of one sequence.

    Args:
        units: all pieces of the model.
        where: unit position -> device name.
        engine: how the pieces elsewhere are used.
        rates: of the machine.
        pick: "value", "low" (of the speed) or "high".
        cache_bytes: cache that one token reads.
        hosted: positions of embeddings that the host looks up.
    """
    main = next(iter(rates.own))
    own = copies = 0.0
    for unit in units:
        name = where[unit.position]
        if name not in rates.link:
            own += 0.0 if unit.lookup else unit.active_bytes / _rate(rates.own, name, pick)
        elif unit.position not in hosted:
            size = engine.decode_bytes(unit)
            if engine.computes == "host":
                own += size / _rate(rates.own if name in rates.own else rates.link, name, pick)
            elif size:
                copies += size / _rate(rates.link, name, pick) + float(getattr(_CALL, pick))
                own += unit.active_bytes / _rate(rates.own, main, pick)
    own += cache_bytes / _rate(rates.own, main, pick)
    return max(own, copies) if engine.overlaps else own + copies


def _rate(bands: Mapping[str, Band], name: str, pick: str) -> float:
    return float(getattr(bands[name], pick))


def decode_speed(
    units: Sequence[Unit],
    where: Mapping[int, str],
    engine: EngineProfile,
    rates: Speeds,
    *,
    cache_bytes: int = 0,
    hosted: frozenset[int] = frozenset(),
) -> Range:
    """Return tokens a second of one sequence.

    None when nothing lies elsewhere and the device's own rate is not known.
    """
    away = any(where[u.position] in rates.link and u.weight_bytes for u in units)
    if not away and not rates.known:
        return Range(value=None, low=None, high=None)
    found = {
        pick: 1.0
        / max(
            decode_seconds(
                units, where, engine, rates, pick=pick, cache_bytes=cache_bytes, hosted=hosted
            ),
            1e-9,
        )
        for pick in ("value", "low", "high")
    }
    return Range(**found)


def prefill_speed(
    units: Sequence[Unit],
    where: Mapping[int, str],
    engine: EngineProfile,
    rates: Speeds,
    *,
    tokens: int,
    parameters: int,
    hosted: frozenset[int] = frozenset(),
) -> Range:
    """Return prompt tokens a second of a pass.

    t = bytes elsewhere / link + 2 * parameters * tokens / operations. What the host computes for
    single tokens is copied for a pass of many (llama.cpp's --op-offload), so the link counts there
    too. None when nothing lies elsewhere.

    Args:
        units: all pieces of the model.
        where: unit position -> device name.
        engine: how the pieces elsewhere are used.
        rates: of the machine.
        tokens: in one pass, all sequences together.
        parameters: that one token passes through.
        hosted: positions of embeddings that the host looks up.
    """
    away = [u for u in units if where[u.position] in rates.link and u.position not in hosted]
    if not any(unit.weight_bytes for unit in away):
        return Range(value=None, low=None, high=None)

    def speed(pick: str) -> float:
        copies = sum(
            engine.prefill_bytes(u) / _rate(rates.link, where[u.position], pick) for u in away
        )
        work = 2.0 * parameters * tokens / float(getattr(rates.operations, pick))
        return tokens / max(max(copies, work) if engine.overlaps else copies + work, 1e-9)

    return Range(value=speed("value"), low=speed("low"), high=speed("high"))
