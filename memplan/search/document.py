"""A search's answer as JSON: `memplan.fit/1`."""

from __future__ import annotations

from typing import Any

from memplan.search.types import Alternative, Fit
from memplan.serialize import to_dict

__all__ = ["document"]

SCHEMA = "memplan.fit/1"


def document(fit: Fit) -> dict[str, Any]:
    """Return a JSON-ready dict; sizes are whole bytes, what is unknown is null."""
    asked = fit.asked
    return {
        "schema": SCHEMA,
        "model": to_dict(fit.model),
        "task": fit.task,
        "asked": {
            "command": fit.command,
            "fits": asked.verdict.fits,
            "reason": asked.verdict.reason,
            "total_bytes": asked.footprint.total_bytes,
            "low_bytes": asked.footprint.low_bytes,
            "high_bytes": asked.footprint.high_bytes,
            "offloaded_bytes": asked.placement.offloaded_bytes,
            "rooms": to_dict(fit.rooms),
            "workload": to_dict(asked.workload),
        },
        "constraints": to_dict(fit.constraints),
        "binding": to_dict(fit.binding),
        "alternatives": [_alternative(i, one) for i, one in enumerate(fit.alternatives, 1)],
        "left_out": fit.left_out,
        "nearest": [_alternative(i, one) for i, one in enumerate(fit.nearest, 1)],
        "plans": fit.plans,
    }


def _alternative(rank: int, one: Alternative) -> dict[str, Any]:
    return {
        "rank": rank,
        "settings": to_dict(one.settings),
        "command": one.command,
        "plan_id": one.plan.id,
        "fits": one.plan.verdict.fits,
        "basis": one.basis,
        "runtime": one.engine,
        "gpus": one.plan.workload.gpus,
        "total_bytes": one.total_bytes,
        "high_bytes": one.high_bytes,
        "free_bytes": one.free_bytes,
        "offloaded_bytes": one.offloaded_bytes,
        "decode_tokens_per_s": to_dict(one.decode_tokens_per_s),
        "bits_per_weight": one.bits_per_weight,
        "quality": to_dict(one.quality),
        "costs": to_dict(one.costs),
        "rooms": to_dict(one.rooms),
    }
