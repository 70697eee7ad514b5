"""A run beside its plan as text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from memplan.explain import gap_sentence
from memplan.report.columns import band, gap, number, table
from memplan.report.run import run_line
from memplan.types import Comparison, DeviceComparison, PartComparison, Plan
from memplan.units import format_bytes

__all__ = ["comparison_text", "summary_text"]


def comparison_text(comparison: Comparison, *, plan: Plan | None = None, unit: str = "GiB") -> str:
    """Return a comparison: one table per device with its unaccounted line, then the verdict."""
    sections = [[run_line(comparison.run)]]
    if plan is not None:
        sections[0].append(f"plan {plan.id or '(not saved)'}: {plan.model.name}")
    sections += [_device(row, unit) for row in comparison.devices]
    sections.append([f"  note: {note}" for note in comparison.notes])
    sections.append([f"  {_judgement(comparison, unit)}"])
    why = gap_sentence(comparison, unit)
    if why:
        sections[-1] += textwrap.wrap(f"  {why}", 96, subsequent_indent="  ")
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _device(row: DeviceComparison, unit: str) -> list[str]:
    head = row.name + (f", {row.measured_by}" if row.measured_by else "")
    rows = [[head, f"planned {unit}", f"measured {unit}", "gap", f"band, {unit}"]]
    rows += [[f"  {part.part}", *_part_cells(part, unit)] for part in row.parts]
    rows.append(["  unaccounted", "", number(row.unaccounted_bytes, unit), "", ""])
    rows.append(["  peak", *_peak_cells(row, unit)])
    if row.peak_reserved_bytes is not None:
        rows.append(["  peak reserved", "", number(row.peak_reserved_bytes, unit), "", ""])
    return table(rows, "lrrrl")


def _part_cells(part: PartComparison, unit: str) -> list[str]:
    return [
        number(part.planned_bytes, unit),
        number(part.measured_bytes, unit),
        gap(part.measured_bytes, part.planned_bytes, unit),
        "",
    ]


def _peak_cells(row: DeviceComparison, unit: str) -> list[str]:
    return [
        number(row.planned_bytes, unit),
        number(row.peak_bytes, unit),
        gap(row.peak_bytes, row.planned_bytes, unit),
        band(row.low_bytes, row.high_bytes, unit) + _place(row),
    ]


def summary_text(named: Sequence[tuple[str, Comparison]], *, unit: str = "GiB") -> str:
    """Return several comparisons as one table: the parts that were measured, and the peaks.

    Args:
        named: a word for each run, and its comparison.
        unit: "GiB", "MiB" or "GB".
    """
    rows = [
        ["run", "device", "part", f"planned {unit}", f"measured {unit}", "gap", f"band, {unit}"]
    ]
    for name, comparison in named:
        for row in comparison.devices:
            rows += [
                [name, row.name, part.part, *_part_cells(part, unit)]
                for part in row.parts
                if part.measured_bytes is not None
            ]
            if row.measured_by and row.low_bytes != row.high_bytes:
                rows.append([name, row.name, "peak", *_peak_cells(row, unit)])
    return "\n".join(table(rows, "lllrrrl", "")) + "\n"


def _place(row: DeviceComparison) -> str:
    if row.within_band is None:
        return ""
    if row.within_band:
        return "  inside" if row.low_bytes != row.high_bytes else "inside"
    above = (row.peak_bytes or 0) > (row.high_bytes or 0)
    return "  ABOVE" if above else "  BELOW"


def _judgement(comparison: Comparison, unit: str) -> str:
    if comparison.verdict is None:
        return "NOT COMPARED: nothing was both planned and measured"
    if comparison.verdict == "within":
        return "WITHIN: every measured peak lies inside its planned band"
    over = comparison.verdict == "over"
    worst = max(
        (row for row in comparison.devices if row.within_band is False),
        key=lambda row: (row.gap_bytes or 0) * (1 if over else -1),
    )
    edge = worst.high_bytes if over else worst.low_bytes
    distance = format_bytes(abs((worst.peak_bytes or 0) - (edge or 0)), unit)
    side = "above" if over else "below"
    return f"{comparison.verdict.upper()}: {worst.name} peaked {distance} {side} its planned band"
