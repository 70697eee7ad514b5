"""The CUDA caching allocator of torch, on paper: what it takes from the driver for a recording.

Rules of torch 2.13 (c10/cuda/CUDACachingAllocator.cpp, c10/core/AllocatorConfig.h): requests are
rounded to 512 B and served from the smallest cached block that is large enough; what is left over
is split off, and goes back together with its neighbours when both are free. Segments are given
back to the driver only on demand.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection
from dataclasses import dataclass, field

from memplan.trace.record import PAGED, Recording
from memplan.trace.settings import AllocatorSettings
from memplan.units import MIB

__all__ = ["Entry", "Oom", "Replay", "replay"]

_ROUND = 512
_SMALL = MIB
"""Largest request of the pool of small blocks."""
_SMALL_SEGMENT = 2 * MIB
_OWN_SEGMENT = 10 * MIB
"""From here on a request gets a segment of its own size, up to the next 2 MiB."""
_LARGE_REST = MIB
"""What must be left over in the pool of large blocks for a block to be split."""
_GAP = 1 << 40
"""Distance of the pools' addresses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing that the allocator did."""

    action: str
    """"alloc", "free", "segment_alloc", "segment_free" or "oom"."""
    address: int
    """Where."""
    size: int
    """Bytes: as rounded, or a segment's."""
    event: int
    """Number of the recording's event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Oom:
    """A request that nothing could serve."""

    event: int
    """Number of the recording's event."""
    bytes: int
    """What was asked for."""
    reserved_bytes: int
    """What was taken from the driver then."""
    phase: str
    """Phase of the recording."""
    module: str
    """Module that asked."""
    operator: str
    """Operator that asked."""


@dataclass(slots=True, kw_only=True)
class Replay:
    """What a recording costs. All sizes are bytes."""

    allocated_bytes: int = 0
    """Peak of torch.cuda.memory_allocated: live blocks as rounded."""
    reserved_bytes: int = 0
    """Peak of torch.cuda.memory_reserved: segments."""
    reserved_event: int = 0
    """Event at which most was reserved first."""
    allocated_then: int = 0
    """Live blocks at that event."""
    reserved_at_end: int = 0
    """Segments after the last event."""
    segments: int = 0
    """Calls of cudaMalloc (expandable: of cuMemMap)."""
    retries: int = 0
    """Times that cached segments had to be given back."""
    oom: Oom | None = None
    """The first request that failed; the replay ends there."""
    log: list[Entry] = field(default_factory=list)
    """Everything that was done, where it was asked for."""

    @property
    def fragmentation(self) -> float:
        """Share of the reserved peak that held nothing."""
        return 1 - self.allocated_then / self.reserved_bytes if self.reserved_bytes else 0.0


def replay(
    recording: Recording,
    settings: AllocatorSettings | None = None,
    *,
    emptied: Collection[int] = (),
    log: bool = False,
) -> Replay:
    """Run a recording through the allocator.

    Args:
        recording: births and ends of storages.
        settings: of PYTORCH_CUDA_ALLOC_CONF; None = torch's defaults, and no end of memory.
        emptied: numbers of events before which torch.cuda.empty_cache is called.
        log: keep everything that is done.
    """
    machine = _Machine(settings or AllocatorSettings(), keep=log)
    live: dict[int, _Block] = {}
    for number, event in enumerate(recording.events):
        machine.event = number
        if number in emptied:
            machine.release()
        if recording.blocks[event if event >= 0 else ~event].label == PAGED:
            continue
        if event < 0:
            machine.free(live.pop(~event))
            continue
        block = machine.allocate(recording.blocks[event].size)
        if block is None:
            wanted = recording.blocks[event]
            machine.result.oom = Oom(
                event=number,
                bytes=wanted.size,
                reserved_bytes=machine.reserved,
                phase=wanted.phase,
                module=wanted.module,
                operator=str(wanted.operator),
            )
            break
        live[event] = block
    machine.result.reserved_at_end = machine.reserved
    return machine.result


@dataclass(slots=True, eq=False)
class _Block:
    """A stretch of a segment."""

    address: int
    size: int
    small: bool
    free: bool = False
    before: _Block | None = None
    after: _Block | None = None


class _Machine:
    """The allocator's state."""

    def __init__(self, settings: AllocatorSettings, *, keep: bool) -> None:
        self.settings = settings
        self.result = Replay()
        self.event = 0
        self.reserved = 0
        self.allocated = 0
        self._keep = keep
        self._free: dict[bool, list[tuple[int, int, _Block]]] = {True: [], False: []}
        self._next = {True: _GAP, False: 2 * _GAP}
        self._last: dict[bool, _Block | None] = {True: None, False: None}

    def allocate(self, wanted: int) -> _Block | None:
        """Return a block, or None when there is no memory for it."""
        size = self.settings.rounded(max(-(-wanted // _ROUND) * _ROUND, _ROUND))
        small = size <= _SMALL
        block = self._cached(size, small=small) or self._fresh(size, small=small)
        if block is None:
            self._note("oom", 0, size)
            return None
        if self._splits(block.size, size, small=small):
            self._split(block, size)
        block.free = False
        self.allocated += block.size
        self.result.allocated_bytes = max(self.result.allocated_bytes, self.allocated)
        if self.reserved > self.result.reserved_bytes:
            self.result.reserved_bytes = self.reserved
            self.result.reserved_event = self.event
            self.result.allocated_then = self.allocated
        self._note("alloc", block.address, block.size)
        return block

    def free(self, block: _Block) -> None:
        """Take a block back and join it with free neighbours."""
        self._note("free", block.address, block.size)
        self.allocated -= block.size
        block.free = True
        for other in (block.before, block.after):
            if other is not None and other.free:
                self._forget(other)
                first, second = (other, block) if other is block.before else (block, other)
                first.size += second.size
                first.after = second.after
                if second.after is not None:
                    second.after.before = first
                if self._last[block.small] is second:
                    self._last[block.small] = first
                block = first
                block.free = True
        insort(self._free[block.small], (block.size, block.address, block))

    def release(self, *, least: int = 0) -> int:
        """Give free segments of at least some bytes back, and return how much that was."""
        given = 0
        for small in (True, False):
            for size, address, block in list(self._free[small]):
                whole = block.before is None and block.after is None
                if size < least or not (whole or self.settings.expandable_segments):
                    continue
                given += self._unmap(block) if not whole else self._drop(block)
                del address
        return given

    def _drop(self, block: _Block) -> int:
        self._forget(block)
        if self._last[block.small] is block:
            self._last[block.small] = None
        self.reserved -= block.size
        self._note("segment_free", block.address, block.size)
        return block.size

    def _unmap(self, block: _Block) -> int:
        """Give back the whole pages of a free stretch at an expandable segment's end."""
        page = self._page(small=block.small)
        if block.after is not None or block.size < page:
            return 0
        given = block.size // page * page
        self._forget(block)
        block.size -= given
        if block.size:
            insort(self._free[block.small], (block.size, block.address, block))
        else:
            assert block.before is not None
            block.before.after = None
            self._last[block.small] = block.before
        self._next[block.small] -= given
        self.reserved -= given
        self._note("segment_free", block.address + block.size, given)
        return given

    def _cached(self, size: int, *, small: bool) -> _Block | None:
        blocks = self._free[small]
        place = bisect_left(blocks, (size, 0))
        if place == len(blocks):
            return None
        block = blocks[place][2]
        limit = self.settings.max_split_size_bytes
        if limit is not None and not small:
            if size < limit <= block.size:
                return None  # kept whole for large requests
            if size >= limit and block.size >= size + self.settings.large_segment_bytes:
                return None
        del blocks[place]
        return block

    def _fresh(self, size: int, *, small: bool) -> _Block | None:
        if self.settings.expandable_segments:
            return self._grown(size, small=small)
        amount = self._segment(size, small=small)
        if not self._room(amount):
            return None
        address = self._next[small]
        self._next[small] += amount
        self._took(address, amount)
        return _Block(address, amount, small)

    def _grown(self, size: int, *, small: bool) -> _Block | None:
        """Map more pages at the end of the pool's one segment."""
        page = self._page(small=small)
        last = self._last[small]
        tail = last if last is not None and last.free else None
        missing = size - (tail.size if tail else 0)
        amount = -(-missing // page) * page
        if not self._room(amount):
            return None
        tail = self._last[small]
        tail = tail if tail is not None and tail.free else None
        address = self._next[small]
        self._next[small] += amount
        self._took(address, amount)
        if tail is not None:
            self._forget(tail)
            tail.size += amount
            return tail
        block = _Block(address, amount, small, before=self._last[small])
        if block.before is not None:
            block.before.after = block
        self._last[small] = block
        return block

    def _page(self, *, small: bool) -> int:
        return _SMALL_SEGMENT if small else self.settings.large_segment_bytes

    def _segment(self, size: int, *, small: bool) -> int:
        if small:
            return _SMALL_SEGMENT
        if size < _OWN_SEGMENT:
            return self.settings.large_segment_bytes
        return -(-size // _SMALL_SEGMENT) * _SMALL_SEGMENT

    def _room(self, amount: int) -> bool:
        """Say whether the driver has as much, after cached segments were given back if need be."""
        capacity = self.settings.capacity_bytes
        if capacity is None:
            return True
        share = self.settings.garbage_collection_threshold
        if share and self.reserved + amount > share * capacity:
            self.release()
        if self.reserved + amount <= capacity:
            return True
        limit = self.settings.max_split_size_bytes
        if limit is not None and self.release(least=limit):
            self.result.retries += 1
            if self.reserved + amount <= capacity:
                return True
        if self.release():
            self.result.retries += 1
        return self.reserved + amount <= capacity

    def _took(self, address: int, amount: int) -> None:
        self.reserved += amount
        self.result.segments += 1
        self._note("segment_alloc", address, amount)

    def _splits(self, have: int, size: int, *, small: bool) -> bool:
        rest = have - size
        if small or self.settings.expandable_segments:
            return rest >= _ROUND
        limit = self.settings.max_split_size_bytes
        return rest > _LARGE_REST and (limit is None or size < limit)

    def _split(self, block: _Block, size: int) -> None:
        address, size_left = block.address + size, block.size - size
        rest = _Block(address, size_left, block.small, before=block, after=block.after)
        rest.free = True
        if block.after is not None:
            block.after.before = rest
        block.after, block.size = rest, size
        if self._last[block.small] is block:
            self._last[block.small] = rest
        insort(self._free[block.small], (rest.size, rest.address, rest))

    def _forget(self, block: _Block) -> None:
        blocks = self._free[block.small]
        del blocks[bisect_left(blocks, (block.size, block.address))]

    def _note(self, action: str, address: int, size: int) -> None:
        if self._keep:
            entry = Entry(action=action, address=address, size=size, event=self.event)
            self.result.log.append(entry)
