"""Predictions -> the accuracy of each quantity in each runtime."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from memplan.validate.predict import Prediction

__all__ = ["Row", "rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Accuracy of one quantity in one runtime."""

    quantity: str
    """What was measured."""
    runtime: str
    """The engine."""
    group: str
    """Kind of training and counter ("full and LoRA, allocated"); "" for inference."""
    cases: int
    """Cases with a prediction."""
    refused: int
    """Cases that the planner refused."""
    median: float | None
    """Median of the absolute relative error."""
    p90: float | None
    """Its 90th percentile (nearest rank)."""
    in_band: float | None
    """Share of cases whose measurement lies in the band."""
    unsafe: int
    """Cases whose measurement lies above the band."""


def rows(predictions: Sequence[Prediction]) -> list[Row]:
    """Return one row for each quantity and runtime, and one for each quantity overall."""
    groups: dict[tuple[str, str, str], list[Prediction]] = {}
    for prediction in predictions:
        if prediction.skipped:
            continue
        runtime = str(prediction.case.options.get("runtime") or prediction.runtime)
        key = (prediction.case.quantity, runtime, _group(prediction))
        groups.setdefault(key, []).append(prediction)
    return [_row(*key, group) for key, group in sorted(groups.items())]


def _group(prediction: Prediction) -> str:
    """Return what tells trainings apart."""
    options = prediction.case.options
    if options.get("task") != "train":
        return ""
    if prediction.case.group:
        return f"{prediction.case.group}, {prediction.case.counter}"
    packed = options.get("method") == "qlora" or options.get("quant") not in (None, "none")
    return f"{'QLoRA' if packed else 'full and LoRA'}, {prediction.case.counter}"


def _row(quantity: str, runtime: str, kind: str, group: Sequence[Prediction]) -> Row:
    errors = sorted(abs(p.error) for p in group if p.error is not None)
    known = [p for p in group if p.value is not None]
    return Row(
        quantity=quantity,
        runtime=runtime,
        group=kind,
        cases=len(known),
        refused=len(group) - len(known),
        median=statistics.median(errors) if errors else None,
        p90=errors[-(-9 * len(errors) // 10) - 1] if errors else None,
        in_band=sum(p.within for p in known) / len(known) if known else None,
        unsafe=sum(p.unsafe for p in known),
    )
