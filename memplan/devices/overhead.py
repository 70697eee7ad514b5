"""What a process takes on a GPU beside its tensors, by GPU and engine: overhead.json.

Every row says what it was measured on and where that was published. The row that says most about
a case is taken: a GPU generation's before every GPU's, an engine's before every engine's. What
nobody published for a device falls back to the widest range.
"""

from __future__ import annotations

import importlib.resources
import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from memplan.footprint.overhead import Cost

__all__ = ["OverheadRow", "fixed_costs", "overhead_rows", "table_version"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OverheadRow:
    """One published range."""

    component: str
    """"context", "cublas_workspace", "cublaslt_workspace", "nccl" or "cuda_graphs"."""
    vendor: str | None
    """Who makes the GPU; None = anybody."""
    compute: tuple[str, ...] | None
    """Compute capabilities, such as "8.6"; None = any."""
    runtime: str | None
    """Engine; None = any."""
    gpus: int | None
    """GPUs that work together; None = any number."""
    low_bytes: int
    """Lower end."""
    typical_bytes: int
    """What to count on."""
    high_bytes: int
    """Upper end."""
    measured_on: str
    """GPUs and software."""
    source: str
    """Where it was published."""

    def rank(self, wish: tuple[str | None, str | None, str, int]) -> int | None:
        """Return how much this row says about (vendor, compute, runtime, gpus); None = nothing."""
        vendor, compute, runtime, gpus = wish
        matches = (
            (self.vendor, self.vendor == vendor),
            (self.compute, self.compute is not None and compute in self.compute),
            (self.runtime, self.runtime == runtime),
            (self.gpus, self.gpus == gpus),
        )
        if not all(same for value, same in matches if value is not None):
            return None
        weights = (1, 2, 8, 4)
        return sum(w for w, (value, _) in zip(weights, matches, strict=True) if value is not None)


@cache
def _table() -> dict[str, Any]:
    file = importlib.resources.files("memplan.devices").joinpath("overhead.json")
    data: dict[str, Any] = json.loads(file.read_bytes())
    return data


def table_version() -> str:
    """Return the date of the table."""
    return str(_table()["version"])


@cache
def overhead_rows() -> tuple[OverheadRow, ...]:
    """Return every row of the table."""
    rows = []
    for row in _table()["rows"]:
        compute = tuple(row["compute"]) if row["compute"] else None
        rows.append(OverheadRow(**{**row, "compute": compute}))
    return tuple(rows)


def fixed_costs(
    *, vendor: str | None, compute: str | None, runtime: str, gpus: int
) -> tuple[Cost, ...]:
    """Return what one process of an engine takes on one GPU, component by component.

    Args:
        vendor: who makes the GPU, if known.
        compute: its compute capability, such as "8.9", if known.
        runtime: the engine's name.
        gpus: how many GPUs work together.
    """
    wish = (vendor, compute, runtime, gpus)
    costs = []
    for component in _table()["runtimes"].get(runtime, ("context",)):
        ranked = [
            (rank, row)
            for row in overhead_rows()
            if row.component == component and (rank := row.rank(wish)) is not None
        ]
        row = max(ranked, key=lambda pair: pair[0])[1]
        if row.high_bytes:
            costs.append(
                Cost(
                    name=component.replace("_", " "),
                    bytes=row.typical_bytes,
                    low_bytes=row.low_bytes,
                    high_bytes=row.high_bytes,
                    source=row.source,
                )
            )
    return tuple(costs)
