"""Which of the alternatives are worth a line, and in which order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from memplan.search.types import Alternative

__all__ = ["best_first", "undominated"]


def best_first(found: Iterable[Alternative]) -> list[Alternative]:
    """Return alternatives: least given up first, then the fastest, then the smallest.

    So that the first lines show what kinds there are, each line of a kind (engine, GPUs, weights
    on them or not) counts one more than the one before.
    """
    kinds: Counter[tuple[object, ...]] = Counter()
    ordered = []
    for one in sorted(found, key=lambda one: (one.weight, *_ties(one))):
        work = one.plan.workload
        kind = (one.engine, work.gpus, work.method, one.offloaded_bytes > 0)
        ordered.append((one.weight + _AGAIN * kinds[kind], *_ties(one), one))
        kinds[kind] += 1
    return [row[-1] for row in sorted(ordered, key=lambda row: row[:-1])]


_AGAIN = 1.0


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
