"""One case -> what the planner says to it."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memplan.errors import MemplanError, MissingDependencyError
from memplan.footprint.defaults import complete, weight_dtype
from memplan.footprint.optimizer import PAGED
from memplan.models.load import load_model
from memplan.models.module import is_callable_name
from memplan.trace.estimate import RESERVED, TraceEstimator
from memplan.types import Footprint, ModelSpec, Workload
from memplan.validate.cases import Case

__all__ = ["Prediction", "predict", "predict_all"]

_PLACES = ("device", "host_memory", "disk", "reserve", "host_bandwidth", "disk_bandwidth")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A case and its prediction."""

    case: Case
    """The measurement."""
    runtime: str
    """The engine whose rules were used; "-" when there is no prediction."""
    value: int | None
    """Best estimate; None when the planner refused."""
    low: int | None
    """Lower end of the band."""
    high: int | None
    """Upper end of the band."""
    problem: str = ""
    """Why there is no prediction."""
    skipped: bool = False
    """The code that would build the model is not installed: neither right nor wrong."""

    @property
    def error(self) -> float | None:
        """Signed relative error; 0 within the measurement's own resolution."""
        if self.value is None:
            return None
        error = (self.value - self.case.measured) / self.case.measured
        return 0.0 if abs(error) <= self.case.tolerance else error

    @property
    def within(self) -> bool:
        """The measurement lies in the band, or off it by less than its resolution."""
        if self.low is None or self.high is None:
            return False
        slack = self.case.tolerance * self.case.measured
        return self.low - slack <= self.case.measured <= self.high + slack

    @property
    def unsafe(self) -> bool:
        """The upper end of the band is below the measurement: the plan would have failed."""
        slack = self.case.tolerance * self.case.measured
        return self.high is not None and self.high + slack < self.case.measured


def predict_all(cases: Sequence[Case]) -> Iterator[Prediction]:
    """Yield the prediction of each case, in order; traces in as many processes as there are cores.

    A kept trace or a closed form costs milliseconds, a new trace seconds.
    """
    traced = sum(case.options.get("task") == "train" for case in cases)
    workers = min(len(os.sched_getaffinity(0)), traced // _EACH)
    if workers < 2:
        yield from map(predict, cases)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=workers, mp_context=context) as pool:
        yield from pool.map(predict, cases)


_EACH = 4
"""Traces that a process of its own, which imports torch anew, is worth."""


def predict(case: Case) -> Prediction:
    """Plan a case. A model or option that cannot be planned is a prediction with a problem."""
    try:
        with _beside(case):
            spec, workload = _planned(case)
            value, low, high = _quantity(case, spec, workload)
    except MemplanError as error:
        return Prediction(
            case=case,
            runtime="-",
            value=None,
            low=None,
            high=None,
            problem=str(error),
            skipped=isinstance(error, MissingDependencyError) and _is_code(case),
        )
    return Prediction(case=case, runtime=workload.runtime, value=value, low=low, high=high)


def _is_code(case: Case) -> bool:
    return isinstance(case.model, str) and is_callable_name(case.model)


@contextlib.contextmanager
def _beside(case: Case) -> Iterator[None]:
    """Let the code that a case names be found in the folder of its file."""
    if not _is_code(case):
        yield
        return
    sys.path.insert(0, case.folder)
    try:
        yield
    finally:
        sys.path.remove(case.folder)


def _planned(case: Case) -> tuple[ModelSpec, Workload]:
    options = {name: value for name, value in case.options.items() if name not in _PLACES}
    with tempfile.TemporaryDirectory(prefix="memplan-") as folder:
        argument = case.model
        if isinstance(argument, Mapping):
            path = Path(folder) / "config.json"
            path.write_text(json.dumps(argument), encoding="utf-8")
            argument = str(path)
        spec = load_model(argument, dtype=weight_dtype(options), options=options)
    return spec, complete(options, spec)


def _quantity(case: Case, spec: ModelSpec, workload: Workload) -> tuple[int, int, int]:
    if case.quantity == "parameters":
        return (spec.parameters,) * 3
    ranks = workload.tp if case.per == "device" else 1
    if case.quantity == "weights":
        lines = [("weights", spec.weight_bytes), *_kept_tables(spec, workload)]
        total = sum(size for _, size in lines) // ranks
        return total, total, total
    footprint = TraceEstimator()(spec, workload)
    if case.quantity == "total":
        return _total(footprint, case)
    found = [line for line in footprint.lines if line.part == case.quantity]
    value = sum(line.bytes for line in found)
    return value, sum(x.low_bytes for x in found), sum(x.high_bytes for x in found)


def _kept_tables(spec: ModelSpec, workload: Workload) -> list[tuple[str, int]]:
    """VLLM counts its table of rotary angles with the weights: positions x rotary size x 2 B."""
    if workload.runtime != "vllm" or not spec.max_context or not spec.rotary_dim:
        return []
    return [("rotary table", spec.max_context * spec.rotary_dim * 2)]


def _counts(line: Any, case: Case) -> bool:
    """Say whether a line is in what a counter counts.

    torch's counters know no context, and nothing in unified memory.
    """
    if line.source == RESERVED:
        return case.counter == "reserved"
    return bool(line.part != "overhead" and line.source != PAGED)


def _total(footprint: Footprint, case: Case) -> tuple[int, int, int]:
    lines: list[Any] = list(footprint.lines)
    if case.counter != "process":
        lines = [line for line in lines if _counts(line, case)]
    return (
        sum(line.bytes for line in lines),
        sum(line.low_bytes for line in lines),
        sum(line.high_bytes for line in lines),
    )
