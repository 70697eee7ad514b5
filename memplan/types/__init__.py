"""The core types: what flows through the program.

    ModelSpec + Workload -> Footprint -> (+ Device) Plan -> (+ Run, Sample, Phase) Comparison

All are frozen, slotted, keyword-only and hashable. Sizes are whole bytes, times whole
nanoseconds since the epoch (UTC), and None means "not available" (never 0 or -1).
Field names are the JSON keys; `memplan.serialize` turns each type to JSON and back.
`extra` keeps the fields that a newer minor version wrote, so that a round trip loses nothing.

What is measured is loaded at once; plans, models and workloads when somebody names one: the sampler
and a first screen need none, and dataclasses take longer to make than all else at the start.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from memplan.types.base import (
    PARTS,
    Basis,
    CompareVerdict,
    DeviceKind,
    FrozenMap,
    ModelSource,
    Part,
    RunStatus,
)
from memplan.types.device import Device
from memplan.types.run import (
    Comparison,
    DeviceComparison,
    Event,
    PartComparison,
    Peak,
    Phase,
    Run,
    Sample,
    Series,
)

if TYPE_CHECKING:
    from memplan.types.model import Layer, ModelSpec, ModelSummary, State, Tensor, Vision
    from memplan.types.plan import (
        Beside,
        Change,
        Footprint,
        Ledger,
        Line,
        Placement,
        Plan,
        Range,
        Verdict,
    )
    from memplan.types.workload import Workload

__all__ = [
    "PARTS",
    "Basis",
    "Beside",
    "Change",
    "CompareVerdict",
    "Comparison",
    "Device",
    "DeviceComparison",
    "DeviceKind",
    "Event",
    "Footprint",
    "FrozenMap",
    "Layer",
    "Ledger",
    "Line",
    "ModelSource",
    "ModelSpec",
    "ModelSummary",
    "Part",
    "PartComparison",
    "Peak",
    "Phase",
    "Placement",
    "Plan",
    "Range",
    "Run",
    "RunStatus",
    "Sample",
    "Series",
    "State",
    "Tensor",
    "Verdict",
    "Vision",
    "Workload",
]

_LATER = ("model", "plan", "workload")
"""Modules whose types are loaded when one of them is named."""


def __getattr__(name: str) -> Any:
    """Load a type that is not there yet."""
    if name in __all__:
        for module in _LATER:
            found = importlib.import_module(f"memplan.types.{module}")
            if name in found.__all__:
                globals()[name] = getattr(found, name)
                return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
