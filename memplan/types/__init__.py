"""The core types: what flows through the program.

    ModelSpec + Workload -> Footprint -> (+ Device) Plan -> (+ Run, Sample, Phase) Comparison

All are frozen, slotted, keyword-only and hashable. Sizes are whole bytes, times whole
nanoseconds since the epoch (UTC), and None means "not available" (never 0 or -1).
Field names are the JSON keys; `memplan.serialize` turns each type to JSON and back.
`extra` keeps the fields that a newer minor version wrote, so that a round trip loses nothing.
"""

from __future__ import annotations

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
from memplan.types.model import Layer, ModelSpec, ModelSummary, State, Tensor, Vision
from memplan.types.plan import (
    Beside,
    Change,
    Device,
    Footprint,
    Ledger,
    Line,
    Placement,
    Plan,
    Range,
    Verdict,
)
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

Core = ModelSpec | Footprint | Plan | Run | Phase | Event | Comparison
"""The types that stand alone as JSON documents, each with a schema tag."""
