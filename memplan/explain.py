"""Why a run took more or less than its plan: the facts, and one English sentence about them.

Pure functions over a comparison, its plan and its phases.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memplan.chart_scale import Points
from memplan.types import PARTS, Comparison, DeviceComparison, Ledger, Part, Phase, Plan
from memplan.units import UNITS, format_bytes

__all__ = [
    "Gap",
    "PhaseRow",
    "Term",
    "gap_of",
    "gap_sentence",
    "phase_parts",
    "phase_rows",
    "worst",
]

UNACCOUNTED = "unaccounted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One thing that explains a share of a gap."""

    name: str
    """A part, or "unaccounted"."""
    bytes: int
    """Measured less planned; negative where less was taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """The distance between a device's measured peak and its plan, and what makes it up."""

    device: str
    """Which device."""
    gap_bytes: int
    """Measured less planned peak; the terms add up to it."""
    planned_bytes: int
    """Planned peak."""
    within_band: bool
    """Does the peak lie inside the plan's band."""
    terms: tuple[Term, ...]
    """Largest first; equal parts are left out."""
    unmeasured: tuple[Part, ...]
    """Parts that nobody counted one by one: what they took more or less is in unaccounted."""

    @property
    def share(self) -> float | None:
        """Size of the gap over the plan; None where that says nothing: little was planned."""
        share = abs(self.gap_bytes) / self.planned_bytes if self.planned_bytes else None
        return share if share is not None and share < 10 else None


def gap_of(row: DeviceComparison) -> Gap | None:
    """Return the gap of one device; None where nothing was both planned and measured.

    The gap is the sum of each measured part's difference and of what no part explains, since
    `unaccounted` is the peak less every part as measured, else as planned.
    """
    if row.gap_bytes is None or row.planned_bytes is None or row.unaccounted_bytes is None:
        return None
    terms = [
        Term(name=part.part, bytes=part.measured_bytes - (part.planned_bytes or 0))
        for part in row.parts
        if part.measured_bytes is not None
    ]
    terms.append(Term(name=UNACCOUNTED, bytes=row.gap_bytes - sum(term.bytes for term in terms)))
    return Gap(
        device=row.name,
        gap_bytes=row.gap_bytes,
        planned_bytes=row.planned_bytes,
        within_band=bool(row.within_band),
        terms=tuple(sorted((t for t in terms if t.bytes), key=lambda t: -abs(t.bytes))),
        unmeasured=tuple(p.part for p in row.parts if p.measured_bytes is None),
    )


def worst(comparison: Comparison) -> Gap | None:
    """Return the gap that matters most: outside its band first, then the largest."""
    gaps = [gap for row in comparison.devices if (gap := gap_of(row)) is not None]
    return max(gaps, key=lambda gap: (not gap.within_band, abs(gap.gap_bytes)), default=None)


def gap_sentence(comparison: Comparison, unit: str) -> str:
    """Return what makes up the gap that matters most; "" where nothing was compared."""
    gap = worst(comparison)
    if gap is None:
        return ""
    if not gap.gap_bytes:
        return f"{gap.device} peaked at its plan to the byte."
    side = "above" if gap.gap_bytes > 0 else "below"
    inside = "inside" if gap.within_band else "outside"
    share = f" ({gap.share:.1%})" if gap.share is not None else ""
    digits = 1 if unit == "MiB" else 3
    terms = ", ".join(
        f"{term.name} {term.bytes / UNITS[unit]:+.{digits}f}" for term in gap.terms[:3]
    )
    text = (
        f"{gap.device} peaked {format_bytes(abs(gap.gap_bytes), unit)}{share} {side} its "
        f"plan, {inside} its band: {terms} {unit}."
    )
    if gap.unmeasured:
        parts = ", ".join(gap.unmeasured)
        text += f" Not counted one by one: {parts}; unaccounted holds their error."
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseRow:
    """One phase of a run on one device."""

    name: str
    """The phase's own name."""
    device: str
    """Where."""
    count: int
    """How often it ran."""
    seconds: float | None
    """All of its times together; None while its only one goes on."""
    planned_bytes: int | None
    """What the plan has alive in such a phase; None = no plan, or no rule for the name."""
    peak_bytes: int | None
    """Highest sample while it ran; None = none fell into it."""


_BEFORE: tuple[Part, ...] = ("overhead",)
_LOADED: tuple[Part, ...] = ("weights", "buffers", "overhead")
_KEPT: tuple[Part, ...] = (*_LOADED, "kv_cache", "state_cache")
_STEP: tuple[Part, ...] = (*_LOADED, "gradients", "optimizer")
_RULES: dict[str, tuple[Part, ...]] = {
    "start": _BEFORE,
    "load": _LOADED,
    "prefill": PARTS,
    "generate": PARTS,
    "decode": _KEPT,
    "forward": PARTS,
    "backward": PARTS,
    "optimizer_step": _STEP,
    "step": PARTS,
    "train": PARTS,
}


def phase_parts(name: str) -> tuple[Part, ...] | None:
    """Return the parts of a plan that are alive in a phase; None where there is no rule.

    "start" holds the overhead; "load" the weights and buffers on top; "decode" the caches, too;
    "optimizer_step" gradients and states instead. In "prefill", "forward" and "backward" all
    parts are alive, which is the planned peak: activations of a forward pass grow to it, so it is
    an upper bound there.
    """
    return _RULES.get(name)


def phase_rows(
    plan: Plan | None, phases: Sequence[Phase], curves: Mapping[str, Points], end_ns: int
) -> tuple[PhaseRow, ...]:
    """Return each phase, those of one name together, on each device that has a curve.

    Args:
        plan: None = measured figures only.
        phases: of the run, oldest first.
        curves: device name -> samples.
        end_ns: the end of a phase that still runs.
    """
    named: dict[str, list[Phase]] = {}
    for phase in phases:
        named.setdefault(phase.name, []).append(phase)
    ledgers = {ledger.name: ledger for ledger in plan.devices} if plan is not None else {}
    return tuple(
        PhaseRow(
            name=name,
            device=device,
            count=len(group),
            seconds=_seconds(group),
            planned_bytes=_alive(ledgers.get(device), name),
            peak_bytes=_peak(group, curve, end_ns),
        )
        for device, curve in curves.items()
        for name, group in named.items()
    )


def _seconds(group: Sequence[Phase]) -> float | None:
    ended = [p.ended_ns - p.started_ns for p in group if p.ended_ns is not None]
    return sum(ended) / 1e9 if ended else None


def _alive(ledger: Ledger | None, name: str) -> int | None:
    parts = phase_parts(name)
    if ledger is None or parts is None:
        return None
    return sum(ledger.parts.get(part, 0) for part in parts)


def _peak(group: Sequence[Phase], curve: Points, end_ns: int) -> int | None:
    times = [t for t, _ in curve]
    highest: int | None = None
    for phase in group:
        end = end_ns if phase.ended_ns is None else phase.ended_ns
        first, last = bisect_left(times, phase.started_ns), bisect_right(times, end)
        inside = max((value for _, value in curve[first:last]), default=None)
        if inside is not None:
            highest = inside if highest is None else max(highest, inside)
    return highest
