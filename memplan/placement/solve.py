"""Which piece stays on the computing device: pure arithmetic over sizes, no names of devices.

One device: for each size that the reload buffer can have, the rest is filled with what saves most
reading, and improved by swaps. Several: whole layers stay in order, and the fullest device is made
as empty as possible. `memplan.placement.exact` solves the same by integer programming.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from memplan.placement.engines import PROFILES, EngineProfile
from memplan.placement.units import Unit
from memplan.types import FrozenMap
from memplan.units import MIB

__all__ = ["Fill", "Group", "fill_one", "grouped", "in_order", "split_layers"]


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
    taken = zip(groups, best, strict=True)
    resident = fixed | {p for group, count in taken for p in group.positions[:count]}
    away = [unit for unit in units if unit.position not in resident]
    return Fill(resident, engine.buffer_bytes(away) if engine.buffer == "largest" else 0)


_TRIED = 24
"""Sizes of the buffer that are tried where each leaves something unused: the first ones leave most
room, and swaps leave little."""


def _best(groups: list[Group], room: int, least: int) -> list[int] | None:
    """Return how many of each group stay, or None."""
    best: list[int] | None = None
    best_gain = -1
    total = sum(group.gain * len(group.positions) for group in groups)
    density = max((group.gain / group.size for group in groups if group.size), default=0.0)
    tried = 0
    for reload, must in _buffers(groups, least):
        space = room - reload
        if must > space:
            continue
        if tried == _TRIED or best_gain >= min(total, density * space):
            break
        tried += 1
        _fill(groups, space, reload)
        gain = sum(group.gain * group.taken for group in groups)
        if gain > best_gain:
            best_gain, best = gain, [group.taken for group in groups]
    return best


def _buffers(groups: Sequence[Group], least: int) -> Iterator[tuple[int, int]]:
    """Yield each size that the buffer can have, with the bytes that must then be resident."""
    must = sum(group.size * len(group.positions) for group in groups)
    below: dict[int, int] = {least: 0}
    for group in groups:
        size = max(group.reload, least)
        below[size] = below.get(size, 0) + group.size * len(group.positions)
    for reload in sorted(below):
        must -= below[reload]
        yield reload, must


def _fill(groups: Sequence[Group], space: int, reload: int) -> None:
    """Set what is taken of each group, within a space."""
    for group in groups:
        group.taken = len(group.positions) if group.reload > reload else 0
        space -= group.size * group.taken
    space = _top_up(groups, space)
    movable = [group for group in groups if group.reload <= reload and group.size]
    if len(movable) <= _FEW:
        space = _refill(movable, space)
    for _ in range(_SWAPS):
        found = _swap(movable, space)
        if found is None:
            return
        old, new = found
        old.taken -= 1
        new.taken += 1
        space -= new.size - old.size


def _top_up(groups: Sequence[Group], space: int) -> int:
    """Take of each group in turn what fits; return the space that is left."""
    for group in groups:
        if group.left:
            more = min(group.left, space // group.size) if group.size else group.left
            group.taken += more
            space -= more * group.size
    return space


_FEW = 32
"""Groups up to which fillings with one unit less are tried: a model has five to thirteen."""


def _refill(groups: Sequence[Group], space: int) -> int:
    """Give one unit up, and all behind it, where another filling saves more; return what is left.

    Only behind it: what stands before in the order of filling stays.
    """
    for i, old in enumerate(groups):
        if not old.taken:
            continue
        before = [group.taken for group in groups]
        gain = sum(group.gain * group.taken for group in groups)
        old.taken -= 1
        free = space + old.size + sum(group.size * group.taken for group in groups[i + 1 :])
        for group in groups[i + 1 :]:
            group.taken = 0
        left = _top_up(groups[i + 1 :], free)
        if sum(group.gain * group.taken for group in groups) > gain:
            space = left
        else:
            for group, count in zip(groups, before, strict=True):
                group.taken = count
    return space


_SWAPS = 16
"""Most swaps; each uses up part of what is left, and few are ever needed."""


def _swap(groups: Sequence[Group], space: int) -> tuple[Group, Group] | None:
    """Return a resident group and a larger one that is away, which use up most of a space.

    By one walk over both in order of size. Only where the larger one saves more.
    """
    away = sorted((group for group in groups if group.left), key=_size)
    here = sorted((group for group in groups if group.taken), key=_size)
    best: tuple[Group, Group] | None = None
    most, at = 0, 0
    for new in away:
        while at < len(here) and here[at].size < new.size - space:
            at += 1
        if at == len(here):
            break
        old = here[at]
        if new.size - old.size > most and new.gain > old.gain:
            best, most = (old, new), new.size - old.size
    return best


def _size(group: Group) -> int:
    return group.size


def split_layers(loads: Sequence[int], budgets: Sequence[int]) -> list[int] | None:
    """Cut a sequence of loads into one contiguous run per device.

    Finds the smallest share f of the budgets that suffices, by bisection over a greedy walk: the
    walk is optimal for a fixed f, since giving a device less never helps the next one.

    Args:
        loads: bytes of each block in order (weights, cache ... whatever moves with it).
        budgets: bytes that each device offers, in order.

    Returns the device's index for each block, or None when f = 1 does not suffice.
    """
    best = in_order(loads, budgets)
    if best is None:
        return None
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        share = (low + high) / 2
        found = in_order(loads, [int(share * budget) for budget in budgets])
        if found is None:
            low = share
        else:
            best, high = found, share
    return best


_STEPS = 24
"""Halvings of the share: to a ten-millionth of the budget, less than any layer."""


def in_order(loads: Sequence[int], budgets: Sequence[int]) -> list[int] | None:
    """Return the device of each block when each is filled to the brim in turn, None = too small."""
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
