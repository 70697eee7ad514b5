"""Units + Footprint + Devices -> Assignment, for one computing device and for several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from memplan.errors import UsageError
from memplan.footprint.lines import exact_line
from memplan.footprint.tower import with_images
from memplan.placement.loads import Assignment, budget, spill
from memplan.placement.solve import Fill, fill_one, split_layers
from memplan.placement.units import Unit
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

    Raises UsageError for a set of devices that memplan cannot plan for.
    """
    spec = with_images(spec, workload)
    gpus = [device for device in devices if device.kind == "gpu"]
    computing = gpus or [device for device in devices if device.kind == "cpu"]
    slow = [device for device in devices if device not in computing]
    if not computing:
        raise UsageError("no device computes: a disk alone runs nothing", hint="add --device cpu")
    if len(computing) > 1:
        layers = _Several(spec, workload, footprint, units, beside)
        return layers.assignment(computing, slow)
    hosted = _hosted(spec, workload, computing[0], slow)
    return _one(workload, footprint, units, computing[0], slow, hosted=hosted)


def _hosted(
    spec: ModelSpec, workload: Workload, main: Device, slow: Sequence[Device]
) -> tuple[Line, ...]:
    """Return what an offloaded cache keeps in host memory while a GPU computes."""
    lines = _offloaded(spec, workload)
    if lines is None:
        return ()
    if main.kind != "gpu":
        raise UsageError(
            "an offloaded cache lies in host memory, and here the host computes",
            hint="leave --cache out, or add a GPU by --device",
        )
    if not any(device.kind == "cpu" for device in slow):
        raise UsageError(
            "an offloaded cache needs host memory, and there is none",
            hint="give --host-memory, or leave --cache out",
        )
    return (lines[1],)


def _offloaded(spec: ModelSpec, workload: Workload) -> tuple[Line, Line] | None:
    """Return an offloaded cache's lines on the device and in host memory."""
    rule = getattr(runtime(workload.runtime), "offloaded_lines", None)
    if rule is None or workload.task == "train":
        return None
    lines: tuple[Line, Line] | None = rule(spec, workload)
    return lines


def _one(
    workload: Workload,
    footprint: Footprint,
    units: Sequence[Unit],
    main: Device,
    slow: Sequence[Device],
    *,
    hosted: Sequence[Line],
) -> Assignment:
    own = _own_weights(footprint)
    fixed = tuple(line for line in footprint.lines if line is not own)
    everything = Fill(frozenset(unit.position for unit in units), 0)
    if workload.task == "train" or not slow:
        fill = everything
    else:
        fill = fill_one(units, budget(main, fixed, high=False)) or everything
        if fill.reload_bytes or len(fill.resident) < len(units):
            fill = fill_one(units, budget(main, fixed, high=True)) or _nothing(units)
    resident = [unit for unit in units if unit.position in fill.resident]
    streamed = [unit for unit in units if unit.position not in fill.resident]
    lines = [_weights(footprint, resident), *fixed, *_reload(fill.reload_bytes)]
    where, slow_lines, held = spill(streamed, slow, gpu=main.kind == "gpu", hosted=hosted)
    where |= {unit.position: main.name for unit in resident}
    return Assignment(
        where=where,
        lines={main.name: tuple(line for line in lines if line.high_bytes), **slow_lines},
        offloaded=held,
        policy=_policy(main, held),
    )


def _nothing(units: Sequence[Unit]) -> Fill:
    """Return the fill that streams everything: what is tried last, fitting or not."""
    return Fill(frozenset(), max((unit.reload_bytes for unit in units), default=0))


def _weights(footprint: Footprint, units: Sequence[Unit]) -> Line:
    whole = _own_weights(footprint)
    size = sum(unit.weight_bytes for unit in units)
    return replace(whole, bytes=size, low_bytes=size, high_bytes=size)


def _own_weights(footprint: Footprint) -> Line:
    """Return the model's own weights: the first line of that part (a draft's come later)."""
    return next(line for line in footprint.lines if line.part == "weights")


def _reload(size: int) -> list[Line]:
    return [exact_line("activations", size, "copy of the largest streamed module")] if size else []


def _policy(main: Device, held: dict[str, int]) -> str:
    if not any(held.values()):
        return f"everything lives on {main.name}"
    names = " and ".join(name for name, size in held.items() if size)
    return (
        f"{main.name} is filled with the largest modules that fit beside cache, activations and "
        f"the reload buffer; the rest is streamed from {names} for every token"
    )


@dataclass(frozen=True, slots=True)
class _Block:
    """What moves together: a layer's units and its cache, or one unit outside the layers."""

    units: tuple[Unit, ...]
    cache_bytes: int

    @property
    def weight_bytes(self) -> int:
        return sum(unit.weight_bytes for unit in self.units)


class _Several:
    """Whole layers in order over several GPUs; the last layers are streamed if they must."""

    def __init__(
        self,
        spec: ModelSpec,
        workload: Workload,
        footprint: Footprint,
        units: Sequence[Unit],
        beside: Sequence[Line],
    ) -> None:
        self._spec, self._workload = spec, workload
        self._beside = tuple(beside)
        self._hosted: tuple[Line, ...] = ()
        self._gpus: Sequence[Device] = ()
        self._slow: Sequence[Device] = ()
        engine = runtime(workload.runtime)
        cache = [engine.layer_cache_bytes(spec, layer, workload) for layer in spec.layers]
        self._blocks = _blocks(units, cache)
        layered = {unit.layer for unit in units}
        outside = sum(size for i, size in enumerate(cache) if i not in layered)
        self._first_cache = outside
        kept = ("activations", "overhead", "buffers")
        moving = (_offloaded(spec, workload) or ())[:1]
        lines = [line for line in footprint.lines if line not in self._beside]
        fixed = tuple(line for line in lines if line.part in kept)
        self._fixed = (*moving, *fixed)
        self._scaled = tuple(x for x in lines if x not in self._fixed)

    def assignment(self, gpus: Sequence[Device], slow: Sequence[Device]) -> Assignment:
        self._gpus, self._slow = gpus, slow
        self._hosted = _hosted(self._spec, self._workload, gpus[0], slow)
        last = [i for i, block in enumerate(self._blocks) if block.units[0].layer is not None]
        for count in range(len(last) + 1 if self._slow else 1):
            streamed = set(last[len(last) - count :])
            found = self._split(streamed)
            if found is not None:
                return self._build(found, streamed)
        return self._build([0] * len(self._blocks), set())

    def _split(self, streamed: set[int]) -> list[int] | None:
        """Return the GPU of each block (streamed ones: 0), or None when it does not fit."""
        high = bool(streamed)
        budgets = [budget(gpu, self._fixed, high=high) for gpu in self._gpus]
        blocks = [self._blocks[i] for i in streamed]
        budgets[0] -= sum(line.high_bytes if high else line.bytes for line in self._beside)
        budgets[0] -= self._first_cache + sum(block.cache_bytes for block in blocks)
        budgets[0] -= _largest(blocks)
        stay = [i for i in range(len(self._blocks)) if i not in streamed]
        loads = [self._blocks[i].weight_bytes + self._blocks[i].cache_bytes for i in stay]
        found = split_layers(loads, budgets)
        if found is None:
            return None
        result = [0] * len(self._blocks)
        for i, gpu in zip(stay, found, strict=True):
            result[i] = gpu
        return result

    def _build(self, gpu_of: Sequence[int], streamed: set[int]) -> Assignment:
        where: dict[int, str] = {}
        weights = [0] * len(self._gpus)
        cache = [0] * len(self._gpus)
        cache[0] += self._first_cache
        for i, block in enumerate(self._blocks):
            cache[gpu_of[i]] += block.cache_bytes
            if i not in streamed:
                weights[gpu_of[i]] += block.weight_bytes
                where |= {unit.position: self._gpus[gpu_of[i]].name for unit in block.units}
        away = [self._blocks[i] for i in sorted(streamed)]
        reload = _largest(away)
        lines = {
            gpu.name: self._lines(weights[i], cache[i], reload if i == 0 else 0)
            for i, gpu in enumerate(self._gpus)
        }
        lines[self._gpus[0].name] += self._beside
        units = [unit for block in away for unit in block.units]
        elsewhere, slow_lines, held = spill(units, self._slow, gpu=True, hosted=self._hosted)
        where |= elsewhere
        lines |= slow_lines
        return Assignment(where=where, lines=lines, offloaded=held, policy=self._policy(held))

    def _lines(self, weights: int, cache: int, reload: int) -> tuple[Line, ...]:
        caches = [line for line in self._scaled if line.part in ("kv_cache", "state_cache")]
        first = [line for line in self._scaled if line.part == "weights"] + caches[:1]
        scaled = [
            replace(line, bytes=size, low_bytes=size, high_bytes=size)
            for line, size in zip(first, (weights, cache), strict=False)
            if size
        ]
        return (*scaled, *self._fixed, *_reload(reload))

    def _policy(self, held: dict[str, int]) -> str:
        text = f"whole layers in order over {len(self._gpus)} GPUs, the fullest as empty as can be"
        if any(held.values()):
            names = " and ".join(name for name, size in held.items() if size)
            text += f"; the last layers are streamed from {names} for every token"
        return text


def _blocks(units: Sequence[Unit], cache: Sequence[int]) -> list[_Block]:
    blocks: list[_Block] = []
    for unit in units:
        last = blocks[-1].units[0].layer if blocks else None
        if unit.layer is not None and unit.layer == last:
            block = blocks.pop()
            blocks.append(_Block((*block.units, unit), block.cache_bytes))
        elif unit.layer is not None:
            size = cache[unit.layer] if unit.layer < len(cache) else 0
            blocks.append(_Block((unit,), size))
        else:
            blocks.append(_Block((unit,), 0))
    return blocks


def _largest(blocks: Sequence[_Block]) -> int:
    return max((unit.reload_bytes for block in blocks for unit in block.units), default=0)
