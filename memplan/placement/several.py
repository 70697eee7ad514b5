"""Several GPUs of one machine: whole layers in order, and what does not fit is streamed.

What accelerate's hooks allow decides the shape. A layer runs on one device, since its residual sums
need one. What lives in host memory runs on the first GPU that holds anything. So all GPUs but that
one hold whole layers, and that one may hold its layers in part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product

from memplan.placement.engines import EngineProfile
from memplan.placement.solve import Fill, fill_one, in_order, split_layers
from memplan.placement.units import Unit
from memplan.units import MIB

__all__ = ["Block", "Spread", "blocks_of", "missing_bytes", "spread"]

_ORDERS = 24
"""Orders of GPUs that are tried where they differ in size: 4 of them in every order."""


@dataclass(frozen=True, slots=True)
class Block:
    """What moves together: a layer's units and its cache, or one unit outside the layers."""

    units: tuple[Unit, ...]
    """In the model's order."""
    cache_bytes: int
    """Cache and buffers that are where the block runs."""
    weight_bytes: int = 0
    """Weights of all units: worked out once."""

    def __post_init__(self) -> None:
        """Add the weights up."""
        object.__setattr__(self, "weight_bytes", sum(unit.weight_bytes for unit in self.units))


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
        if tables and (whole := _whole(blocks, budgets, pins, tables)):
            return whole
    if not away:
        return None
    return _best_streamed(blocks, tight, engine, pins)


def _best_streamed(
    blocks: Sequence[Block],
    budgets: Sequence[int],
    engine: EngineProfile,
    pins: Mapping[int, int | None],
) -> Spread | None:
    """Return the plan that saves most reading, over the GPU that streams and where the ends go."""
    best: Spread | None = None
    most = -1
    for main in range(len(budgets)):
        if most >= sum(max(size, 0) for size in budgets[main:]):
            break
        for runs in _layouts(blocks, budgets, main, pins):
            plan = _streamed(blocks, budgets, runs, main=main, engine=engine, pins=pins)
            if plan is not None and (saved := _saved(blocks, plan, engine)) > most:
                best, most = plan, saved
    return best


def missing_bytes(blocks: Sequence[Block], budgets: Sequence[int]) -> int:
    """Return what the first GPU lacks so that all blocks live whole on the GPUs, in their order.

    0 when they do already.
    """
    loads = [block.weight_bytes + block.cache_bytes for block in blocks]
    low, high = -1, sum(loads) + max(0, -budgets[0])
    while high - low > MIB:
        middle = (low + high) // 2
        more = [budgets[0] + middle, *budgets[1:]]
        low, high = (low, middle) if in_order(loads, more) else (middle, high)
    return high if high > MIB or not in_order(loads, budgets) else 0


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


_LAYOUTS = 3
"""Layouts whose main GPU is filled in pieces: those whose other GPUs leave least unused."""

_ENDS = 2
"""Pieces outside the layers that are tried on every GPU: embedding and output matrix."""


def _layouts(
    blocks: Sequence[Block], budgets: Sequence[int], main: int, pins: Mapping[int, int | None]
) -> list[list[int]]:
    """Return where blocks run, best first: layers fill the GPUs behind the main one from the end.

    Embedding and output matrix may be on any GPU: each place is tried, as they are large.
    """
    free = [i for i, block in enumerate(blocks) if not _pinned(block, pins)]
    outside = [i for i in free if blocks[i].units[0].block is None]
    ends = sorted(outside, key=lambda i: -blocks[i].weight_bytes)[:_ENDS]
    found = []
    for places in product(_places(main, len(budgets)), repeat=len(ends)):
        fixed = dict(zip(ends, places, strict=True))
        runs, room = _fill_back(blocks, budgets, main, pins, fixed)
        if min(room[main + 1 :], default=0) >= 0:
            movable = [i for i in free if i not in fixed]
            _exchange(blocks, runs, room, main, movable)
            found.append((sum(room[main + 1 :]), runs))
    found.sort(key=lambda pair: pair[0])
    return [runs for _, runs in found[:_LAYOUTS]]


_WORTH_BYTES = 4 * MIB
"""What an exchange must bring: a change of device more costs about 50 us, or 1 MiB of copies."""


def _exchange(
    blocks: Sequence[Block], runs: list[int], room: list[int], main: int, movable: Sequence[int]
) -> None:
    """Exchange layers of the main GPU for smaller ones of the others, where room is left there.

    Layers are not alike: those that slide have less cache, the first of a mixture of experts less
    weight. What the main one is rid of is streamed less.
    """
    loads = {i: blocks[i].weight_bytes + blocks[i].cache_bytes for i in movable}
    if len(set(loads.values())) < 2 or len(set(loads.values())) > _KINDS:
        return
    for gpu in range(main + 1, len(room)):
        while True:
            mine = {loads[i]: i for i in movable if runs[i] == main}
            theirs = {loads[i]: i for i in reversed(movable) if runs[i] == gpu}
            gain, i, j = max(
                (
                    (a - b, i, j)
                    for a, i in mine.items()
                    for b, j in theirs.items()
                    if _WORTH_BYTES <= a - b <= room[gpu]
                ),
                default=(0, 0, 0),
            )
            if not gain:
                break
            runs[i], runs[j] = gpu, main
            room[gpu] -= gain


_KINDS = 32
"""Kinds of layers up to which exchanges are looked for."""

_FEW = 4


def _places(main: int, count: int) -> tuple[int, ...]:
    """Return the GPUs tried for the ends: all of a few, else the first two and the last."""
    every = range(main, count)
    return tuple(every) if len(every) <= _FEW else (main, main + 1, count - 1)


def _pinned(block: Block, pins: Mapping[int, int | None]) -> bool:
    return any(unit.position in pins for unit in block.units)


def _fill_back(
    blocks: Sequence[Block],
    budgets: Sequence[int],
    main: int,
    pins: Mapping[int, int | None],
    fixed: Mapping[int, int],
) -> tuple[list[int], list[int]]:
    """Give whole blocks to the GPUs behind the main one, the last block to the last GPU.

    Returns the GPU of each block, and what is left of each GPU (below zero: it does not fit).
    """
    runs, room = [main] * len(blocks), list(budgets)
    queue = []
    for i, block in enumerate(blocks):
        gpu = fixed[i] if i in fixed else _pin(block, pins) if pins else None
        if gpu is not None:
            runs[i] = gpu
            room[gpu] -= block.weight_bytes + block.cache_bytes if gpu != main else 0
        elif not pins or not _pinned(block, pins):
            queue.append(i)
    gpu = len(room) - 1
    for i in reversed(queue):
        load = blocks[i].weight_bytes + blocks[i].cache_bytes
        while gpu > main and load > room[gpu]:
            gpu -= 1
        if gpu <= main:
            break
        runs[i] = gpu
        room[gpu] -= load
    return runs, room


def _streamed(
    blocks: Sequence[Block],
    budgets: Sequence[int],
    runs: Sequence[int],
    *,
    main: int,
    engine: EngineProfile,
    pins: Mapping[int, int | None],
) -> Spread | None:
    """Fill the main GPU in pieces; None where it would hold nothing and lose its part."""
    mine = [block for block, gpu in zip(blocks, runs, strict=True) if gpu == main]
    units = [unit for block in mine for unit in block.units]
    held = sum(block.cache_bytes for block in mine)
    own = {u.position: pins[u.position] is not None for u in units if u.position in pins}
    fill = fill_one(units, budgets[main] - held, engine=engine, pins=own)
    if fill is None or not fill.resident or min(runs) < main:
        return None  # hooks would make another GPU the main one
    behind = (b for b, gpu in zip(blocks, runs, strict=True) if gpu != main)
    resident = fill.resident | {u.position for b in behind for u in b.units}
    return Spread(runs=tuple(runs), main=main, fill=Fill(resident, fill.reload_bytes))


def _saved(blocks: Sequence[Block], plan: Spread, engine: EngineProfile) -> int:
    stay = plan.fill.resident
    units = (unit for block in blocks for unit in block.units)
    return sum(engine.decode_bytes(unit) for unit in units if unit.position in stay)
