"""Placement for llama.cpp: layers on GPUs with their caches, the rest computed by the host."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from memplan.errors import UsageError
from memplan.footprint.lines import exact_line
from memplan.footprint.tower import with_images
from memplan.placement.llamacpp_parts import Block, Group, parts_of
from memplan.placement.llamacpp_solve import Hosted, Layout, solve
from memplan.placement.loads import Assignment
from memplan.placement.units import Unit
from memplan.runtimes.llamacpp import overhead_line
from memplan.runtimes.llamacpp_buffers import Share, buffer_line, host_buffer_line
from memplan.types import Device, Footprint, FrozenMap, Layer, Line, ModelSpec, Workload
from memplan.units import format_bytes

__all__ = ["assign_llamacpp"]

_LAYER = re.compile(r"^(.*?\b(?:layers|h|blocks|block|blk)\.\d+)\.")


def assign_llamacpp(
    spec: ModelSpec,
    workload: Workload,
    footprint: Footprint,
    units: Sequence[Unit],
    devices: Sequence[Device],
    *,
    beside: Sequence[Line] = (),
) -> Assignment:
    """Decide which layers, caches and experts llama.cpp keeps on its GPUs.

    What fits by best estimates stays on the GPUs whole; where something must stay behind, the
    upper ends of all bands count. The first GPU then also has a buffer into which llama.cpp copies
    one weight after another for prompts (--op-offload). Of a mixture of experts that is large; it
    goes without where the buffer would cost the place of what every token reads.

    Args:
        spec: the model.
        workload: complete, a task "infer".
        footprint: its needs on one device; the GPUs' fixed overhead is taken from it.
        units: its pieces.
        devices: at least one GPU, then host memory, if it is another memory; disks hold nothing.
        beside: lines that stay whole on the first GPU, such as a draft model's.

    Raises UsageError for pins, which llama.cpp's rows of layers have no place for.
    """
    if workload.pin:
        raise UsageError(
            "llama.cpp places whole rows of layers, so memplan takes no --pin for it",
            hint="leave --pin out, or add an --override-tensor to the emitted arguments",
        )
    spec = with_images(spec, workload)
    placer = _Placer(
        spec,
        workload,
        units=units,
        devices=devices,
        overhead=tuple(line for line in footprint.lines if line.part == "overhead"),
        beside=tuple(beside),
    )
    layout = placer.layout(high=False)
    if layout.hosted == "nothing":
        return placer.assignment(layout)
    layout = placer.layout(high=True)
    if layout.starts[0] == 0:
        return placer.assignment(layout)
    placer.copies = False
    alone = placer.layout(high=True)
    placer.copies = not placer.better(alone, layout)
    return placer.assignment(layout if placer.copies else alone)


@dataclass(frozen=True, slots=True)
class _Place:
    """One group of tensors and where it lies."""

    group: Group
    device: str
    looked_up: bool = False


class _Placer:
    def __init__(
        self,
        spec: ModelSpec,
        workload: Workload,
        *,
        units: Sequence[Unit],
        devices: Sequence[Device],
        overhead: tuple[Line, ...],
        beside: tuple[Line, ...],
    ) -> None:
        self._spec, self._workload, self._beside = spec, workload, beside
        self._gpus = [device for device in devices if device.kind == "gpu"]
        host = next((device for device in devices if device.kind == "cpu"), None)
        self._shared = host is None
        self._host = self._gpus[0].name if host is None else host.name
        self._parts = parts_of(spec, workload, units)
        self._overhead = overhead
        self._kinds = _Kinds(self._parts.blocks)
        self.copies = True

    def better(self, alone: Layout, copied: Layout) -> bool:
        """Tell whether a layout without --op-offload is worth the slower prompts.

        For a mixture of experts it is where more layers have their dense part on a GPU, for a
        dense model where an eighth of its layers has.
        """
        gained = copied.starts[0] - alone.starts[0]
        return gained > 0 if self._parts.routed else 8 * gained > len(self._parts.blocks)

    def layout(self, *, high: bool) -> Layout:
        """Return the best layout by best estimates, or by the upper ends of all bands."""
        largest = max(_copied(self._parts.blocks), default=0)

        @cache
        def charged(row: _Row, *, first: bool, hosted: Hosted) -> int:
            line = self._buffers(row, largest, first=first, hosted=hosted)
            return line.high_bytes if high else line.bytes

        def charge(gpu: int, start: int, stop: int, *, hosted: Hosted) -> int:
            return charged(self._kinds.between(start, stop), first=gpu == 0, hosted=hosted)

        budgets = [self._budget(gpu, high=high) for gpu in range(len(self._gpus))]
        return solve(self._parts, budgets, charge)

    def _budget(self, gpu: int, *, high: bool) -> int:
        lines = [*self._overhead, *(self._beside if gpu == 0 else ())]
        if gpu == 0 and self._shared:
            lookup = exact_line("weights", self._parts.lookup.bytes, "embedding")
            lines += [lookup, host_buffer_line(self._spec, self._workload, ())]
        device = self._gpus[gpu]
        taken = sum(line.high_bytes if high else line.bytes for line in lines)
        return device.capacity_bytes - device.reserve_bytes - taken

    def _buffers(self, row: _Row, largest: int, *, first: bool, hosted: Hosted) -> Line:
        """Return a GPU's buffer; the first one takes over the host's work for prompts."""
        copies = self.copies and first and hosted != "nothing"
        several = len(self._gpus) > 1
        caches = (block.cache_bytes for block in self._parts.blocks)
        share = Share(
            layers=self._kinds.shapes if copies and hosted == "layers" else row.layers,
            output=row.output,
            copied_bytes=largest if copies else 0,
            cache_bytes=max(caches, default=0) if copies and hosted == "layers" else 0,
            gaps=several or any(layer.states for layer in self._spec.layers),
            hosted=hosted != "nothing",
            pipelined=several and hosted == "nothing",
        )
        return buffer_line(self._spec, self._workload, share)

    def assignment(self, layout: Layout) -> Assignment:
        """Return what a layout means for each device."""
        places = list(self._places(layout))
        lines = {gpu.name: self._gpu_lines(i, layout, places) for i, gpu in enumerate(self._gpus)}
        hosted = self._host_lines(layout, places)
        lines[self._host] = (*lines.get(self._host, ()), *hosted)
        computed = sum(p.group.bytes for p in places if p.device == self._host and not p.looked_up)
        away = 0 if self._shared else computed
        return Assignment(
            where={},
            modules=_modules(places),
            lines=lines,
            offloaded={self._host: away} if away else {},
            reads=_reads(places),
            settings=FrozenMap({} if self.copies else {"op_offload": 0}),
            policy=self._policy(layout, away),
        )

    def _places(self, layout: Layout) -> Iterator[_Place]:
        yield _Place(self._parts.lookup, self._host, looked_up=True)
        left = set(layout.left)
        for index, block in enumerate(self._parts.blocks):
            home = self._home(layout, index)
            yield _Place(block.kept, home)
            for number, group in enumerate(block.moved):
                yield _Place(group, self._host if (index, number) in left else home)

    def _home(self, layout: Layout, block: int) -> str:
        gpu = layout.gpu_of(block)
        return self._host if gpu is None else self._gpus[gpu].name

    def _gpu_lines(self, gpu: int, layout: Layout, places: Sequence[_Place]) -> tuple[Line, ...]:
        name = self._gpus[gpu].name
        row = range(layout.starts[gpu], layout.stops[gpu])
        kinds = self._kinds.between(row.start, row.stop)
        largest = max(_copied(self._parts.blocks, layout), default=0)
        buffers = self._buffers(kinds, largest, first=gpu == 0, hosted=layout.hosted)
        own = [p.group.bytes for p in places if p.device == name and not p.looked_up]
        lines = [
            exact_line("weights", sum(own), f"{self._spec.origin or self._spec.source}"),
            *self._cache_lines([self._parts.blocks[i] for i in row]),
            *([buffers] if row or not gpu else []),
            *self._overhead,
            *(self._beside if gpu == 0 else ()),
        ]
        return tuple(line for line in lines if line.high_bytes)

    def _host_lines(self, layout: Layout, places: Sequence[_Place]) -> tuple[Line, ...]:
        size = sum(
            p.group.bytes for p in places if p.device == self._host and p.looked_up >= self._shared
        )
        blocks = [b for i, b in enumerate(self._parts.blocks) if layout.gpu_of(i) is None]
        layers = tuple(dict.fromkeys(b.layer for b in blocks if b.layer is not None))
        fixed = () if self._shared else (overhead_line("cpu"),)
        lines = [
            exact_line("weights", size, "embedding, and what the host computes"),
            *self._cache_lines(blocks),
            host_buffer_line(self._spec, self._workload, layers),
            *fixed,
        ]
        return tuple(line for line in lines if line.high_bytes)

    def _cache_lines(self, blocks: Sequence[Block]) -> Iterator[Line]:
        kv, state = sum(b.kv_bytes for b in blocks), sum(b.state_bytes for b in blocks)
        if kv:
            yield exact_line("kv_cache", kv, f"of {len(blocks)} layers, with them")
        if state:
            yield exact_line("state_cache", state, "float32 rows, one a sequence")

    def _policy(self, layout: Layout, away: int) -> str:
        count = len(self._parts.blocks)
        ngl = count - layout.starts[0]
        text = f"{ngl} of {count} layers (the output is one) on {len(self._gpus)} GPU(s)"
        if len(self._gpus) > 1:
            rows = zip(layout.starts, layout.stops, strict=True)
            text += ", split " + ":".join(str(stop - start) for start, stop in rows)
        kind = "experts" if self._parts.routed else "feed-forward matrices"
        if layout.left:
            layers = len({block for block, _ in layout.left})
            text += f"; {kind} of {layers} of these layers stay in host memory"
        if away:
            text += f"; the host computes {format_bytes(away)} where they lie"
        if not self.copies:
            text += ", prompts too"
        return text + "; it looks the embedding up"


@dataclass(frozen=True, slots=True)
class _Row:
    """What a row of neighbouring blocks computes."""

    layers: tuple[Layer, ...]
    output: bool


class _Kinds:
    """Which shapes of layers are in a row of blocks, and whether the output is."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._count = len(blocks)
        self.shapes = tuple(dict.fromkeys(b.layer for b in blocks if b.layer is not None))
        self._where = [
            [i for i, block in enumerate(blocks) if block.layer == shape] for shape in self.shapes
        ]

    def between(self, start: int, stop: int) -> _Row:
        """Return what is in blocks start to stop - 1."""
        pairs = zip(self.shapes, self._where, strict=True)
        found = (shape for shape, at in pairs if bisect_left(at, start) < bisect_left(at, stop))
        return _Row(tuple(found), start < stop == self._count)


def _copied(blocks: Sequence[Block], layout: Layout | None = None) -> Iterator[int]:
    """Yield the largest tensors of what a layout leaves to the host, or could leave."""
    left = set(layout.left) if layout else set()
    for index, block in enumerate(blocks):
        if block.layer is None:
            continue
        away = layout is None or layout.gpu_of(index) is None
        if away:
            yield block.kept.largest_bytes
        for number, group in enumerate(block.moved):
            if away or (index, number) in left:
                yield group.largest_bytes


def _modules(places: Sequence[_Place]) -> FrozenMap[str]:
    """Return module path -> device, one key for a layer that lies on one device."""
    where = {module: place.device for place in places for module in place.group.modules}
    layers: dict[str, set[str]] = {}
    for module, device in where.items():
        if layer := _layer_key(module):
            layers.setdefault(layer, set()).add(device)
    result: dict[str, str] = {}
    for module, device in where.items():
        layer = _layer_key(module)
        result[layer if layer and len(layers[layer]) == 1 else module] = device
    return FrozenMap(result)


def _layer_key(module: str) -> str | None:
    match = _LAYER.match(module + ".")
    return match[1] if match else None


def _reads(places: Sequence[_Place]) -> Mapping[str, int]:
    """Return what one token reads on each device."""
    result: dict[str, int] = {}
    for place in places:
        result[place.device] = result.get(place.device, 0) + place.group.active_bytes
    return result
