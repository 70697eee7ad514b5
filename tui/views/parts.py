"""Parts as bars: what was planned, and beside it what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memplan_tui.lines import Cell, Column, Line, bar, heading, table
from memplan_tui.messages import Detail
from memplan_tui.text import tr
from memplan_tui.views.words import Look, band, gap, number, part_name

from memplan.types import Basis

if TYPE_CHECKING:
    from memplan.types import Plan

__all__ = ["basis_name", "measured_parts", "part_table"]


def basis_name(basis: Basis) -> str:
    """Return how a number is known."""
    names = {
        "exact": tr("exact"),
        "formula": tr("formula"),
        "trace": tr("trace"),
        "measured": tr("measured"),
        "assumed": tr("assumed"),
    }
    return names[basis]


def part_table(plan: Plan, look: Look, width: int, before: Plan | None = None) -> list[Line]:
    """Return a plan's parts with band, bar and basis, and their sum.

    Args:
        plan: the plan.
        look: how.
        width: characters.
        before: the plan as it was stored; the difference to it gets a column.
    """
    footprint, unit = plan.footprint, look.unit
    room = min(max(width - 66, 10), 40)
    columns = [
        Column(label=tr("part"), width=12, right=False),
        Column(label=unit, width=8),
        Column(label=tr("change"), width=8, drop=0 if before is not None else 9),
        Column(label="", width=room, right=False, drop=2),
        Column(label=tr("band"), width=16, drop=4),
        Column(label=tr("known by"), width=8, right=False, drop=1),
        Column(label=tr("rule or source"), width=18, right=False, drop=5, free=True),
    ]
    rows: list[Sequence[Cell]] = []
    for line in footprint.lines:
        old = before.footprint.part(line.part) if before is not None else None
        change = gap(line.bytes, old, unit)
        rows.append(
            [
                part_name(line.part),
                (number(line.bytes, unit), "plan"),
                ("" if change == "=" else change, "bold"),
                (bar(line.bytes, footprint.total_bytes, room), "plan"),
                (band(line.low_bytes, line.high_bytes, unit), "dim"),
                basis_name(line.basis),
                (line.source, "dim"),
            ]
        )
    old_total = before.footprint.total_bytes if before is not None else None
    change = gap(footprint.total_bytes, old_total, unit)
    rows.append(
        [
            (tr("total"), "bold"),
            (number(footprint.total_bytes, unit), "bold"),
            ("" if change == "=" else change, "bold"),
            "",
            (band(footprint.low_bytes, footprint.high_bytes, unit), "dim"),
            "",
            "",
        ]
    )
    if before is None:
        columns = [column for column in columns if column.drop != 9]
        rows = [[*row[:2], *row[3:]] for row in rows]
    return table(columns, rows, width)


def measured_parts(detail: Detail | None, look: Look, width: int) -> list[Line]:
    """Return each device's parts, a planned bar above a measured one."""
    if detail is None or detail.plan is None:
        return []
    row = next((row for row in detail.comparison.devices if row.parts), None)
    if row is None:
        return []
    largest = max((max(p.planned_bytes or 0, p.measured_bytes or 0) for p in row.parts), default=1)
    room = max(width - 12 - 2 * 8 - 12 - 5 * 2, 10)
    columns = [
        Column(label=tr("part"), width=12, right=False),
        Column(label=tr("plan"), width=8),
        Column(label=tr("measured"), width=8),
        Column(label=tr("gap"), width=8),
        Column(label="", width=room, right=False, drop=1),
    ]
    rows: list[Sequence[Cell]] = [
        [
            part_name(part.part),
            (number(part.planned_bytes, look.unit), "plan"),
            (number(part.measured_bytes, look.unit), "measured"),
            gap(part.measured_bytes, part.planned_bytes, look.unit),
            (bar(part.planned_bytes or part.measured_bytes or 0, largest, room), "plan"),
        ]
        for part in row.parts
    ]
    title = heading(tr("parts on {device}").format(device=row.name), width, look.unit)
    return [title, *table(columns, rows, width)]
