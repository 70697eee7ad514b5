"""What a placement costs where each device computes what it has: llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from memplan.placement.cost import Band, Speeds, speeds
from memplan.placement.engines import EngineProfile
from memplan.placement.loads import Assignment
from memplan.types import Device, FrozenMap, ModelSpec, Placement, Range, Workload

__all__ = ["decode_rate", "prefill_rate", "shared_placement"]


def shared_placement(
    spec: ModelSpec,
    workload: Workload,
    assignment: Assignment,
    devices: Sequence[Device],
    engine: EngineProfile,
) -> Placement:
    """Return the `placement` block of a plan whose host computes a part.

    Args:
        spec: the model.
        workload: what is done with it.
        assignment: with `modules` and `reads`.
        devices: of the plan.
        engine: the profile that is named.
    """
    rates = speeds(devices)
    away = sum(assignment.offloaded.values())
    modules = assignment.modules or FrozenMap()
    caches = {
        name: sum(x.bytes for x in lines if x.part in ("kv_cache", "state_cache"))
        for name, lines in assignment.lines.items()
    }
    reads = {
        name: size + caches.get(name, 0) // workload.batch
        for name, size in assignment.reads.items()
    }
    decode = decode_rate(reads, rates) if away or rates.known else Range()
    copies = bool(assignment.settings.get("op_offload", 1))
    parameters = spec.active_parameters or spec.parameters
    prefill = (
        prefill_rate(workload, assignment.reads, away, parameters, devices, copies=copies)
        if away
        else Range()
    )
    return Placement(
        device_map=modules,
        offloaded_bytes=away,
        streamed_bytes_per_token=0,
        decode_tokens_per_s=decode,
        policy=assignment.policy,
        engine=engine.name,
        prefill_tokens_per_s=prefill,
        speed_source=rates.source if decode.value is not None else "",
        settings=assignment.settings,
    )


def decode_rate(reads: Mapping[str, int], rates: Speeds) -> Range:
    """Return tokens a second of one sequence: t = sum over devices of bytes read / own rate.

    One device works after another, each on its layers; bytes are active weights and the cache of
    a full context.

    Args:
        reads: device name -> bytes that one token reads there.
        rates: of the machine.
    """

    def speed(pick: str) -> float:
        times = (size / _rate(rates.own[name], pick) for name, size in reads.items() if size)
        return 1.0 / max(sum(times), 1e-9)

    return Range(value=speed("value"), low=speed("low"), high=speed("high"))


def prefill_rate(
    workload: Workload,
    reads: Mapping[str, int],
    away: int,
    parameters: int,
    devices: Sequence[Device],
    *,
    copies: bool,
) -> Range:
    """Return prompt tokens a second of one micro-batch.

    With --op-offload the host's weights cross the bus once a micro-batch and the GPU computes all:
    t = bytes / link + 2·P·tokens / operations. Without it the host computes its share of 2·P.

    Args:
        workload: gives the micro-batch.
        reads: device name -> bytes that one token reads there.
        away: weights that the host has, bytes.
        parameters: P, that one token passes through.
        devices: of the plan.
        copies: --op-offload.
    """
    rates = speeds(devices)
    host = next(device for device in devices if device.kind == "cpu")
    tokens = min(workload.prefill_chunk or _MICRO_BATCH, (workload.context or 1) * workload.batch)
    share = reads.get(host.name, 0) / max(sum(reads.values()), 1)
    work = 2.0 * parameters * tokens

    def speed(pick: str) -> float:
        gpu = _rate(rates.operations, pick)
        if copies:
            return tokens / (away / _rate(rates.link[host.name], pick) + work / gpu)
        own = _rate(speeds([host]).operations, pick)
        return tokens / (share * work / own + (1 - share) * work / gpu)

    return Range(value=speed("value"), low=speed("low"), high=speed("high"))


_MICRO_BATCH = 512


def _rate(band: Band, pick: str) -> float:
    return float(getattr(band, pick))
