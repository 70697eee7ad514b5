"""Cells as aligned lines, sizes as cells."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.units import UNITS

__all__ = ["band", "digits", "gap", "number", "table"]


def table(rows: Sequence[Sequence[str]], align: str, indent: str = "  ") -> list[str]:
    """Return rows as lines with aligned columns.

    Args:
        rows: cells; all rows have the same length.
        align: one letter per column, "l" or "r".
        indent: written before each line.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(align))]
    lines = []
    for row in rows:
        cells = (
            cell.rjust(width) if how == "r" else cell.ljust(width)
            for cell, width, how in zip(row, widths, align, strict=True)
        )
        lines.append((indent + "  ".join(cells)).rstrip())
    return lines


def number(value: int | None, unit: str) -> str:
    """Return a size in a unit, without its name; "n/a" = not available."""
    return "n/a" if value is None else f"{value / UNITS[unit]:.{digits(unit)}f}"


def digits(unit: str) -> int:
    """Return how many decimals a size is printed with."""
    return 1 if unit == "MiB" else 3 if unit in ("GiB", "GB") else 0


def band(low: int | None, high: int | None, unit: str) -> str:
    """Return a range of sizes; nothing where there is none, or both ends are one."""
    if low is None or high is None or low == high:
        return ""
    return f"{number(low, unit)} .. {number(high, unit)}"


def gap(measured: int | None, planned: int | None, unit: str) -> str:
    """Return the signed difference: "=" when it is zero to the byte."""
    if measured is None or planned is None:
        return ""
    if measured == planned:
        return "="
    return f"{(measured - planned) / UNITS[unit]:+.{digits(unit)}f}"
