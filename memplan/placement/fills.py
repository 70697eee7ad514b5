"""How each engine lets weights lie elsewhere: any module, a prefix of the layers, or whole ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from memplan.placement.engines import EngineProfile
from memplan.placement.solve import Fill, fill_one
from memplan.placement.units import Unit
from memplan.types import FrozenMap

__all__ = ["filled"]


def filled(
    engine: EngineProfile, units: Sequence[Unit], budget: int, pins: Mapping[int, bool]
) -> Fill | None:
    """Return what stays on one computing device, in the pieces that an engine can move.

    Args:
        engine: its grain decides.
        units: the model's pieces in order.
        budget: bytes for weights and buffers.
        pins: position -> must it be resident.

    Returns None when nothing fits.
    """
    if engine.grain == "module":
        return fill_one(units, budget, engine=engine, pins=pins)
    ways = _prefixes(units, budget) if engine.grain == "parameter" else _cycles(engine, units)
    kept = (fill for fill in ways if _holds(fill, units, budget, pins))
    return min(kept, key=lambda fill: _read(fill, units, engine), default=None)


def _holds(fill: Fill, units: Sequence[Unit], budget: int, pins: Mapping[int, bool]) -> bool:
    size = sum(unit.weight_bytes for unit in units if unit.position in fill.resident)
    wishes = all((position in fill.resident) == here for position, here in pins.items())
    return wishes and size + fill.reload_bytes <= budget


def _read(fill: Fill, units: Sequence[Unit], engine: EngineProfile) -> int:
    return sum(engine.decode_bytes(u) for u in units if u.position not in fill.resident)


def _prefixes(units: Sequence[Unit], budget: int) -> Iterator[Fill]:
    """Yield vLLM's ways: parameters of the layers in order, of all or of the routed experts alone.

    It moves one after another while less than --cpu-offload-gb has moved, so the sum of what has to
    move is the number to give. Embedding and output matrix are outside the layers and stay.
    """
    layered = [unit for unit in units if unit.layer is not None]
    total = sum(unit.weight_bytes for unit in units)
    everything = frozenset(unit.position for unit in units)
    for only_experts in (False, True):
        queue = [unit for unit in layered if not only_experts or unit.active_share < 1]
        moved: list[Unit] = []
        left = total
        for unit in queue:
            if left <= budget:
                break
            moved.append(unit)
            left -= unit.weight_bytes
        fill = Fill(everything - {unit.position for unit in moved}, 0)
        settings = {"cpu_offload_bytes": sum(unit.away_bytes for unit in moved)}
        yield replace(
            fill,
            settings=FrozenMap(settings | ({"cpu_offload_experts": 1} if only_experts else {})),
        )


def _cycles(engine: EngineProfile, units: Sequence[Unit]) -> Iterator[Fill]:
    """Yield vLLM's ways of prefetching: the last n of every G layers are away.

    One of G for each G, all but one of G, and all: every share that matters.
    """
    layers = sorted({unit.layer for unit in units if unit.layer is not None})
    everything = frozenset(unit.position for unit in units)
    count = len(layers)
    pairs = {(g, 1) for g in range(1, count + 1)} | {(g, g - 1) for g in range(3, count + 1)}
    for group, away in sorted(pairs):
        gone = {layer for layer in layers if layer % group >= group - away}
        moved = [unit for unit in units if unit.layer in gone]
        yield Fill(
            everything - {unit.position for unit in moved},
            engine.buffer_bytes(moved),
            settings=FrozenMap(
                {
                    "offload_group_size": group,
                    "offload_num_in_group": away,
                    "offload_prefetch_step": engine.buffered_layers,
                }
            ),
        )
