"""Several GPUs of one machine: whole layers in order, and what does not fit is streamed.

What accelerate's hooks allow decides the shape. A layer runs on one device, since its residual sums
need one. What lives in host memory runs on the first GPU that holds anything. So all GPUs but that
one hold whole layers, and that one may hold its layers in part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from memplan.placement.engines import EngineProfile
from memplan.placement.solve import Fill, fill_one, split_layers
from memplan.placement.units import Unit

__all__ = ["Block", "Spread", "blocks_of", "spread"]

_ORDERS = 24
"""Orders of GPUs that are tried where they differ in size: 4 of them in every order."""


@dataclass(frozen=True, slots=True)
class Block:
    """What moves together: a layer's units and its cache, or one unit outside the layers."""

    units: tuple[Unit, ...]
    """In the model's order."""
    cache_bytes: int
    """Cache and buffers that are where the block runs."""

    @property
    def weight_bytes(self) -> int:
        """Weights of all units."""
        return sum(unit.weight_bytes for unit in self.units)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Where each block runs, and what of it is away."""

    runs: tuple[int, ...]
    """Block -> index of its GPU."""
    main: int
    """Index of the GPU that runs what is away."""
    fill: Fill
    """Resident units, the reload buffer of the main GPU, and lookups of the host."""


def blocks_of(units: Sequence[Unit], cache: Sequence[int], *, buffers: bool) -> tuple[Block, ...]:
    """Return the blocks of a model in order.

    Args:
        units: the model's pieces in order.
        cache: bytes of each decoder layer's cache.
        buffers: count module buffers where the block runs.
    """
    groups: list[list[Unit]] = []
    for unit in units:
        last = groups[-1][-1].block if groups else None
        if unit.block is not None and unit.block == last:
            groups[-1].append(unit)
        else:
            groups.append([unit])
    return tuple(_block(group, cache, buffers=buffers) for group in groups)


def _block(units: Sequence[Unit], cache: Sequence[int], *, buffers: bool) -> Block:
    layers = {unit.layer for unit in units if unit.layer is not None}
    size = sum(cache[layer] for layer in layers if layer < len(cache))
    held = sum(unit.buffer_bytes for unit in units) if buffers else 0
    return Block(tuple(units), size + held)


def spread(
    blocks: Sequence[Block],
    budgets: Sequence[int],
    *,
    tight: Sequence[int],
    engine: EngineProfile,
    pins: Mapping[int, int | None],
    away: bool,
    lookups: bool,
) -> Spread | None:
    """Return where everything goes; None when it does not fit.

    Args:
        blocks: the model.
        budgets: bytes of each GPU for weights and cache, by best estimates.
        tight: the same by upper ends of the bands, for plans that stream.
        engine: how pieces elsewhere are used.
        pins: unit position -> index of its GPU, or None for what must be away.
        away: there is a slower device that can hold something.
        lookups: there is host memory, and the host may look tokens up.
    """
    if not any(index is None for index in pins.values()):
        if whole := _whole(blocks, budgets, pins, frozenset()):
            return whole
        tables = _tables(blocks, pins) if away and lookups else frozenset()
        if tables and (whole := _whole(blocks, tight, pins, tables)):
            return whole
    if not away:
        return None
    plans = (
        plan
        for main in range(len(tight))
        for tail in (True, False)
        if (plan := _streamed(blocks, tight, main, engine, pins, tail=tail)) is not None
    )
    return max(plans, key=lambda plan: _saved(blocks, plan, engine), default=None)


def _tables(blocks: Sequence[Block], pins: Mapping[int, int | None]) -> frozenset[int]:
    units = (unit for block in blocks for unit in block.units)
    return frozenset(u.position for u in units if u.lookup and u.position not in pins)


def _whole(
    blocks: Sequence[Block],
    budgets: Sequence[int],
    pins: Mapping[int, int | None],
    hosted: frozenset[int],
) -> Spread | None:
    """Return the most even split in which nothing is streamed, in some order of the GPUs."""
    loads = [
        block.cache_bytes + sum(u.weight_bytes for u in block.units if u.position not in hosted)
        for block in blocks
    ]
    pinned = {
        i: index for i, block in enumerate(blocks) if (index := _pin(block, pins)) is not None
    }
    room = list(budgets)
    for i, index in pinned.items():
        room[index] -= loads[i]
    free = [i for i in range(len(blocks)) if i not in pinned]
    for order in _orders(room):
        found = split_layers([loads[i] for i in free], [room[gpu] for gpu in order])
        if found is not None and min(room) >= 0:
            runs = dict(pinned) | {i: order[at] for i, at in zip(free, found, strict=True)}
            stay = (u.position for block in blocks for u in block.units)
            fill = Fill(frozenset(stay) - hosted, 0, hosted)
            ordered = tuple(runs[i] for i in range(len(blocks)))
            return Spread(runs=ordered, main=min(ordered, default=0), fill=fill)
    return None


def _pin(block: Block, pins: Mapping[int, int | None]) -> int | None:
    """Return the GPU that a block must run on, by any of its units."""
    return next((g for u in block.units if (g := pins.get(u.position)) is not None), None)


def _orders(room: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield orders of the GPUs: as they are, and where sizes differ, a few others."""
    natural = tuple(range(len(room)))
    yield natural
    if len(set(room)) > 1:
        for count, order in enumerate(permutations(natural)):
            if count >= _ORDERS:
                return
            yield order


def _streamed(
    blocks: Sequence[Block],
    budgets: Sequence[int],
    main: int,
    engine: EngineProfile,
    pins: Mapping[int, int | None],
    *,
    tail: bool,
) -> Spread | None:
    """Fill the GPUs behind the main one from the last block on, then the main one in pieces.

    Args:
        blocks: the model.
        budgets: bytes of each GPU.
        main: index of the GPU that runs what is away; those before it hold nothing.
        engine: how pieces elsewhere are used.
        pins: unit position -> GPU, or None for away.
        tail: let the last GPU hold what comes behind the layers, too.
    """
    runs = [main] * len(blocks)
    room = list(budgets)
    for i, block in enumerate(blocks):
        index = _pin(block, pins)
        if index is not None and index != main:
            if index < main:
                return None
            runs[i] = index
            room[index] -= block.weight_bytes + block.cache_bytes
    _fill_back(blocks, room, runs, main, pins, tail=tail)
    if any(size < 0 for size in room[main + 1 :]):
        return None
    mine = [block for block, gpu in zip(blocks, runs, strict=True) if gpu == main]
    units = [unit for block in mine for unit in block.units]
    held = sum(block.cache_bytes for block in mine)
    wishes = {p: gpu is not None for p, gpu in pins.items()}
    own = {u.position: wishes[u.position] for u in units if u.position in wishes}
    fill = fill_one(units, room[main] - held, engine=engine, pins=own)
    if fill is None or (not fill.resident and len(budgets) > main + 1):
        return None  # hooks would make another GPU the main one
    behind = (b for b, gpu in zip(blocks, runs, strict=True) if gpu != main)
    resident = fill.resident | {u.position for b in behind for u in b.units}
    return Spread(runs=tuple(runs), main=main, fill=Fill(resident, fill.reload_bytes))


def _fill_back(
    blocks: Sequence[Block],
    room: list[int],
    runs: list[int],
    main: int,
    pins: Mapping[int, int | None],
    *,
    tail: bool,
) -> None:
    """Give whole blocks to the GPUs behind the main one, last block to last GPU."""
    gpu = len(room) - 1
    layered = [i for i, block in enumerate(blocks) if block.units[0].block is not None]
    last = len(blocks) - 1 if tail or not layered else layered[-1]
    for i in range(last, -1, -1):
        if any(unit.position in pins for unit in blocks[i].units):
            continue
        load = blocks[i].weight_bytes + blocks[i].cache_bytes
        while gpu > main and load > room[gpu]:
            gpu -= 1
        if gpu <= main:
            return
        runs[i] = gpu
        room[gpu] -= load


def _saved(blocks: Sequence[Block], plan: Spread, engine: EngineProfile) -> int:
    stay = plan.fill.resident
    units = (unit for block in blocks for unit in block.units)
    return sum(engine.decode_bytes(unit) for unit in units if unit.position in stay)
