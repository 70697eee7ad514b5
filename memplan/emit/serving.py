"""What the serving targets share: who serves what, degrees, KV bytes and tokens, offload."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from memplan.emit.text import gpu_ledgers, refuse
from memplan.types import Plan

__all__ = ["KV_NAMES", "Serving", "serving"]

KV_NAMES: Mapping[str, str] = {
    "float8_e4m3fn": "fp8_e4m3",
    "float8_e5m2": "fp8_e5m2",
    "bfloat16": "bfloat16",
    "float16": "float16",
}
"""memplan's cache type -> the word of vLLM and SGLang."""

_LAYER = re.compile(r"\b(?:layers|h|blocks|block)\.(\d+)(?:\.|$)")

PAGE_TOKENS = 16
"""Tokens of vLLM's page (`memplan.runtimes.vllm.BLOCK_TOKENS`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What a server is told; sizes are bytes on one GPU."""

    tp: int
    """GPUs that divide each layer."""
    pp: int
    """Stages."""
    stage_layers: tuple[int, ...]
    """Layers of each stage, where they are not the engine's own choice; else empty."""
    kv_bytes: int
    """Cache and states on the fullest GPU, with the page that vLLM never hands out."""
    tokens: int
    """Tokens that all sequences cache."""
    offload_bytes: int
    """Weights of each GPU's share that stay in host memory."""
    share: float
    """Of a GPU's memory that everything takes, rounded up; at most 0.98. vLLM starts only where
    as much is free."""
    static_share: float
    """Of a GPU's memory that weights and cache take, rounded up."""


def serving(target: str, plan: Plan) -> Serving:
    """Return what a server is told of a plan.

    Without --tp a plan of several GPUs is one of whole layers: stages of a pipeline, as the
    device map has them.

    Raises UsageError for trainings, plans of another engine, without a GPU, or with disk.
    """
    _require(target, plan)
    work, gpus = plan.workload, gpu_ledgers(plan)
    assert work.context is not None
    stages = _stages(plan)
    pp = work.pp if work.tp * work.pp > 1 else max(len(stages), 1)
    kv = max(x.parts.get("kv_cache", 0) + x.parts.get("state_cache", 0) for x in gpus)
    tokens = work.batch * work.context
    static = max(
        x.parts.get("weights", 0) + x.parts.get("kv_cache", 0) + x.parts.get("state_cache", 0)
        for x in gpus
    )
    smallest = min(x.capacity_bytes for x in gpus)
    full = max(x.total_bytes for x in gpus)
    return Serving(
        tp=work.tp,
        pp=pp,
        stage_layers=stages if pp > 1 and len(set(stages)) > 1 else (),
        kv_bytes=kv + -(-kv * PAGE_TOKENS // tokens),
        tokens=tokens,
        offload_bytes=-(-plan.placement.offloaded_bytes // (work.tp * pp)),
        share=_up(full, smallest),
        static_share=_up(static, smallest),
    )


def _up(size: int, capacity: int) -> float:
    """Return size / capacity in hundredths, rounded up, from 0.01 to 0.98."""
    return min(max(-(-size * 100 // capacity), 1), 98) / 100


def _stages(plan: Plan) -> tuple[int, ...]:
    """Return the decoder layers of each GPU by the map; offloaded ones go to the GPU before."""
    places: dict[int, str] = {}
    for name, device in plan.placement.device_map.items():
        if match := _LAYER.search(name):
            places.setdefault(int(match[1]), device)
    counts = {ledger.name: 0 for ledger in gpu_ledgers(plan)}
    last = next(iter(counts))
    for layer in sorted(places):
        last = places[layer] if places[layer] in counts else last
        counts[last] += 1
    return tuple(count for count in counts.values() if count)


def _require(target: str, plan: Plan) -> None:
    work = plan.workload
    if work.task != "infer":
        better = {"fsdp2": "fsdp2", "zero1": "deepspeed", "zero2": "deepspeed"}
        better |= {"zero3": "deepspeed"}
        name = better.get(work.strategy or "", "torchrun")
        raise refuse(target, plan, "it trains, and this engine generates", better=name)
    if work.runtime == "llama.cpp":
        raise refuse(target, plan, "it is a plan for llama.cpp", better="llama.cpp")
    if work.runtime != "vllm":
        raise refuse(
            target,
            plan,
            f"it is a plan for {work.runtime}, whose cache and buffers are others",
            hint=f"memplan plan {plan.model.name} --runtime vllm ..., or --to transformers",
        )
    if not gpu_ledgers(plan):
        raise refuse(target, plan, "it has no GPU", hint="plan with --device and --runtime vllm")
    if "disk" in plan.placement.device_map.values():
        raise refuse(
            target,
            plan,
            "it keeps weights on disk, and this engine offloads to host memory alone",
            hint="plan with more --host-memory, or --runtime transformers",
        )
