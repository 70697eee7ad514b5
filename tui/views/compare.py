"""Compare: planned and measured by part and by phase, what nothing explains, and why."""

from __future__ import annotations

from collections.abc import Sequence

from memplan_tui.lines import Cell, Column, Line, heading, table, wrapped
from memplan_tui.messages import Detail, Snapshot
from memplan_tui.text import tr
from memplan_tui.views.charts import charts
from memplan_tui.views.parts import basis_name
from memplan_tui.views.words import (
    Look,
    band,
    gap,
    judged,
    lasting,
    number,
    part_name,
    signed,
    size,
)

from memplan.explain import Gap, PhaseRow, phase_rows, worst
from memplan.types import DeviceComparison, PartComparison, Plan

__all__ = ["compare_screen", "explanation"]

_CHART = 8
"""Rows from which a chart is worth its place."""


def compare_screen(
    snapshot: Snapshot, look: Look, width: int, height: int, *, first: int = 0
) -> list[Line]:
    """Return the screen's body.

    Args:
        snapshot: its detail is what is compared.
        look: how.
        width: characters.
        height: rows.
        first: lines that were scrolled away.
    """
    detail = snapshot.detail
    if detail is None:
        return []
    lines = [*explanation(detail, look, width), [("", "")]]
    lines += _parts(detail, look, width)
    phases = _phases(detail, snapshot, look, width)
    lines += [[("", "")], *phases] if phases else []
    room = height - len(lines) - 1
    if room >= _CHART:
        lines += [[("", "")], *charts(snapshot, look, width, min(room, 18))]
    first = min(first, max(len(lines) - height, 0))
    shown = lines[first : first + height]
    if first + height < len(lines) and shown:
        below = tr("{n} more lines: down").format(n=len(lines) - first - height + 1)
        shown[-1] = [(below, "dim")]
    return shown


def explanation(detail: Detail, look: Look, width: int) -> list[Line]:
    """Return the verdict and a sentence that says what makes up the gap."""
    words = {
        "within": (tr("WITHIN PLAN"), "good"),
        "over": (tr("OVER PLAN"), "bad"),
        "under": (tr("UNDER PLAN"), "warn"),
        None: (tr("NOT COMPARED"), "dim"),
    }
    word, role = words[detail.comparison.verdict]
    if detail.run.status == "running" and detail.comparison.verdict == "under":
        word, role = tr("BELOW PLAN SO FAR"), "dim"
    found = worst(detail.comparison)
    if found is None:
        why = tr("no plan was given") if detail.plan is None else tr("nothing was measured")
        return wrapped(f"{word}: {why}", width, role)
    lines = wrapped(f"{word}: {_sentence(found, look.unit)}", width, role)
    return [
        *lines,
        *(line for text in _notes(detail, found) for line in wrapped(text, width, "dim")),
    ]


def _sentence(found: Gap, unit: str) -> str:
    if not found.gap_bytes:
        return tr("{device} peaked at its plan to the byte.").format(device=found.device)
    side = tr("above") if found.gap_bytes > 0 else tr("below")
    share = f" ({found.share:.1%})" if found.share is not None else ""
    inside = tr("inside its band") if found.within_band else tr("outside its band")
    text = tr("{device} peaked {size}{share} {side} its plan, {inside}.").format(
        device=found.device,
        size=size(abs(found.gap_bytes), unit),
        share=share,
        side=side,
        inside=inside,
    )
    terms = [f"{part_name(t.name)} {signed(t.bytes, unit)}" for t in found.terms[:3]]
    why = tr("It is made up of {terms}.").format(terms=", ".join(terms))
    return f"{text} {why}"


def _notes(detail: Detail, found: Gap) -> list[str]:
    notes = []
    if found.unmeasured:
        parts = ", ".join(part_name(part) for part in found.unmeasured)
        notes.append(
            tr("Not counted one by one: {parts}; unaccounted holds their error.").format(
                parts=parts
            )
        )
    if any(row.measured_by.startswith("peak allocated") for row in detail.comparison.devices):
        notes.append(tr("Only the allocator was read: the planned overhead is left out."))
    if detail.run.status == "lost":
        notes.append(tr("The sampler died before the command: the peak may be higher."))
    elif detail.run.status == "running":
        notes.append(tr("The command goes on: the peak may rise."))
    elif detail.run.status == "failed":
        code = detail.run.exit_code
        notes.append(tr("The command failed with exit code {code}.").format(code=code))
    return notes


def _parts(detail: Detail, look: Look, width: int) -> list[Line]:
    columns = [
        Column(label=tr("part"), width=16, right=False),
        Column(label=tr("planned"), width=9),
        Column(label=tr("measured"), width=9),
        Column(label=tr("gap"), width=9),
        Column(label=tr("band"), width=18, drop=2),
        Column(label=tr("known by"), width=14, right=False, drop=1, free=True),
    ]
    rows: list[Sequence[Cell]] = []
    for device in detail.comparison.devices:
        rows += _device(device, detail, look.unit)
    title = heading(tr("by part"), width, look.unit)
    return [title, *table(columns, rows, width)]


def _device(device: DeviceComparison, detail: Detail, unit: str) -> list[Sequence[Cell]]:
    running = detail.run.status == "running"
    rows: list[Sequence[Cell]] = [_peak(device, unit, running=running)]
    rows += [_part(part, detail.plan, unit) for part in device.parts]
    if device.peak_bytes is not None:
        unknown = number(device.unaccounted_bytes, unit)
        rows.append(["  " + tr("unaccounted"), "", (unknown, "warn"), "", "", ""])
    if device.peak_reserved_bytes is not None:
        reserved = (number(device.peak_reserved_bytes, unit), "measured")
        rows.append(["  " + tr("peak reserved"), "", reserved, "", "", (tr("allocator"), "dim")])
    return rows


def _peak(device: DeviceComparison, unit: str, *, running: bool) -> Sequence[Cell]:
    word, role = judged(device, running=running)
    return [
        (device.name, "bold"),
        (number(device.planned_bytes, unit), "plan"),
        (number(device.peak_bytes, unit), "measured"),
        (gap(device.peak_bytes, device.planned_bytes, unit), role),
        (band(device.low_bytes, device.high_bytes, unit), "dim"),
        (word, role),
    ]


def _part(part: PartComparison, plan: Plan | None, unit: str) -> Sequence[Cell]:
    line = next((x for x in plan.footprint.lines if x.part == part.part), None) if plan else None
    return [
        f"  {part_name(part.part)}",
        (number(part.planned_bytes, unit), "plan"),
        (number(part.measured_bytes, unit), "measured" if part.measured_bytes else "dim"),
        gap(part.measured_bytes, part.planned_bytes, unit),
        (band(line.low_bytes, line.high_bytes, unit), "dim") if line else "",
        (basis_name(line.basis), "dim") if line else "",
    ]


def _phases(detail: Detail, snapshot: Snapshot, look: Look, width: int) -> list[Line]:
    found = phase_rows(detail.plan, detail.phases, detail.history, snapshot.now_ns)
    if not found:
        return []
    columns = [
        Column(label=tr("phase"), width=16, right=False),
        Column(label=tr("planned"), width=9),
        Column(label=tr("measured"), width=9),
        Column(label=tr("gap"), width=9),
        Column(label=tr("device"), width=7, right=False, drop=1),
        Column(label=tr("times"), width=5, drop=2),
        Column(label=tr("lasted"), width=8, drop=3),
    ]
    rows = [_phase(row, look.unit) for row in found]
    return [
        heading(tr("by phase, what is alive in it"), width, look.unit),
        *table(columns, rows, width),
    ]


def _phase(row: PhaseRow, unit: str) -> Sequence[Cell]:
    return [
        f"  {row.name}",
        (number(row.planned_bytes, unit), "plan"),
        (number(row.peak_bytes, unit), "measured"),
        gap(row.peak_bytes, row.planned_bytes, unit),
        (row.device, "dim"),
        (str(row.count), "dim"),
        (lasting(0, int(row.seconds * 1e9)) if row.seconds is not None else tr("goes on"), "dim"),
    ]
