"""Which unit goes where: pure arithmetic over sizes, no names of devices.

One computing device: the resident set is filled to the brim, less the buffer through which the
rest is streamed (the largest streamed module). Several: whole layers stay in order, and the
fullest device is made as empty as possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memplan.placement.units import Unit
from memplan.units import MIB

__all__ = ["Fill", "fill_one", "split_layers"]


_SMALL_BYTES = MIB
"""Modules below this (norms) stay resident where they can."""


@dataclass(frozen=True, slots=True)
class Fill:
    """Which units live where."""

    resident: frozenset[int]
    """Positions of units that live on the computing device."""
    reload_bytes: int
    """Buffer through which the others are streamed; 0 when nothing is."""


def fill_one(units: Sequence[Unit], budget: int) -> Fill | None:
    """Choose what lives on one computing device.

    For each possible size R of the reload buffer: units that reload more than R must live there,
    R is set aside, and the rest is filled: first the small ones, since each streamed module costs
    a copy call whatever its size, then largest first (ties: earlier first). The R with the most
    resident bytes wins. Greedy filling loses at most the smallest unit that did not fit.

    Args:
        units: the model's pieces.
        budget: bytes for weights and the reload buffer; may be negative.

    Returns None when not even the smallest buffer leaves room for what must be resident.
    """
    total = sum(unit.weight_bytes for unit in units)
    if total <= budget:
        return Fill(frozenset(unit.position for unit in units), 0)
    order = sorted(units, key=_rank)
    best: Fill | None = None
    best_bytes = -1
    for reload in sorted({unit.reload_bytes for unit in units}):
        chosen, used = _fill(order, budget - reload, reload)
        if chosen is None or used <= best_bytes:
            continue
        best_bytes = used
        best = Fill(frozenset(chosen), _largest_reload(units, chosen))
    return best


def _rank(unit: Unit) -> tuple[bool, int, int]:
    return unit.weight_bytes >= _SMALL_BYTES, -unit.weight_bytes, unit.position


def _fill(order: Sequence[Unit], room: int, reload: int) -> tuple[set[int] | None, int]:
    chosen = {unit.position for unit in order if unit.reload_bytes > reload}
    used = sum(unit.weight_bytes for unit in order if unit.position in chosen)
    if used > room:
        return None, 0
    for unit in order:
        if unit.position not in chosen and used + unit.weight_bytes <= room:
            chosen.add(unit.position)
            used += unit.weight_bytes
    return chosen, used


def _largest_reload(units: Sequence[Unit], resident: set[int]) -> int:
    return max((unit.reload_bytes for unit in units if unit.position not in resident), default=0)


def split_layers(loads: Sequence[int], budgets: Sequence[int]) -> list[int] | None:
    """Cut a sequence of loads into one contiguous run per device.

    Finds the smallest share f of the budgets that suffices, by bisection over a greedy walk: the
    walk is optimal for a fixed f, since giving a device less never helps the next one.

    Args:
        loads: bytes of each block in order (weights, cache ... whatever moves with it).
        budgets: bytes that each device offers, in order.

    Returns the device's index for each block, or None when f = 1 does not suffice.
    """
    best = _walk(loads, budgets)
    if best is None:
        return None
    low, high = 0.0, 1.0
    for _ in range(40):
        share = (low + high) / 2
        found = _walk(loads, [int(share * budget) for budget in budgets])
        if found is None:
            low = share
        else:
            best, high = found, share
    return best


def _walk(loads: Sequence[int], budgets: Sequence[int]) -> list[int] | None:
    result: list[int] = []
    device, used = 0, 0
    for load in loads:
        while device < len(budgets) and used + load > budgets[device]:
            device, used = device + 1, 0
        if device == len(budgets):
            return None
        result.append(device)
        used += load
    return result
