"""What may be changed so that a training fits: method, optimizer, checkpointing, loss, GPUs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from memplan.search.ask import Grow, Question, Settings
from memplan.search.infer import GPU_COUNTS, PLAIN, Facts
from memplan.types import Plan

__all__ = ["candidates", "micro_batch", "rooms", "shorter"]

_METHODS: tuple[Settings, ...] = ({}, {"method": "lora"}, {"method": "qlora"})
_OPTIMIZERS: tuple[Settings, ...] = (
    {},
    {"optimizer": "adamw-8bit"},
    {"optimizer": "adafactor"},
)
_CHECKPOINTING: tuple[Settings, ...] = ({}, {"checkpointing": "full"})
_LOSSES: tuple[Settings, ...] = ({}, {"loss": "chunked"})
_STRATEGIES = ("ddp", "fsdp2")

LEAST_SEQUENCE = 256
"""Shortest sequence that a search offers, tokens."""
_MOST_SEQUENCE = 1_048_576
_MOST_BATCH = 4096
_STEP = 128
_PROBES = 4


def candidates(asked: Plan, given: frozenset[str], facts: Facts) -> list[Settings]:
    """Return sets of changes, all different, the plan as asked first.

    Args:
        asked: the plan as asked.
        given: options that the user set.
        facts: of model and devices.
    """
    found: dict[tuple[tuple[str, Any], ...], Settings] = {}
    axes = (
        _free(_methods(asked, given), given),
        _free(_OPTIMIZERS, given),
        _free(_CHECKPOINTING, given),
        _free(_LOSSES, given),
        _several(given, facts, asked),
    )
    for parts in itertools.product(*axes):
        settings = {name: value for part in parts for name, value in part.items()}
        if _odd(settings, asked):
            continue
        found.setdefault(tuple(sorted(settings.items())), settings)
    return list(found.values())


def _methods(asked: Plan, given: frozenset[str]) -> Sequence[Settings]:
    """Return methods; what names adapters, or packed weights, leaves no choice."""
    fixed = given & {"lora_rank", "lora_targets", "lora_dropout", "lora_dtype", "quant"}
    plain = asked.model.weight_format in PLAIN
    return _METHODS if plain and not fixed else ({},)


def _free(axis: Sequence[Settings], given: frozenset[str]) -> Sequence[Settings]:
    return [settings for settings in axis if not given & settings.keys()]


def _several(given: frozenset[str], facts: Facts, asked: Plan) -> Sequence[Settings]:
    fixed = {"gpus", "nodes", "strategy", "tp", "pp", "dp", "ep", "cp"}
    if given & fixed or not facts.repeatable or asked.devices[0].kind != "gpu":
        return ({},)
    more = [{"gpus": count, "strategy": name} for count in GPU_COUNTS[1:] for name in _STRATEGIES]
    return [{}, *more]


def _odd(settings: Settings, asked: Plan) -> bool:
    """Say whether nobody would: another optimizer for few adapters, packed weights in shards."""
    method = settings.get("method") or asked.workload.method
    if method != "full" and "optimizer" in settings:
        return True
    same = any(value == getattr(asked.workload, name) for name, value in settings.items())
    return same or (method == "qlora" and settings.get("strategy") == "fsdp2")


def shorter(settings: Settings, asked: Plan, given: frozenset[str]) -> Question | None:
    """Return the question for the longest sequence with some changes, or None when it is set."""
    now = asked.workload.seq or 0
    if "seq" in given or now <= LEAST_SEQUENCE:
        return None
    grow = Grow(option="seq", least=LEAST_SEQUENCE, most=now - _STEP, step=_STEP)
    return Question(name="", steps=({**settings, "seq": LEAST_SEQUENCE},), grow=grow)


def rooms(name: str, settings: Settings, plan: Plan, facts: Facts) -> list[Question]:
    """Return how far batch and sequences of a plan that fits can grow.

    A trace takes seconds: three say where the room of a line through two of them ends.
    """
    probes = _PROBES if plan.workload.estimator == "trace" else None
    batch, seq = plan.workload.batch, plan.workload.seq or 0
    longest = max(facts.most_context or _MOST_SEQUENCE, seq)
    limits = (
        Grow(option="batch", least=batch, most=max(_MOST_BATCH, batch), probes=probes),
        Grow(option="seq", least=seq, most=longest, step=_STEP, probes=probes),
    )
    return [Question(name=name, steps=(settings,), grow=grow) for grow in limits]


def micro_batch(wanted: int, gpus: int, most: int) -> tuple[int, int] | None:
    """Return (batch of one GPU, micro-batches) whose product is what a step must see.

    Args:
        wanted: sequences in one step, all GPUs together.
        gpus: GPUs that each see others.
        most: largest batch that fits on one.

    Returns None when the GPUs do not share them evenly, or none fits.
    """
    if wanted % gpus or most < 1:
        return None
    each = wanted // gpus
    batch = next(size for size in range(min(most, each), 0, -1) if each % size == 0)
    return batch, each // batch


def accumulated(wanted: int, gpus: int, most: int) -> Mapping[str, int] | None:
    """Return `micro_batch` as options."""
    split = micro_batch(wanted, gpus, most)
    return None if split is None else {"batch": split[0], "grad_accum": split[1]}
