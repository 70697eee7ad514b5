"""ModelSpec + Workload + Devices -> Plan: needs, places, verdict, and what would change it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import memplan
from memplan.footprint.draft import draft_lines
from memplan.footprint.estimate import estimate
from memplan.footprint.overhead import Cost
from memplan.footprint.tower import image_tokens
from memplan.parallel.moments import closed_moments
from memplan.placement.assign import assign
from memplan.placement.loads import Assignment, ledgers
from memplan.placement.mapping import device_map
from memplan.placement.ranks import assign_ranks, offloads
from memplan.placement.stream import decode_speed
from memplan.placement.units import cut
from memplan.types import (
    Change,
    Device,
    Footprint,
    FrozenMap,
    Ledger,
    ModelSpec,
    Placement,
    Plan,
    Verdict,
    Workload,
)
from memplan.units import format_bytes

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

    Raises UsageError and UnsupportedModelError.
    """

    def replan(other: Workload, by: Estimator = estimator) -> Plan:
        found = _plan(spec, other, devices, draft=draft, baseline=baseline, costs=costs, by=by)
        return replace(found, created_ns=created_ns)

    plan = replan(workload)
    if plan.verdict.fits:
        return plan
    quick = getattr(estimator, "quick", None)
    changes = tuple(_changes(spec, plan, replan, partial(replan, by=quick) if quick else replan))
    return replace(plan, verdict=replace(plan.verdict, changes=changes))


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
    footprint = by(
        spec,
        workload,
        kind="gpu" if gpus else "cpu",
        baseline=baseline,
        costs=costs,
        beside=beside,
    )
    units = cut(spec)
    ranks = workload.task == "train" and (len(gpus) > 1 or offloads(workload))
    if ranks:
        moments = getattr(by, "moments", closed_moments)
        assignment = assign_ranks(spec, workload, footprint, devices, moments)
    else:
        assignment = assign(spec, workload, footprint, units, devices, beside=beside)
    books = ledgers(devices, assignment.lines)
    if ranks or len(gpus) > 1:
        fullest = max(books[: len(gpus)], key=lambda ledger: ledger.total_bytes)
        footprint = Footprint(lines=assignment.lines[fullest.name])
    offloaded = sum(assignment.offloaded.values())
    return Plan(
        id=None,
        model=spec.summary(),
        workload=workload,
        footprint=footprint,
        devices=books,
        placement=Placement(
            device_map=device_map(units, assignment.where) if assignment.where else FrozenMap(),
            offloaded_bytes=offloaded,
            streamed_bytes_per_token=offloaded,
            decode_tokens_per_s=decode_speed(assignment.offloaded, devices),
            policy=assignment.policy,
        ),
        verdict=_verdict(books, assignment),
        memplan_version=memplan.__version__,
    )


def _verdict(books: Sequence[Ledger], assignment: Assignment) -> Verdict:
    short = [ledger for ledger in books if ledger.free_bytes < 0]
    if short:
        lacks = " and ".join(f"{x.name} lacks {format_bytes(-x.free_bytes)}" for x in short)
        return Verdict(fits=False, reason=lacks)
    computing = [ledger for ledger in books if ledger.kind == "gpu"] or list(books[:1])
    tightest = min(computing, key=lambda ledger: ledger.free_bytes)
    free = format_bytes(tightest.free_bytes)
    share = 100 * tightest.free_bytes / max(tightest.capacity_bytes, 1)
    reason = f"{tightest.name} keeps {free} free ({share:.0f} %)"
    over = tightest.high_bytes + tightest.reserve_bytes - tightest.capacity_bytes
    if over > 0:
        reason += f"; tight: it lacks {format_bytes(over)} at the upper end of the band"
    offloaded = sum(assignment.offloaded.values())
    if offloaded:
        where = " and ".join(name for name, size in assignment.offloaded.items() if size)
        reason = f"with {format_bytes(offloaded)} of weights streamed from {where}; {reason}"
    return Verdict(fits=True, reason=reason)


_Replan = Callable[[Workload], Plan]


def _changes(spec: ModelSpec, plan: Plan, replan: _Replan, quick: _Replan) -> Iterable[Change]:
    """Yield single changes that make the plan fit, each at the largest value that does."""
    work = plan.workload

    def smaller(option: str, value: int, *, sure: bool = False) -> Plan:
        fields: dict[str, Any] = {option: value}
        return (replan if sure else quick)(replace(work, **fields))

    if work.task == "infer":
        assert work.context is not None
        least = 256 + (image_tokens(spec.vision, work) if spec.vision else 0)
        yield from _largest("context", work.context, least, smaller, "a shorter context")
        chunk = work.prefill_chunk or work.context
        yield from _largest("prefill_chunk", chunk, 256, smaller, "slower prefill, same answer")
    else:
        assert work.seq is not None
        if work.checkpointing == "none":
            other = replan(replace(work, checkpointing="full"))
            yield from _if_fits(other, "checkpointing", "full", "about a third more compute")
        yield from _largest("seq", work.seq, 64, smaller, "shorter sequences")
        if work.optimizer in ("adam", "adamw"):
            other = replan(replace(work, optimizer="adafactor"))
            yield from _if_fits(other, "optimizer", "adafactor", "another optimizer: tune it anew")
    yield from _largest("batch", work.batch, 1, smaller, "fewer sequences at once")


def _largest(
    option: str, now: int, least: int, replan: Callable[..., Plan], note: str
) -> Iterable[Change]:
    """Yield the largest smaller value of an option that fits, halving and then bisecting.

    The search may be by a quicker estimate than the plan: what it finds is planned anew, and where
    that does not fit, the search begins again, as the quicker estimate has learned from it.
    """
    for _ in range(_TRIES):
        value = _bisect(now, least, lambda value: replan(option, value).verdict.fits)
        if value is None:
            return
        found = replan(option, value, sure=True)
        if found.verdict.fits:
            yield from _if_fits(found, option.replace("_", "-"), str(value), note)
            return
        now = value


def _bisect(now: int, least: int, fits: Callable[[int], bool]) -> int | None:
    """Return a value from `least` to below `now` that fits, within a sixteenth of the largest."""
    low, high = least, now
    if least >= now or not fits(least):
        return None
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


_TRIES = 3


def _if_fits(plan: Plan, option: str, value: str, note: str) -> Iterable[Change]:
    if plan.verdict.fits:
        total = plan.footprint.total_bytes
        yield Change(option=option, value=value, total_bytes=total, note=note)
