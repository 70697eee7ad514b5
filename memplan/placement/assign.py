"""Units + Footprint + Devices -> Assignment, for one computing device and for several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from memplan.errors import UsageError
from memplan.footprint.tower import with_images
from memplan.placement.engines import profile_of
from memplan.placement.fills import filled
from memplan.placement.loading import loading_line
from memplan.placement.loads import Assignment, budget, buffer_line, spill
from memplan.placement.pins import pinned
from memplan.placement.several import Block, Spread, blocks_of, missing_bytes, spread
from memplan.placement.solve import Fill
from memplan.placement.units import Unit
from memplan.placement.words import policy_one, policy_several
from memplan.runtimes import runtime
from memplan.types import Device, Footprint, Line, ModelSpec, Workload

__all__ = ["assign"]


def assign(
    spec: ModelSpec,
    workload: Workload,
    footprint: Footprint,
    units: Sequence[Unit],
    devices: Sequence[Device],
    *,
    beside: Sequence[Line] = (),
) -> Assignment:
    """Decide what lives where.

    Args:
        spec: the model.
        workload: what is done with it; training keeps everything on the computing device.
        footprint: its needs on one device that holds everything.
        units: its pieces.
        devices: GPUs (several share layers), then host memory, then disk. Without a GPU the host
            computes.
        beside: lines of the footprint that stay whole on the first computing device.

    Raises UsageError for a set of devices that memplan cannot plan for, and for pins that name no
    module or no device.
    """
    spec = with_images(spec, workload)
    gpus = [device for device in devices if device.kind == "gpu"]
    computing = gpus or [device for device in devices if device.kind == "cpu"]
    if not computing:
        raise UsageError("no device computes: a disk alone runs nothing", hint="add --device cpu")
    work = _Work(spec, workload, footprint, units, devices)
    if len(computing) > 1:
        return _Several(work, computing, beside).assignment()
    return _one(work, computing[0])


class _Work:
    """What one device and several need alike."""

    def __init__(
        self,
        spec: ModelSpec,
        workload: Workload,
        footprint: Footprint,
        units: Sequence[Unit],
        devices: Sequence[Device],
    ) -> None:
        self.spec, self.workload, self.footprint = spec, workload, footprint
        self.units = units
        self.engine = profile_of(workload)
        self.pins = pinned(units, workload.pin, devices)
        gpus = [device for device in devices if device.kind == "gpu"]
        computing = {device.name for device in gpus or devices[:1]}
        self.slow = [
            device
            for device in devices
            if device.name not in computing
            and (device.kind in self.engine.tiers or not gpus or workload.task == "train")
        ]

    @property
    def lookups(self) -> bool:
        """True when the host may look tokens up: untouched caches, and memory for the table."""
        return self.engine.host_lookup and any(device.kind == "cpu" for device in self.slow)

    def hosted_cache(self, main: Device) -> tuple[Line, ...]:
        """Return what an offloaded cache keeps in host memory while a GPU computes."""
        lines = offloaded_cache(self.spec, self.workload)
        if lines is None:
            return ()
        if main.kind != "gpu":
            raise UsageError(
                "an offloaded cache lies in host memory, and here the host computes",
                hint="leave --cache out, or add a GPU by --device",
            )
        if not any(device.kind == "cpu" for device in self.slow):
            raise UsageError(
                "an offloaded cache needs host memory, and there is none",
                hint="give --host-memory, or leave --cache out",
            )
        return (lines[1],)


def offloaded_cache(spec: ModelSpec, workload: Workload) -> tuple[Line, Line] | None:
    """Return an offloaded cache's lines on the device and in host memory."""
    rule = getattr(runtime(workload.runtime), "offloaded_lines", None)
    if rule is None or workload.task == "train":
        return None
    lines: tuple[Line, Line] | None = rule(spec, workload)
    return lines


def _one(work: _Work, main: Device) -> Assignment:
    hosted = work.hosted_cache(main)
    own = own_weights(work.footprint)
    fixed = tuple(line for line in work.footprint.lines if line is not own)
    fill, loading = _loadable(work, main, fixed)
    resident = [unit for unit in work.units if unit.position in fill.resident]
    away = [unit for unit in work.units if unit.position not in fill.resident]
    buffer = buffer_line(work.engine, fill.reload_bytes)
    lines = [weights_line(own, resident), *fixed, *buffer, *loading]
    wishes = {p: name for p, name in work.pins.items() if name != main.name}
    spilled = spill(away, work.slow, gpu=main.kind == "gpu", hosted=hosted, pins=wishes)
    return Assignment(
        where=spilled.where | {unit.position: main.name for unit in resident},
        lines={main.name: tuple(line for line in lines if line.high_bytes), **spilled.lines},
        offloaded=spilled.held,
        reused=spilled.reused,
        hosted=fill.hosted,
        settings=fill.settings,
        short_bytes=max(0, -budget(main, work.footprint.lines, high=False)),
        policy=policy_one(main, work.units, fill, spilled.held, work.engine),
    )


_LOADS = 4
"""Fills that are tried until what is left beside one suffices to load it."""


def _loadable(work: _Work, main: Device, fixed: Sequence[Line]) -> tuple[Fill, list[Line]]:
    """Return what stays, and what loading it takes beyond running where the host computes."""
    fill, line = _filled(work, main, fixed), list[Line]()
    if main.kind != "cpu" or work.engine.name != "stream" or work.workload.task == "train":
        return fill, line
    for _ in range(_LOADS):
        need = _loading(work, fill, fixed)
        if _size(need) <= _size(line):
            break
        line = need
        fill = _filled(work, main, (*fixed, *line))
    return fill, _loading(work, fill, fixed)


def _loading(work: _Work, fill: Fill, fixed: Sequence[Line]) -> list[Line]:
    stay = sum(unit.weight_bytes for unit in work.units if unit.position in fill.resident)
    away = {unit.position for unit in work.units} - fill.resident
    running = _size([line for line in fixed if line.part != "overhead"])
    return loading_line(work.units, away, stay + running + fill.reload_bytes)


def _size(lines: Sequence[Line]) -> int:
    return sum(line.bytes for line in lines)


def _filled(work: _Work, main: Device, fixed: Sequence[Line]) -> Fill:
    """Return what stays on one computing device."""
    everything = Fill(frozenset(unit.position for unit in work.units), 0)
    if work.workload.task == "train" or not work.slow:
        return everything
    wishes = {position: name == main.name for position, name in work.pins.items()}
    room, tight = (budget(main, fixed, high=high) for high in (False, True))
    if False not in wishes.values():
        if sum(unit.weight_bytes for unit in work.units) <= room:
            return everything
        if work.lookups and (fill := by_lookup(work.units, room, wishes)):
            return fill
    for size in (tight, room):
        if (fill := filled(work.engine, work.units, size, wishes)) and _in_use(fill, work):
            return fill
    return _nothing(work, wishes)


def by_lookup(units: Sequence[Unit], budget_bytes: int, pins: Mapping[int, bool]) -> Fill | None:
    """Return the fill in which only embeddings are away, or None where that does not suffice.

    The host looks a token's row up and sends it, so no module is copied and no buffer is needed:
    Llama-8B (16.06 GB) runs without streaming from 15.01 GB of weights on.
    """
    tables = frozenset(u.position for u in units if u.lookup and u.position not in pins)
    rest = [unit for unit in units if unit.position not in tables]
    if not tables or sum(unit.weight_bytes for unit in rest) > budget_bytes:
        return None
    return Fill(frozenset(unit.position for unit in rest), 0, tables)


def _in_use(fill: Fill, work: _Work) -> bool:
    """Say whether a device holds anything: accelerate leaves one that does not unused."""
    return any(u.weight_bytes and u.position in fill.resident for u in work.units)


def _nothing(work: _Work, pins: Mapping[int, bool]) -> Fill:
    """Return the fill that keeps what is pinned and the smallest piece: tried last, fitting or not.

    Something has to stay, or the hooks would run everything on the host.
    """
    stay = {p for p, here in pins.items() if here}
    movable = (u for u in work.units if u.weight_bytes and u.position not in pins)
    stay |= {u.position for u in sorted(movable, key=lambda u: u.weight_bytes)[:1]}
    away = [unit for unit in work.units if unit.position not in stay]
    return Fill(frozenset(stay), work.engine.buffer_bytes(away))


def weights_line(whole: Line, units: Sequence[Unit]) -> Line:
    """Return the line of some units' weights."""
    return sized(whole, sum(unit.weight_bytes for unit in units))


def sized(line: Line, size: int) -> Line:
    """Return a line with another, exact size."""
    return replace(line, bytes=size, low_bytes=size, high_bytes=size)


def own_weights(footprint: Footprint) -> Line:
    """Return the model's own weights: the first line of that part (a draft's come later)."""
    return next(line for line in footprint.lines if line.part == "weights")


class _Several:
    """Lines of each GPU around what `memplan.placement.several` decides."""

    def __init__(self, work: _Work, gpus: Sequence[Device], beside: Sequence[Line]) -> None:
        self._work, self._gpus, self._beside = work, gpus, tuple(beside)
        spec, workload = work.spec, work.workload
        engine = runtime(workload.runtime)
        cache = [engine.layer_cache_bytes(spec, layer, workload) for layer in spec.layers]
        self._exact = spec.exact_modules
        self._blocks = blocks_of(work.units, cache, buffers=self._exact)
        layered = {unit.layer for unit in work.units}
        self._first_cache = sum(size for i, size in enumerate(cache) if i not in layered)
        lines = [line for line in work.footprint.lines if line not in self._beside]
        moving = (offloaded_cache(spec, workload) or ())[:1]
        own_buffers = [line for line in lines if line.part == "buffers" and line.basis == "exact"]
        self._buffers = own_buffers[:1] if self._exact else []
        fixed = (x for x in lines if x.part in _FIXED and x not in self._buffers)
        self._fixed = (*moving, *fixed)
        self._caches = [x for x in lines if x.part in ("kv_cache", "state_cache")][:1]

    def assignment(self) -> Assignment:
        """Return the plan; one that does not fit holds everything on the first GPU."""
        work = self._work
        hosted = work.hosted_cache(self._gpus[0])
        names = [gpu.name for gpu in self._gpus]
        found = (
            spread(
                self._blocks,
                self._budgets(high=False),
                tight=self._budgets(high=True),
                engine=work.engine,
                pins={p: names.index(n) if n in names else None for p, n in work.pins.items()},
                away=bool(work.slow) and work.engine.grain != "none",
                lookups=work.lookups,
            )
            or self._all_on_first()
        )
        away = [unit for unit in work.units if unit.position not in found.fill.resident]
        wishes = {p: name for p, name in work.pins.items() if name not in names}
        spilled = spill(away, work.slow, gpu=True, hosted=hosted, pins=wishes)
        return Assignment(
            where=spilled.where | self._resident(found),
            lines={**self._gpu_lines(found), **spilled.lines},
            offloaded=spilled.held,
            reused=spilled.reused,
            hosted=found.fill.hosted,
            short_bytes=missing_bytes(self._blocks, self._budgets(high=False)) if away else 0,
            policy=policy_several(self._gpus, work.units, found, spilled.held, work.engine),
        )

    def _budgets(self, *, high: bool) -> list[int]:
        budgets = [budget(gpu, self._fixed, high=high) for gpu in self._gpus]
        budgets[0] -= sum(line.high_bytes if high else line.bytes for line in self._beside)
        budgets[0] -= self._first_cache
        return budgets

    def _all_on_first(self) -> Spread:
        stay = frozenset(unit.position for unit in self._work.units)
        return Spread(runs=(0,) * len(self._blocks), main=0, fill=Fill(stay, 0))

    def _resident(self, found: Spread) -> dict[int, str]:
        return {
            unit.position: self._gpus[gpu].name
            for block, gpu in zip(self._blocks, found.runs, strict=True)
            for unit in block.units
            if unit.position in found.fill.resident
        }

    def _gpu_lines(self, found: Spread) -> dict[str, tuple[Line, ...]]:
        result: dict[str, tuple[Line, ...]] = {}
        for i, gpu in enumerate(self._gpus):
            mine = [b for b, at in zip(self._blocks, found.runs, strict=True) if at == i]
            reload = found.fill.reload_bytes if i == found.main else 0
            own = self._own_lines(mine, found.fill.resident, first=i == 0)
            last = self._beside if i == 0 else ()
            lines = (*own, *self._fixed, *buffer_line(self._work.engine, reload), *last)
            result[gpu.name] = tuple(line for line in lines if line.high_bytes)
        return result

    def _own_lines(
        self, mine: Sequence[Block], resident: frozenset[int], *, first: bool
    ) -> tuple[Line, ...]:
        units = [unit for block in mine for unit in block.units]
        buffers = sum(unit.buffer_bytes for unit in units) if self._exact else 0
        cache = sum(block.cache_bytes for block in mine) - buffers
        cache += self._first_cache if first else 0
        stay = [unit for unit in units if unit.position in resident]
        return (
            weights_line(own_weights(self._work.footprint), stay),
            *(sized(line, cache) for line in self._caches),
            *(sized(line, buffers) for line in self._buffers),
        )


_FIXED = ("activations", "overhead", "buffers")
"""Parts that each GPU has whole."""
