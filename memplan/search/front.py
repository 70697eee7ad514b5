"""Which of the alternatives are worth a line, and in which order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from memplan.search.types import Alternative

__all__ = ["best_first", "undominated"]


def best_first(found: Iterable[Alternative]) -> list[Alternative]:
    """Return alternatives: least given up first, then the fastest, then the smallest.

    So that the first lines show what kinds there are, each line that is already listed with as
    many GPUs, weights on them or not, makes the next of that kind a little heavier, and one on the
    same engine more so.
    """
    rest = sorted(found, key=lambda one: (one.weight, *_ties(one)))
    alike: defaultdict[object, float] = defaultdict(float)
    ordered = []
    while rest:
        best = min(rest, key=lambda one: one.weight + sum(alike[kind] for kind in _kinds(one)))
        rest.remove(best)
        ordered.append(best)
        for kind, weight in zip(_kinds(best), _AGAIN, strict=True):
            alike[kind] += weight
    return ordered


_AGAIN = (0.5, 1.0)
"""How much heavier a line becomes by one before it that is alike in the coarse, or in all."""


def _kinds(one: Alternative) -> tuple[object, object]:
    work = one.plan.workload
    coarse = (work.gpus, one.offloaded_bytes > 0, work.method)
    return coarse, (*coarse, one.engine, work.checkpointing)


def _ties(one: Alternative) -> tuple[float, int, str]:
    return (-_speed(one), one.total_bytes, one.command)


def undominated(found: Sequence[Alternative]) -> list[Alternative]:
    """Return the Pareto front: nothing else on the same engine is as good in all that counts.

    What counts: GPUs, memory of the fullest device, speed, bits of a weight (in a training: what
    is given up of method and optimizer), what is given up in all, context, and, in a training
    where it is known, how large the batch and how long the sequences can be.
    """
    scores = [_score(one) for one in found]
    return [
        one
        for i, one in enumerate(found)
        if not any(
            found[j].engine == one.engine and _beats(other, scores[i], first=j < i)
            for j, other in enumerate(scores)
            if j != i
        )
    ]


def _score(one: Alternative) -> tuple[float, ...]:
    """Return what counts, more is better in each place."""
    work = one.plan.workload
    rooms = {room.option: float(room.value) for room in one.rooms}
    given_up = sum(cost.weight for cost in one.costs if cost.option in _LEARNING)
    return (
        -float(work.gpus),
        -float(one.total_bytes),
        _speed(one),
        one.bits_per_weight if work.task == "infer" else -given_up,
        -one.weight,
        float(work.context or work.seq or 0),
        *(rooms.get(name, 0.0) for name in ("batch", "seq") if work.task == "train"),
    )


_LEARNING = ("method", "optimizer")
"""Changes after which a training learns otherwise."""


def _beats(one: tuple[float, ...], other: tuple[float, ...], *, first: bool) -> bool:
    """Say whether one is at least as good everywhere; of two that are alike the first stays."""
    good = all(x >= y for x, y in zip(one, other, strict=True))
    return good and (first or one != other)


def _speed(one: Alternative) -> float:
    """Return tokens a second; what lives on the GPU beats what does not where nothing is known."""
    value = one.decode_tokens_per_s.value
    if value is not None:
        return value
    return 0.0 if one.offloaded_bytes else float("inf")
