"""Which layers of a model go to which GPU of llama.cpp: pure arithmetic over sizes.

llama.cpp gives its GPUs the last layers, each a row of neighbours, the output at the end. What is
chosen is where each row begins (--n-gpu-layers, --tensor-split) and which matrices of layers on a
GPU stay in host memory all the same (--override-tensor). A dense model gets whole layers, and of
the layer before them what still fits; a mixture of experts first all that every token reads, then
experts from the last layer to the first, at last single matrices.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal, Protocol

from memplan.placement.llamacpp_parts import Block, Parts

__all__ = ["Charge", "Hosted", "Layout", "solve"]


Hosted = Literal["nothing", "matrices", "layers"]
"""What the host may compute: nothing, matrices of layers whose attention is on a GPU, or whole
layers too."""


class Charge(Protocol):
    """What a GPU's buffers take beside weights and caches."""

    def __call__(self, gpu: int, start: int, stop: int, *, hosted: Hosted) -> int:
        """Return the bytes for blocks start to stop - 1, and what the host computes."""


_Score = tuple[int, int, float]
"""Bytes that every token reads, bytes read of experts, minus the fullest device's share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where llama.cpp puts the blocks of a model."""

    starts: tuple[int, ...]
    """First block of each GPU; the last GPU's row ends with the output."""
    left: tuple[tuple[int, int], ...] = ()
    """(block, its group) of what stays in host memory although its layer is on a GPU."""
    stops: tuple[int, ...]
    """The block after each GPU's last."""

    @property
    def hosted(self) -> Hosted:
        """What the host computes."""
        return "layers" if self.starts[0] else "matrices" if self.left else "nothing"

    def gpu_of(self, block: int) -> int | None:
        """Return the GPU that has a block; None = the host."""
        rows = enumerate(zip(self.starts, self.stops, strict=True))
        return next((gpu for gpu, (start, stop) in rows if start <= block < stop), None)


def solve(parts: Parts, budgets: Sequence[int], charge: Charge) -> Layout:
    """Return the layout with the most bytes on GPUs, those first that every token reads.

    Where everything fits, the fullest GPU is as empty as can be. All rows of neighbours are
    tried, so it is the best for whole layers.

    Args:
        parts: the model.
        budgets: bytes of each GPU for weights, caches and buffers; may be negative.
        charge: the buffers; must not fall when a row grows.
    """
    found = _rows(parts, budgets, charge, "nothing")
    if found is None and parts.routed:
        found = _rows(parts, budgets, charge, "matrices")
    if found is not None:
        return found
    found = _rows(parts, budgets, charge, "layers")
    if found is None:
        end = len(parts.blocks)
        return Layout(starts=(end,) * len(budgets), stops=(end,) * len(budgets))
    return found if parts.routed else _with_a_part(parts, budgets, charge, found)


def _rows(parts: Parts, budgets: Sequence[int], charge: Charge, hosted: Hosted) -> Layout | None:
    """Return the best rows, None when the host would have to compute more than `hosted`."""
    search = _Search(parts, budgets, charge, hosted)
    starts = search.best()
    if starts is None:
        return None
    stops = (*starts[1:], len(parts.blocks))
    left: list[tuple[int, int]] = []
    for gpu, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        left += search.left(gpu, start, stop)
    return Layout(starts=tuple(starts), stops=stops, left=tuple(left))


class _Search:
    """Dynamic programming over (GPU, block after its last)."""

    def __init__(
        self, parts: Parts, budgets: Sequence[int], charge: Charge, hosted: Hosted
    ) -> None:
        self._parts, self._budgets, self._charge, self._hosted = parts, budgets, charge, hosted
        blocks = parts.blocks
        fixed = [self._kept(block) + block.cache_bytes for block in blocks]
        self._fixed = [0, *accumulate(fixed)]
        self._read = [0, *accumulate(self._kept(block) for block in blocks)]
        self._moved = [0, *accumulate(block.moved_bytes for block in blocks)]
        active = (sum(g.active_bytes for g in block.moved) for block in blocks)
        self._active = [0, *accumulate(active)]

    def _kept(self, block: Block) -> int:
        return block.kept.bytes if self._parts.routed else block.bytes

    def best(self) -> list[int] | None:
        """Return where each GPU's row starts, or None when nothing fits."""
        end = len(self._parts.blocks)
        first = range(end + 1) if self._hosted == "layers" else range(1)
        reached: dict[int, tuple[_Score, list[int]]] = {s: ((0, 0, 0.0), []) for s in first}
        for gpu in range(len(self._budgets)):
            reached = self._next(gpu, reached)
        return reached[end][1] if end in reached and reached[end][0][:2] != (0, 0) else None

    def _next(
        self, gpu: int, reached: dict[int, tuple[_Score, list[int]]]
    ) -> dict[int, tuple[_Score, list[int]]]:
        end = len(self._parts.blocks)
        result: dict[int, tuple[_Score, list[int]]] = {}
        last = gpu == len(self._budgets) - 1
        for start, (score, starts) in reached.items():
            for stop in range(start, end + 1):
                if last and stop < end and stop > start:
                    continue
                own = self._score(gpu, start, stop)
                if own is None:
                    if last:
                        continue
                    break
                total = (score[0] + own[0], score[1] + own[1], min(score[2], own[2]))
                if stop not in result or total > result[stop][0]:
                    result[stop] = (total, [*starts, start])
        return result

    def _score(self, gpu: int, start: int, stop: int) -> _Score | None:
        room = self._room(gpu, start, stop)
        if room < 0:
            return None
        read = self._read[stop] - self._read[start]
        share = 1.0 - room / max(self._budgets[gpu], 1)
        if not self._parts.routed:
            return read, 0, -share if stop > start else 0.0
        from_here = self._full_from(start, stop, room)
        if from_here > start and self._hosted == "nothing":
            return None
        active = self._active[stop] - self._active[from_here]
        filled = self._moved[stop] - self._moved[from_here]
        share += filled / max(self._budgets[gpu], 1)
        return read, active, -share if stop > start else 0.0

    def _room(self, gpu: int, start: int, stop: int) -> int:
        if start == stop:
            return max(self._budgets[gpu], 0)
        taken = self._fixed[stop] - self._fixed[start]
        return self._budgets[gpu] - taken - self._charge(gpu, start, stop, hosted=self._hosted)

    def _full_from(self, start: int, stop: int, room: int) -> int:
        """Return the first block of a row from which on all experts fit."""
        least = self._moved[stop] - room
        if least <= self._moved[start]:
            return start
        return min(bisect_right(self._moved, least - 1, start, stop + 1), stop)

    def left(self, gpu: int, start: int, stop: int) -> list[tuple[int, int]]:
        """Return (block, group) of the experts of a row that stay in host memory."""
        if not self._parts.routed:
            return []
        room = self._room(gpu, start, stop)
        full = self._full_from(start, stop, room)
        room -= self._moved[stop] - self._moved[full]
        result: list[tuple[int, int]] = []
        for block in reversed(range(start, full)):
            stays, room = _overflow([g.bytes for g in self._parts.blocks[block].moved], room)
            result += [(block, group) for group in stays]
        return sorted(result)


def _overflow(sizes: Sequence[int], room: int) -> tuple[list[int], int]:
    """Return which of some groups do not fit, largest placed first, and the room that is left."""
    stays = []
    for group in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        if sizes[group] <= room:
            room -= sizes[group]
        else:
            stays.append(group)
    return stays, room


def _with_a_part(parts: Parts, budgets: Sequence[int], charge: Charge, found: Layout) -> Layout:
    """Return the layout with what still fits of the layer before the first on a GPU.

    Its attention and cache go along, its feed-forward matrices as far as there is room.
    """
    gpu = next((i for i, start in enumerate(found.starts) if start < found.stops[i]), None)
    if gpu is None or found.starts[gpu] == 0:
        return found
    start, stop = found.starts[gpu] - 1, found.stops[gpu]
    block = parts.blocks[start]
    taken = sum(b.bytes + b.cache_bytes for b in parts.blocks[start + 1 : stop])
    room = budgets[gpu] - charge(gpu, start, stop, hosted="layers") - taken
    room -= block.kept.bytes + block.cache_bytes
    if room < 0 or not block.moved:
        return found
    stays, _ = _overflow([group.bytes for group in block.moved], room)
    left = tuple((start, group) for group in sorted(stays))
    starts = tuple(min(s, start) if i <= gpu else s for i, s in enumerate(found.starts))
    stops = tuple(start if i < gpu else s for i, s in enumerate(found.stops))
    return replace(found, starts=starts, stops=stops, left=left)
