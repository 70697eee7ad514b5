"""Reading measurements: one JSON object a line, in the format of `memplan validate`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memplan.errors import ModelNotFoundError, SchemaError

__all__ = ["COUNTERS", "QUANTITIES", "Case", "read_cases"]

QUANTITIES = ("weights", "kv_cache", "state_cache", "activations", "total", "parameters")
COUNTERS = ("allocated", "reserved", "process")
"""What a total counts: "allocated" the tensors (torch.cuda.max_memory_allocated, an engine's
buffers), "process" the context and libraries too (NVML, RSS)."""

MAX_FILE_BYTES = 256 * 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One real measurement."""

    id: str
    """Its name."""
    model: str | Mapping[str, Any]
    """A MODEL argument, or an inline config.json."""
    options: Mapping[str, Any]
    """Options of `plan`, with _ for -."""
    quantity: str
    """One of QUANTITIES."""
    per: str
    """"device" or "model"."""
    measured: int
    """Bytes, or a number of parameters."""
    tolerance: float
    """Relative resolution of the measurement: an error below it is none."""
    counter: str
    """One of COUNTERS, for totals."""
    source: str
    """Where it was published."""
    group: str = ""
    """Name of its row in the table of trainings; "" = by its options."""
    folder: str = "."
    """Folder of its file: the code of a MODEL "module:callable" is looked for there first."""


def read_cases(path: Path) -> list[Case]:
    """Return the cases of a file.

    Raises ModelNotFoundError when it is not there and SchemaError, with the line's number, for
    what is not in the format.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise SchemaError(f"{path} is larger than 256 MiB", hint="split the file")
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{path} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SchemaError(f"cannot read {path}: {error}") from error
    cases = [_case(line, f"{path}:{i}", path) for i, line in enumerate(lines, 1) if line.strip()]
    if not cases:
        raise SchemaError(f"{path} has no cases", hint="one JSON object a line")
    return cases


def _case(line: str, where: str, path: Path) -> Case:
    try:
        row = json.loads(line, parse_constant=_refuse)
        measured = row["measured"] if row["quantity"] == "parameters" else row["measured_bytes"]
        model = row["model"]
        case = Case(
            id=str(row["id"]),
            model=dict(model["config"]) if isinstance(model, dict) else str(model),
            options=dict(row.get("options") or {}),
            quantity=str(row["quantity"]),
            per=str(row.get("per", "model")),
            measured=_whole(measured),
            tolerance=float(row.get("tolerance") or 0.0),
            counter=str(row.get("counter", "allocated")),
            source=str(row.get("source", "")),
            group=str(row.get("group", "")),
            folder=str(path.resolve().parent),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SchemaError(
            f"{where}: not a case: {type(error).__name__}: {error}",
            hint='{"id", "model", "options", "quantity", "per", "measured_bytes", "source"}',
        ) from error
    for value, allowed, name in (
        (case.quantity, QUANTITIES, "quantity"),
        (case.per, ("device", "model"), "per"),
        (case.counter, COUNTERS, "counter"),
    ):
        if value not in allowed:
            raise SchemaError(f"{where}: {name} {value!r}", hint="one of: " + ", ".join(allowed))
    if case.measured <= 0 or not 0 <= case.tolerance < 1:
        raise SchemaError(f"{where}: a measurement must be above 0 and its tolerance below 1")
    return case


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return round(value)


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not allowed")
