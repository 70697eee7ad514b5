"""Training on several GPUs: what each rank holds, as an assignment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from memplan.errors import UsageError
from memplan.footprint.estimate import trained_tensors
from memplan.footprint.optimizer import IN_BACKWARD, optimizer_rule, split_name
from memplan.footprint.overhead import host_line
from memplan.parallel.moments import Moments, rank_line
from memplan.parallel.shard import shard, shards
from memplan.parallel.types import Shard, ShardOptions
from memplan.placement.assign import assign
from memplan.placement.loads import Assignment
from memplan.placement.units import Unit
from memplan.types import Device, Footprint, Line, ModelSpec, Workload

__all__ = ["assign_copies", "assign_ranks", "fullest_rank", "offloads"]

MOST_RANKS = 64
"""Ranks up to which each is worked out; of a larger job every one is taken for the fullest."""


def assign_copies(
    spec: ModelSpec,
    workload: Workload,
    footprint: Footprint,
    units: Sequence[Unit],
    devices: Sequence[Device],
    *,
    beside: Sequence[Line] = (),
) -> Assignment:
    """Return what each GPU of a tensor-parallel engine holds: every rank the same.

    Args:
        spec: the model as one rank loads it (`memplan.parallel.infer.rank_spec`).
        workload: complete, with tp.
        footprint: of one rank.
        units: its pieces.
        devices: one GPU for each rank; what is beside them holds no weights.
        beside: lines of what else runs there, on every rank.

    Raises UsageError when there are not as many GPUs as ranks.
    """
    gpus = [device for device in devices if device.kind == "gpu"]
    if len(gpus) != workload.tp:
        raise UsageError(
            f"--tp {workload.tp} needs as many GPUs, and there are {len(gpus)}",
            hint=f"--gpus {workload.tp}",
        )
    least = fullest_rank(devices)[0]
    alone = replace(workload, tp=1, gpus=1)
    one = assign(spec, alone, footprint, units, [least], beside=beside)
    return replace(
        one,
        lines={gpu.name: one.lines[least.name] for gpu in gpus},
        policy=f"tensor parallelism: each of {workload.tp} GPUs holds its part of every layer; "
        "what they exchange is not in the speeds",
    )


def fullest_rank(devices: Sequence[Device]) -> list[Device]:
    """Return the GPU with the least room, and what is no GPU."""
    gpus = [device for device in devices if device.kind == "gpu"]
    least = min(gpus, key=lambda gpu: gpu.capacity_bytes - gpu.reserve_bytes)
    return [least, *(device for device in devices if device.kind != "gpu")]


FindMoments = Callable[..., Moments]
"""(spec, workload, gradients=bytes) -> Moments."""


def assign_ranks(
    spec: ModelSpec,
    workload: Workload,
    footprint: Footprint,
    devices: Sequence[Device],
    moments: FindMoments,
) -> Assignment:
    """Return what each GPU of a training job holds.

    Args:
        spec: the model in the dtype in which it is loaded.
        workload: complete, with a strategy; its GPUs are those of all machines together.
        footprint: on one device that does it all: overhead and module buffers are taken from it.
        devices: one GPU for each rank, then host memory and disk of one machine.
        moments: what gives the activations on one device.

    Raises UsageError for degrees that do not multiply to the GPUs, or too few devices.
    """
    gpus = [device for device in devices if device.kind == "gpu"]
    if len(gpus) != workload.gpus:
        raise UsageError(
            f"{workload.gpus} GPUs are to train and {len(gpus)} are named",
            hint="name one --device for all, or as many as --gpus says",
        )
    trained = trained_tensors(spec, workload)
    whole = sum(tensor.bytes for tensor in trained)
    assert workload.optimizer is not None
    _check_optimizer(workload)
    rule = optimizer_rule(workload.optimizer)[0]
    names = frozenset(tensor.name for tensor in trained)
    options = _options(workload, devices)
    if len(gpus) > MOST_RANKS:
        found = [shard(spec.tensors, workload, rule, trainable=names, options=options)] * len(gpus)
    else:
        found = list(shards(spec.tensors, workload, rule, trainable=names, options=options))
    single = moments(spec, workload, gradients=whole)
    kept = _kept(footprint, workload)
    lines: dict[str, tuple[Line, ...]] = {}
    alone = sum(line.bytes for line in footprint.lines if line.part != "overhead")
    for gpu, one in zip(gpus, found, strict=True):
        own = rank_line(single, one, workload, layers=len(spec.layers), whole=whole)
        share = min((one.device_bytes + own.bytes) / max(alone, 1), 1.0)
        rest = (_scaled(line, share) for line in kept)
        lines[gpu.name] = tuple(x for x in (*one.lines, own, *rest) if x.high_bytes)
    lines |= _beside(found, devices, workload)
    return Assignment(where={}, lines=lines, policy=_policy(workload))


def offloads(workload: Workload) -> bool:
    """Say whether a training keeps states or weights off the GPU."""
    return bool(workload.offload_optimizer or workload.offload_params)


def _options(workload: Workload, devices: Sequence[Device]) -> ShardOptions:
    """Return the frameworks' settings, after a check that the strategy can offload so."""
    _check_offload(workload, {device.kind for device in devices})
    return ShardOptions(
        offload_optimizer=_PLACES[workload.offload_optimizer],
        offload_param=_PLACES[workload.offload_params],
    )


_PLACES: dict[str | None, Literal["none", "cpu", "nvme"]] = {
    None: "none",
    "cpu": "cpu",
    "disk": "nvme",
}
"""Option -> DeepSpeed's word."""


def _check_offload(workload: Workload, kinds: set[str]) -> None:
    """Refuse what no framework does.

    DeepSpeed (runtime/zero/offload_config.py): states to host memory from stage 1 on; disk, and
    weights, in stage 3 alone. FSDP2's CPUOffloadPolicy moves weights, gradients and states at once.
    """
    places = {workload.offload_optimizer, workload.offload_params} - {None}
    if not places:
        return
    name = workload.strategy or ""
    if name == "fsdp2" and places == {"cpu"}:
        pass
    elif not name.startswith("zero"):
        raise UsageError(f"{name} cannot offload so", hint="--strategy zero3, or fsdp2 with cpu")
    elif name != "zero3" and (workload.offload_params or places == {"disk"}):
        raise UsageError(
            f"{name} offloads optimizer states to host memory alone", hint="--strategy zero3"
        )
    for place in sorted(place for place in places if place):
        if place not in kinds:
            option = "--host-memory" if place == "cpu" else "--disk"
            raise UsageError(f"no {place} to offload to is there", hint=f"give {option} a size")


def _check_optimizer(workload: Workload) -> None:
    """Refuse what the strategies cannot do: steps within backward, projections of a shard."""
    name, in_backward = split_name(workload.optimizer or "")
    if in_backward:
        raise UsageError(
            f"{IN_BACKWARD.lstrip('-')} is planned on one GPU: gradients of ranks are added first",
            hint=f"--optimizer {name}",
        )
    if name.startswith("galore") and workload.strategy != "ddp":
        raise UsageError(
            "GaLore projects whole matrices, which only ddp leaves whole", hint="--strategy ddp"
        )


def _kept(footprint: Footprint, workload: Workload) -> tuple[Line, ...]:
    """Return what each rank has as one device has it: overhead, and buffers that are no copies.

    ZeRO and FSDP2 hold 16-bit weights themselves: autocast has nothing to copy.
    """
    copies = workload.strategy in ("zero1", "zero2", "zero3", "fsdp2")
    parts = [line for line in footprint.lines if line.part in ("buffers", "overhead")]
    return tuple(line for line in parts if not (copies and "autocast" in line.source))


def _scaled(line: Line, share: float) -> Line:
    """Return what torch's allocator wastes on a rank; it was traced on one device for all."""
    if line.part != "overhead" or line.basis != "trace":
        return line
    return replace(
        line,
        bytes=int(share * line.bytes),
        low_bytes=int(share * line.low_bytes),
        high_bytes=int(share * line.high_bytes),
    )


def _beside(
    found: Sequence[Shard], devices: Sequence[Device], workload: Workload
) -> dict[str, tuple[Line, ...]]:
    """Return what one machine's host memory and disk hold for its ranks."""
    ranks = found[: -(-len(found) // workload.nodes)]
    lines: dict[str, tuple[Line, ...]] = {}
    for device in devices:
        if device.kind == "cpu":
            held = [line for one in ranks for line in one.host]
            lines[device.name] = (*held, *(host_line() for _ in ranks))
        elif device.kind == "disk":
            held = [line for one in ranks for line in one.disk]
            lines[device.name] = tuple(held)
    return lines


def _policy(workload: Workload) -> str:
    degrees = [
        f"{name} {getattr(workload, name)}"
        for name in ("tp", "pp", "cp", "ep", "dp")
        if getattr(workload, name) > 1
    ]
    text = f"{workload.strategy} over {workload.gpus} GPUs"
    if workload.nodes > 1:
        text += f" of {workload.nodes} machines"
    return f"{text} ({', '.join(degrees)})" if degrees else text
