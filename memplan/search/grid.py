"""A grid of plans as rows of a table: its points, its columns, one row of a plan or an error."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from memplan.search.ask import free_bytes
from memplan.types import PARTS, Plan, Workload

__all__ = ["COLUMNS", "error_row", "plan_row", "points"]

_WORK = tuple(x.name for x in fields(Workload) if x.name not in ("assumed", "extra"))
_MODEL = ("model", "architecture", "parameters", "weight_format")
_TOTALS = ("fits", "total_bytes", "low_bytes", "high_bytes", "capacity_bytes", "free_bytes")
_PLACED = ("offloaded_bytes", "streamed_bytes_per_token", "decode_tokens_per_s")

COLUMNS: tuple[str, ...] = (
    *_MODEL,
    *_WORK,
    *_TOTALS,
    *(f"{part}_bytes" for part in PARTS),
    *_PLACED,
    *("reason", "error", "hint"),
)
"""Names of the columns, in their order; sizes are bytes on the fullest computing device."""


def points(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Yield every combination of the values of some options, the last one changing first."""
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def plan_row(model: str, plan: Plan) -> dict[str, Any]:
    """Return a plan as one row: every option with the value used, totals, parts, verdict."""
    work = plan.workload
    computing = [x for x in plan.devices if x.kind == "gpu"] or list(plan.devices[:1])
    fullest = max(computing, key=lambda ledger: ledger.total_bytes - ledger.capacity_bytes)
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {"model": model, "architecture": plan.model.architecture}
    row |= {"parameters": plan.model.parameters, "weight_format": plan.model.weight_format}
    row |= {name: getattr(work, name) for name in _WORK}
    row["device"] = "+".join(work.device)
    row |= {
        "fits": plan.verdict.fits,
        "total_bytes": fullest.total_bytes,
        "low_bytes": fullest.low_bytes,
        "high_bytes": fullest.high_bytes,
        "capacity_bytes": fullest.capacity_bytes,
        "free_bytes": free_bytes(plan),
    }
    row |= {f"{part}_bytes": fullest.parts.get(part, 0) for part in PARTS}
    row |= {
        "offloaded_bytes": plan.placement.offloaded_bytes,
        "streamed_bytes_per_token": plan.placement.streamed_bytes_per_token,
        "decode_tokens_per_s": plan.placement.decode_tokens_per_s.value,
        "reason": plan.verdict.reason,
    }
    return row


def error_row(model: str, options: Mapping[str, Any], problem: Exception) -> dict[str, Any]:
    """Return the row of a point that could not be planned: what was asked, and why not."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {name: value for name, value in options.items() if name in _WORK}
    device = options.get("device")
    row["device"] = "+".join(device) if isinstance(device, tuple) else device
    row |= {"model": model, "error": str(problem), "hint": getattr(problem, "hint", "")}
    return row
