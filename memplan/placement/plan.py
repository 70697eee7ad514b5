"""ModelSpec + Workload + Devices -> Plan: needs, places, verdict, and what would change it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import memplan
from memplan.footprint.draft import draft_lines
from memplan.footprint.estimate import estimate
from memplan.footprint.overhead import Cost
from memplan.parallel.infer import rank_spec
from memplan.parallel.moments import closed_moments
from memplan.placement.advice import find_changes, sensitivity
from memplan.placement.assign import assign
from memplan.placement.cost import Speeds, decode_speed, prefill_speed, speeds
from memplan.placement.engines import PROFILES, EngineProfile, profile_of
from memplan.placement.llamacpp import assign_llamacpp
from memplan.placement.llamacpp_speed import shared_placement
from memplan.placement.loads import Assignment, ledgers
from memplan.placement.mapping import device_map
from memplan.placement.ranks import assign_copies, assign_ranks, fullest_rank, offloads
from memplan.placement.units import Unit, cut
from memplan.placement.verdict import verdict
from memplan.placement.words import warnings
from memplan.types import (
    Device,
    Footprint,
    FrozenMap,
    ModelSpec,
    Placement,
    Plan,
    Range,
    Workload,
)

__all__ = ["Estimator", "make_plan"]

Estimator = Callable[..., Footprint]
"""`memplan.footprint.estimate.estimate`, or a callable with its arguments."""


def make_plan(
    spec: ModelSpec,
    workload: Workload,
    devices: Sequence[Device],
    *,
    draft: ModelSpec | None = None,
    baseline: int | None = None,
    costs: Sequence[Cost] = (),
    created_ns: int = 0,
    estimator: Estimator = estimate,
    quants: Mapping[str, Callable[[], ModelSpec]] | None = None,
    changes: bool = True,
) -> Plan:
    """Return the plan of one workload on given devices, with changes when it does not fit.

    Args:
        spec: the model in the dtype that it is loaded in.
        workload: complete (`memplan.footprint.defaults.complete`).
        devices: GPUs in order, then host memory, then disk.
        draft: the model that drafts tokens, where "draft" names one.
        baseline: measured RSS of the interpreter in bytes, for plans in which the host computes.
        costs: what a GPU's context and libraries take, if known.
        created_ns: the caller's clock.
        estimator: `memplan.footprint.estimate.estimate`, or what answers more exactly. One that is
            slow has a method `quick` that the search for changes asks first.
        quants: quantization's name -> the model in it, made only when a plan does not fit.
        changes: look for single changes that make it fit. A search of its own needs none.

    Raises UsageError and UnsupportedModelError.
    """

    def replan(
        other: Workload,
        by: Estimator = estimator,
        *,
        on: Sequence[Device] = devices,
        model: ModelSpec = spec,
    ) -> Plan:
        found = _plan(model, other, on, draft=draft, baseline=baseline, costs=costs, by=by)
        return replace(found, created_ns=created_ns)

    plan = replan(workload)
    quick = getattr(estimator, "quick", None)
    fast = partial(replan, by=quick) if quick else replan
    if not changes:
        return plan
    if plan.verdict.fits:
        return plan
    found = find_changes(spec, plan, devices, replan=replan, quick=fast, quants=quants)
    return replace(plan, verdict=replace(plan.verdict, changes=tuple(found)))


def _plan(
    spec: ModelSpec,
    workload: Workload,
    devices: Sequence[Device],
    *,
    draft: ModelSpec | None,
    baseline: int | None,
    costs: Sequence[Cost],
    by: Estimator,
) -> Plan:
    gpus = [device for device in devices if device.kind == "gpu"]
    beside = draft_lines(spec, workload, draft)
    divided = workload.task == "infer" and workload.tp > 1
    own = rank_spec(spec, workload) if divided else spec
    footprint = by(
        own,
        workload,
        kind="gpu" if gpus else "cpu",
        baseline=baseline,
        costs=costs,
        beside=beside,
    )
    units = cut(own)
    ranks = workload.task == "train" and (len(gpus) > 1 or offloads(workload))
    if divided:
        assignment = assign_copies(own, workload, footprint, units, devices, beside=beside)
    elif ranks:
        moments = getattr(by, "moments", closed_moments)
        assignment = assign_ranks(spec, workload, footprint, devices, moments)
    elif gpus and workload.runtime == "llama.cpp":
        assignment = assign_llamacpp(spec, workload, footprint, units, devices, beside=beside)
    else:
        assignment = assign(spec, workload, footprint, units, devices, beside=beside)
    books = ledgers(devices, assignment.lines, assignment.reused)
    if ranks or len(gpus) > 1:
        fullest = max(books[: len(gpus)], key=lambda ledger: ledger.total_bytes)
        footprint = Footprint(lines=assignment.lines[fullest.name])
    shared = fullest_rank(devices) if divided else devices
    placement = _placement(own, workload, units, assignment, shared)
    judged = verdict(books, assignment, profile_of(workload))
    if judged.fits and not workload.pin:
        more = sensitivity(placement, assignment.short_bytes, gpus)
        judged = replace(judged, sensitivity=more)
    return Plan(
        id=None,
        model=spec.summary(),
        workload=workload,
        footprint=footprint,
        devices=books,
        placement=placement,
        verdict=judged,
        memplan_version=memplan.__version__,
    )


def _placement(
    spec: ModelSpec,
    workload: Workload,
    units: Sequence[Unit],
    assignment: Assignment,
    devices: Sequence[Device],
) -> Placement:
    where = assignment.where
    engine = profile_of(workload)
    if assignment.modules is not None:
        return shared_placement(spec, workload, assignment, devices, engine)
    costs = _Costs(spec, workload, units, assignment, devices)
    computing = costs.computing
    away = [u for u in units if where.get(u.position, "") not in computing] if where else []
    streamed = [u for u in away if u.position not in assignment.hosted]
    own = costs.decode(engine)
    others = {engine.name: own.value}
    if any(unit.active_share < 1 for unit in streamed):
        others["cpu-compute"] = costs.decode(PROFILES["cpu-compute"]).value
    return Placement(
        device_map=device_map(units, where) if where and workload.tp == 1 else FrozenMap(),
        offloaded_bytes=sum(assignment.offloaded.values()),
        streamed_bytes_per_token=sum(engine.decode_bytes(unit) for unit in streamed),
        decode_tokens_per_s=own,
        policy=assignment.policy,
        engine=engine.name,
        host_lookup=tuple(n for u in units if u.position in assignment.hosted for n in u.names),
        prefill_tokens_per_s=costs.prefill(engine),
        speed_source=costs.rates.source if own.value is not None else "",
        settings=assignment.settings,
        warnings=warnings(streamed, engine, others),
    )


class _Costs:
    """Speeds of one assignment by any engine's rules."""

    def __init__(
        self,
        spec: ModelSpec,
        workload: Workload,
        units: Sequence[Unit],
        assignment: Assignment,
        devices: Sequence[Device],
    ) -> None:
        self.rates: Speeds = speeds(devices)
        gpus = {device.name for device in devices if device.kind == "gpu"}
        self.computing = gpus or {devices[0].name}
        self._units, self._assignment, self._workload = units, assignment, workload
        # One rank's: its weights are counted, the active ones are those of the whole model.
        active = spec.active_parameters
        self._parameters = active // workload.tp if active else spec.parameters
        lines = (line for name in self.computing for line in assignment.lines.get(name, ()))
        self._cache = sum(x.bytes for x in lines if x.part in ("kv_cache", "state_cache"))

    def decode(self, engine: EngineProfile) -> Range:
        """Return tokens a second of one sequence."""
        if not self._assignment.where or self._workload.task == "train":
            return Range()
        return decode_speed(
            self._units,
            self._assignment.where,
            engine,
            self.rates,
            cache_bytes=self._cache // self._workload.batch,
            hosted=self._assignment.hosted,
        )

    def prefill(self, engine: EngineProfile) -> Range:
        """Return prompt tokens a second of one pass."""
        work = self._workload
        if not self._assignment.where or work.task == "train" or work.context is None:
            return Range()
        return prefill_speed(
            self._units,
            self._assignment.where,
            engine,
            self.rates,
            tokens=work.batch * min(work.prefill_chunk or work.context, work.context),
            parameters=self._parameters,
            hosted=self._assignment.hosted,
        )
