"""The rule of a placement in words, and what is wrong with an engine for a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from memplan.placement.engines import PROFILES, EngineProfile
from memplan.placement.several import Spread
from memplan.placement.solve import Fill
from memplan.placement.units import Unit
from memplan.types import Device
from memplan.units import format_bytes

__all__ = ["policy_one", "policy_several", "warnings"]


def policy_one(
    main: Device,
    units: Sequence[Unit],
    fill: Fill,
    held: Mapping[str, int],
    engine: EngineProfile,
) -> str:
    """Return the rule that placed everything around one computing device."""
    if not any(held.values()):
        return f"everything lives on {main.name}"
    if fill.hosted:
        return f"everything but {_lookups(units, fill)} lives on {main.name}; {_LOOKUP}"
    beside = "cache and activations" if not fill.reload_bytes else _BESIDE
    return (
        f"{main.name} is filled with what saves most reading beside {beside}; "
        f"the rest, on {_names(held)}, is {engine.says}"
    )


_BESIDE = "cache, activations and a buffer for the largest module that is away"
_LOOKUP = (
    "the host looks each token's row up and sends that alone, so nothing is streamed and no "
    "buffer is needed (the loader of `memplan emit --to accelerate` sets this up; by the map "
    "alone, accelerate would copy the whole table for every token)"
)


def policy_several(
    gpus: Sequence[Device],
    units: Sequence[Unit],
    found: Spread,
    held: Mapping[str, int],
    engine: EngineProfile,
) -> str:
    """Return the rule that placed everything over several GPUs."""
    text = f"whole layers in order over {len(gpus)} GPUs"
    if not any(held.values()):
        return f"{text}, the fullest as empty as can be"
    if found.fill.hosted:
        return f"{text}, all but {_lookups(units, found.fill)}; {_LOOKUP}"
    return (
        f"{text}; {gpus[found.main].name} keeps a buffer and what saves most reading of its own; "
        f"the rest, on {_names(held)}, is {engine.says}"
    )


def _names(held: Mapping[str, int]) -> str:
    return " and ".join(name for name, size in held.items() if size)


def _lookups(units: Sequence[Unit], fill: Fill) -> str:
    found = [unit for unit in units if unit.position in fill.hosted]
    size = sum(unit.away_bytes for unit in found)
    names = " and ".join(unit.names[0] for unit in found)
    return f"the embedding {names} ({format_bytes(size)})"


_SPARSE = 0.5
"""Share of its weights below which a piece should not be read whole for each token."""


def warnings(
    away: Sequence[Unit], engine: EngineProfile, speeds: Mapping[str, float | None]
) -> tuple[str, ...]:
    """Return what a reader must know before using this engine for these pieces.

    Args:
        away: units that do not live on a computing device.
        engine: how they are used.
        speeds: tokens a second by profile name, this one and others on the same placement.
    """
    if engine.reads != "whole":
        return ()
    sparse = [unit for unit in away if unit.active_share < _SPARSE]
    if not sparse:
        return ()
    whole = sum(engine.decode_bytes(unit) for unit in sparse)
    better = PROFILES["cpu-compute"]
    used = sum(better.decode_bytes(unit) for unit in sparse)
    text = (
        f"{engine.name} reads {format_bytes(whole)} of experts for each token, of which "
        f"{format_bytes(used)} are used: better is an engine that computes them where they lie "
        f"({' or '.join(better.runs)})"
    )
    here, there = speeds.get(engine.name), speeds.get(better.name)
    if here and there and there > here:
        text += f", about {there / here:.0f} times as fast"
    return (text,)
