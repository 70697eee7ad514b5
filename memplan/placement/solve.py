"""Which piece stays on the computing device: pure arithmetic over sizes, no names of devices.

One device: for each size that the reload buffer can have, the rest is filled with what saves most
reading, and improved by swaps. Several: whole layers stay in order, and the fullest device is made
as empty as possible. `memplan.placement.exact` solves the same by integer programming.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from memplan.placement.engines import PROFILES, EngineProfile
from memplan.placement.units import Unit
from memplan.types import FrozenMap
from memplan.units import MIB

__all__ = ["Fill", "Group", "fill_one", "grouped", "split_layers"]


_SMALL_BYTES = MIB
"""Modules below this (norms) stay where they can: each streamed one costs a copy call."""


@dataclass(frozen=True, slots=True)
class Fill:
    """Which units live where."""

    resident: frozenset[int]
    """Positions of units that live on the computing device."""
    reload_bytes: int
    """Buffer through which the others are used; 0 when there is none."""
    hosted: frozenset[int] = field(default_factory=frozenset)
    """Positions of embeddings that the host looks up: not resident, and no buffer for them."""
    settings: FrozenMap[int] = field(default_factory=FrozenMap)
    """What the engine must be told."""


@dataclass(slots=True)
class Group:
    """Units that are alike to the solver."""

    size: int
    """Bytes of one on the device."""
    reload: int
    """Bytes that the buffer needs when one of them is away."""
    gain: int
    """Bytes that a token need not read elsewhere for one that is resident."""
    positions: list[int]
    """Which units, earliest first."""
    taken: int = 0
    """How many are resident."""

    @property
    def left(self) -> int:
        """Number of those that are away."""
        return len(self.positions) - self.taken


def grouped(units: Iterable[Unit], engine: EngineProfile) -> list[Group]:
    """Return the groups of equal units, in the order in which a device is filled.

    First what is small, then by bytes saved for each byte held (dense weights before experts,
    lookups last), then the largest, then the earliest.
    """
    groups: dict[tuple[int, int, int], Group] = {}
    buffered = engine.buffer == "largest"
    for unit in units:
        gain = engine.decode_bytes(unit)
        key = (unit.weight_bytes, unit.reload_bytes if buffered else 0, gain)
        if key not in groups:
            groups[key] = Group(*key, [])
        groups[key].positions.append(unit.position)
    return sorted(groups.values(), key=_rank)


def _rank(group: Group) -> tuple[bool, float, int, int]:
    density = round(group.gain / group.size, 3) if group.size else 1.0
    return group.size >= _SMALL_BYTES, -density, -group.size, group.positions[0]


def fill_one(
    units: Sequence[Unit],
    budget: int,
    *,
    engine: EngineProfile = PROFILES["stream"],
    pins: Mapping[int, bool] | None = None,
) -> Fill | None:
    """Choose what lives on one computing device.

    For each possible size R of the reload buffer: units that reload more than R must live there,
    R is set aside, and the rest is filled in the order of `grouped`; then single swaps use up what
    the last unit left. The R that saves most reading wins. Larger buffers are not tried once even
    a perfect filling beside them would save less.

    Args:
        units: the model's pieces.
        budget: bytes for weights and the reload buffer; may be negative.
        engine: what is read of a piece that is away, and whether there is a buffer.
        pins: position -> True for what must be resident, False for what must not.

    Returns None when not even the smallest buffer leaves room for what must be resident.
    """
    wishes = pins or {}
    free = [unit for unit in units if unit.position not in wishes]
    stays = [unit for unit in units if wishes.get(unit.position)]
    goes = [unit for unit in units if wishes.get(unit.position) is False]
    room = budget - sum(unit.weight_bytes for unit in stays)
    fixed = frozenset(unit.position for unit in stays)
    if not goes and sum(unit.weight_bytes for unit in free) <= room:
        return Fill(fixed | {unit.position for unit in free}, 0)
    least = engine.buffer_bytes(goes) if engine.buffer == "largest" else 0
    groups = grouped(free, engine)
    best = _best(groups, room, least)
    if best is None:
        return None
    resident = fixed | {p for g in groups for p in g.positions[: best[groups.index(g)]]}
    away = [unit for unit in units if unit.position not in resident]
    return Fill(resident, engine.buffer_bytes(away) if engine.buffer == "largest" else 0)


def _best(groups: list[Group], room: int, least: int) -> list[int] | None:
    """Return how many of each group stay, or None."""
    best: list[int] | None = None
    best_gain = -1
    total = sum(group.gain * len(group.positions) for group in groups)
    for reload in sorted({least, *(g.reload for g in groups if g.reload > least)}):
        space = room - reload
        must = [group for group in groups if group.reload > reload]
        used = sum(group.size * len(group.positions) for group in must)
        if used > space:
            continue
        if best_gain >= min(total, _bound(groups, space)):
            break
        _fill(groups, space, reload)
        gain = sum(group.gain * group.taken for group in groups)
        if gain > best_gain:
            best_gain, best = gain, [group.taken for group in groups]
    return best


def _bound(groups: Sequence[Group], space: int) -> float:
    """Return what no filling of a space can save more than: pieces may be cut."""
    gain = 0.0
    for group in sorted(groups, key=lambda g: -g.gain / g.size if g.size else 0.0):
        size = group.size * len(group.positions)
        share = min(1.0, space / size) if size else 1.0
        gain += share * group.gain * len(group.positions)
        space -= int(share * size)
        if space <= 0:
            break
    return gain


def _fill(groups: Sequence[Group], space: int, reload: int) -> None:
    """Set what is taken of each group, within a space."""
    for group in groups:
        group.taken = len(group.positions) if group.reload > reload else 0
        space -= group.size * group.taken
    for group in groups:
        if group.left:
            more = min(group.left, space // group.size) if group.size else group.left
            group.taken += more
            space -= more * group.size
    _swap(groups, space, reload)


_SWAPS = 64
"""Most swaps; each uses up part of what is left, and few are ever needed."""


def _swap(groups: Sequence[Group], space: int, reload: int) -> None:
    """Exchange one resident unit for a larger one that is away, the most useful first."""
    if len(groups) > _SWAPPED:
        return
    for _ in range(_SWAPS):
        found = max(
            (
                (new.gain - old.gain, old.size - new.size, i, j)
                for i, old in enumerate(groups)
                if old.taken and old.reload <= reload
                for j, new in enumerate(groups)
                if new.left and 0 < new.size - old.size <= space and new.gain > old.gain
            ),
            default=None,
        )
        if found is None:
            return
        groups[found[2]].taken -= 1
        groups[found[3]].taken += 1
        space += found[1]


_SWAPPED = 64
"""Groups up to which swaps are looked for: with more of them, the last fits closely anyway."""


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
    for _ in range(_STEPS):
        share = (low + high) / 2
        found = _walk(loads, [int(share * budget) for budget in budgets])
        if found is None:
            low = share
        else:
            best, high = found, share
    return best


_STEPS = 24
"""Halvings of the share: to a ten-millionth of the budget, less than any layer."""


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
