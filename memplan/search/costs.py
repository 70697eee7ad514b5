"""What changes give up, in words and as a weight: alternatives are listed lightest first.

The weights are a judgement, no measurement. They say: eight-bit weights before four-bit ones,
those before a second GPU, a second GPU before weights that cross a bus or fewer than four bits,
and what the user asked for (context) last.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

from memplan.search.ask import Settings
from memplan.search.types import Cost
from memplan.types import Plan
from memplan.units import format_bytes

__all__ = ["bits_per_weight", "costs"]

_BITS = ((1.5, 11.0), (2.0, 9.0), (3.0, 5.5), (4.0, 2.6), (5.0, 1.8), (8.0, 1.0), (16.0, 0.0))
"""Bits of a weight -> weight of the change, on straight lines between."""
_SPEED = ((0.3, 10.0), (1.0, 7.0), (3.0, 5.0), (8.0, 3.5), (20.0, 2.5))
"""Tokens a second with weights outside the GPU -> weight of the change, on straight lines."""
_CACHES = {"q8_0": 0.5, "fp8": 0.5, "q8": 0.5, "int8": 0.7, "q4_0": 1.5, "q4": 1.0, "int4": 1.5}
_METHODS = {"lora": 2.0, "rslora": 2.0, "dora": 2.2, "qlora": 3.0}
_METHOD_WORDS = {
    "lora": "trains adapters, not the weights",
    "qlora": "trains adapters over 4-bit weights, unpacked in every pass",
}
_OPTIMIZERS = {
    "adamw-8bit": (1.0, "8-bit states (bitsandbytes)"),
    "paged-adamw-8bit": (1.5, "8-bit states, which page to host memory"),
    "adafactor": (2.0, "another optimizer: tune the learning rate anew"),
    "lion": (2.0, "another optimizer: tune the learning rate anew"),
    "sgd": (4.0, "no states: rarely trains a language model well"),
}
_STRATEGIES = {
    "ddp": "gradients are summed over the GPUs",
    "fsdp2": "weights are gathered layer by layer, twice a step",
}


def bits_per_weight(plan: Plan) -> float:
    """Return the bits of one weight as stored, mean over the model's parameters."""
    held = sum(ledger.parts.get("weights", 0) for ledger in plan.devices)
    if plan.workload.task == "train" or plan.workload.tp > 1:
        held = plan.footprint.part("weights") * (1 if plan.workload.task == "train" else held > 0)
        held *= max(plan.workload.tp, 1) * max(plan.workload.pp, 1)
    return 8 * held / max(plan.model.parameters, 1)


def costs(settings: Settings, plan: Plan, asked: Plan) -> tuple[Cost, ...]:
    """Return what a set of changes gives up, heaviest first.

    Args:
        settings: the changes.
        plan: the plan with them.
        asked: the plan without.
    """
    found = [*_shared(settings, plan, asked)]
    found += (
        _trained(settings, plan) if plan.workload.task == "train" else _inferred(settings, plan)
    )
    return tuple(sorted(found, key=lambda cost: -cost.weight))


def _between(table: Sequence[tuple[float, float]], value: float) -> float:
    """Return the height at a value of the straight lines through some points."""
    for (left, first), (right, second) in pairwise(table):
        if value < right:
            share = max(value - left, 0.0) / (right - left)
            return first + share * (second - first)
    return table[-1][1]


def _nominal(name: str, mean: float) -> float:
    """Return the bits that a format's name promises, where embeddings stay 16-bit beside it."""
    found = re.fullmatch(r"exl3-([0-9.]+)bpw", name)
    return min(float(found[1]), mean) if found else mean


def _shared(settings: Settings, plan: Plan, asked: Plan) -> Iterable[Cost]:
    gpus, before = plan.workload.gpus, asked.workload.gpus
    if gpus > before:
        weight = 3.0 * math.log2(gpus / before)
        yield Cost(option="gpus", weight=weight, words=f"{gpus} GPUs")
    for name in ("context", "seq", "batch"):
        now, then = getattr(plan.workload, name), getattr(asked.workload, name)
        if name in settings and now is not None and then is not None and now < then:
            words = f"{name} {now} in place of {then}"
            yield Cost(option=name, weight=4.0 + 2.0 * math.log2(then / now), words=words)
    if plan.placement.offloaded_bytes:
        yield _offloaded(plan)


def _offloaded(plan: Plan) -> Cost:
    speed = plan.placement.decode_tokens_per_s.value
    size = format_bytes(plan.placement.offloaded_bytes)
    weight = 6.5 if speed is None else _between(_SPEED, speed)
    return Cost(option="offload", weight=weight, words=f"{size} of weights outside the GPU")


def _inferred(settings: Settings, plan: Plan) -> Iterable[Cost]:
    work = plan.workload
    if settings.get("quant"):
        bits = bits_per_weight(plan)
        words = f"{work.quant} weights, {bits:.1f} bits each"
        yield Cost(option="quant", weight=_between(_BITS, _nominal(work.quant, bits)), words=words)
    if settings.get("kv_dtype"):
        name = str(settings["kv_dtype"])
        yield Cost(option="kv_dtype", weight=_CACHES.get(name, 1.0), words=f"{name} cache")
    if settings.get("prefill_chunk"):
        words = f"prompts in passes of {work.prefill_chunk} tokens: slower, the same answer"
        yield Cost(option="prefill_chunk", weight=0.3, words=words)
    if settings.get("cache"):
        words = "cache in host memory, which crosses the bus for every token"
        yield Cost(option="cache", weight=3.5, words=words)
    if settings.get("runtime"):
        yield Cost(option="runtime", weight=0.2, words=f"engine {work.runtime}")


def _trained(settings: Settings, plan: Plan) -> Iterable[Cost]:
    work = plan.workload
    if settings.get("method"):
        name = str(settings["method"])
        words = _METHOD_WORDS.get(name, name)
        yield Cost(option="method", weight=_METHODS.get(name, 2.0), words=words)
    if settings.get("optimizer"):
        weight, words = _OPTIMIZERS[str(settings["optimizer"])]
        yield Cost(option="optimizer", weight=weight, words=words)
    if settings.get("checkpointing"):
        words = "forward pass computed twice: 4/3 of the compute"
        yield Cost(option="checkpointing", weight=0.8, words=words)
    if settings.get("loss"):
        yield Cost(option="loss", weight=0.3, words="loss in chunks (Liger's kernel)")
    if settings.get("grad_accum"):
        words = f"batch {work.batch}, {work.grad_accum} micro-batches a step"
        yield Cost(option="grad_accum", weight=0.2, words=words)
    if work.gpus > 1 and work.strategy in _STRATEGIES:
        weight = 0.2 if work.strategy == "ddp" else 0.4
        yield Cost(option="strategy", weight=weight, words=_STRATEGIES[work.strategy])
