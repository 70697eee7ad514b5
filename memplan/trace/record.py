"""What a trace writes down: which storage came and went when, by whom and for what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

__all__ = ["PAGED", "Block", "Phase", "Recording", "Share"]


PAGED = "paged optimizer"
"""Label of what lies in unified memory, outside torch's allocator."""


@dataclass(slots=True)
class Block:
    """One storage, from its first appearance to its end."""

    size: int
    """Bytes that were asked for."""
    born: int
    """Number of the event that made it."""
    phase: str
    """Phase of its birth: "load", "forward 2", "backward 2", "step 2" ..."""
    module: str
    """Path of the module whose forward made it; "" outside of modules."""
    operator: object
    """Operator that made it; its text is such as "aten.mm.default"."""
    label: str = ""
    """"weights", "gradients", "optimizer", "buffers", "inputs"; "" = decided by its life."""
    died: int | None = None
    """Number of the event that ended it; None = alive at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of the trace."""

    name: str
    """"forward 1", "backward 1", "step 1" ..."""
    begin: int
    """First event."""
    end: int
    """One past its last event."""
    peak_bytes: int
    """Most that was alive at once in it."""
    parts: dict[str, int] = field(default_factory=dict)
    """What was alive then, by category."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Some of what was alive at an instant."""

    part: str
    """Category."""
    module: str
    """Path of the module."""
    operator: str
    """Operator."""
    bytes: int
    """Their sum."""
    count: int
    """Storages."""


@dataclass(slots=True)
class Recording:
    """All storages of a run, in order, and the phases."""

    blocks: list[Block] = field(default_factory=list)
    """By birth."""
    events: list[int] = field(default_factory=list)
    """Index of a block for its birth, ~index for its end."""
    marks: list[tuple[str, int]] = field(default_factory=list)
    """(phase, first event)."""

    @property
    def phase(self) -> str:
        """The phase that is open."""
        return self.marks[-1][0] if self.marks else ""

    def begin(self, phase: str) -> None:
        """Open a phase; it ends where the next one begins."""
        self.marks.append((phase, len(self.events)))

    def add(self, size: int, module: str, operator: object) -> int:
        """Write down a new storage and return its number."""
        number = len(self.blocks)
        phase = self.marks[-1][0] if self.marks else ""
        self.blocks.append(Block(size, len(self.events), phase, module, operator))
        self.events.append(number)
        return number

    def end(self, number: int) -> None:
        """Write down that a storage is gone."""
        self.blocks[number].died = len(self.events)
        self.events.append(~number)

    def running(self) -> Iterator[int]:
        """Yield the bytes alive after each event."""
        total = 0
        for event in self.events:
            total += self.blocks[event].size if event >= 0 else -self.blocks[~event].size
            yield total

    def peak(self) -> tuple[int, int]:
        """Return (bytes, event) of the first instant at which most is alive."""
        best, where = 0, 0
        for i, total in enumerate(self.running()):
            if total > best:
                best, where = total, i
        return best, where

    def phases(self) -> tuple[Phase, ...]:
        """Return the phases with their own peaks."""
        totals = list(self.running())
        ends = [mark for _, mark in self.marks[1:]] + [len(totals)]
        result = []
        for (name, begin), end in zip(self.marks, ends, strict=True):
            first = max(begin - 1, 0)
            peak = max(totals[first:end], default=0)
            event = totals.index(peak, first, end) if peak else first
            parts = self.parts(event) if peak else {}
            result.append(Phase(name=name, begin=begin, end=end, peak_bytes=peak, parts=parts))
        return tuple(result)

    def alive(self, event: int) -> Iterator[Block]:
        """Yield the storages that are alive after an event."""
        for block in self.blocks:
            if block.born <= event and (block.died is None or block.died > event):
                yield block

    def part(self, block: Block) -> str:
        """Return a storage's category: its label, or by its life.

        An activation outlives the forward pass that made it; a temporary does not, or was made
        by the backward pass or the optimizer.
        """
        if block.label:
            return block.label
        if not block.phase.startswith(("forward", "prefill", "decode")):
            return "temporaries"
        begins = [mark for _, mark in self.marks if mark > block.born]
        ended = begins[0] if begins else len(self.events)
        return "activations" if block.died is None or block.died >= ended else "temporaries"

    def parts(self, event: int) -> dict[str, int]:
        """Return the bytes alive after an event by category."""
        sizes: dict[str, int] = defaultdict(int)
        for block in self.alive(event):
            sizes[self.part(block)] += block.size
        return dict(sizes)

    def shares(self, event: int) -> list[Share]:
        """Return what is alive after an event by category, module and operator, largest first."""
        sizes: dict[tuple[str, str, object], list[int]] = defaultdict(lambda: [0, 0])
        for block in self.alive(event):
            entry = sizes[self.part(block), block.module, block.operator]
            entry[0] += block.size
            entry[1] += 1
        found = (
            Share(part=part, module=module, operator=str(operator), bytes=size, count=count)
            for (part, module, operator), (size, count) in sizes.items()
        )
        return sorted(found, key=lambda share: -share.bytes)

    def label(self, numbers: Iterable[int], label: str) -> None:
        """Say what some storages are, whatever their life."""
        for number in numbers:
            self.blocks[number].label = label
