"""A chart in characters: one measured curve against a planned level and its band.

Measured and planned have different glyphs, so that the chart reads without colour: dots against
dashes. Pure functions: numbers in, rows of cells out; whoever shows them gives each role a colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from memplan.units import UNITS

__all__ = ["Axis", "Glyphs", "Row", "downsample", "draw", "glyphs"]

Role = Literal["measured", "plan", "band", "capacity", "axis", "empty"]
Row = list[tuple[str, Role]]
"""One line of the chart: pieces of text and what each of them means."""

Points = Sequence[tuple[int, int]]
"""(nanoseconds, bytes), by time."""

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a braille cell: four rows of two dots, top to bottom."""

_BRAILLE = 0x2800

_LABEL = 9
"""Characters of the vertical axis's labels."""

_LEAST_WIDTH, _LEAST_HEIGHT = _LABEL + 4, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Glyphs:
    """What a chart is drawn with."""

    braille: bool
    """Eight dots a cell; else one character a cell."""
    point: str
    """Measured, where there is no braille."""
    plan: str
    """The planned level."""
    band: str
    """The ends of the planned band."""
    capacity: str
    """All that the device has."""
    corner: str
    """Where the axes meet."""
    floor: str
    """The horizontal axis."""


_UNICODE = Glyphs(braille=True, point="█", plan="╌", band="┄", capacity="═", corner="└", floor="─")
_ASCII = Glyphs(braille=False, point="*", plan="-", band=".", capacity="=", corner="+", floor="-")


def glyphs(*, unicode: bool) -> Glyphs:
    """Return braille and box lines, or plain ASCII for terminals without them."""
    return _UNICODE if unicode else _ASCII


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """What the chart shows."""

    start_ns: int
    """Time at the left edge."""
    end_ns: int
    """Time at the right edge."""
    plan: int | None = None
    """Planned peak, bytes."""
    low: int | None = None
    """Lower end of the planned band."""
    high: int | None = None
    """Upper end of the planned band."""
    capacity: int | None = None
    """All that the device has; drawn only when the rest comes near it."""
    unit: str = "GiB"
    """Unit of the labels."""
    gap_ns: int = 5_000_000_000
    """A longer time without a sample is left empty."""


def downsample(points: Points, limit: int) -> list[tuple[int, int]]:
    """Return at most `limit` points; of neighbours the higher one stays, so no peak is lost.

    Raises ValueError when the limit is below one.
    """
    if limit < 1:
        raise ValueError(f"cannot keep {limit} points")
    result = list(points)
    while len(result) > limit:
        pairs = [result[i : i + 2] for i in range(0, len(result), 2)]
        result = [max(pair, key=lambda point: point[1]) for pair in pairs]
    return result


def draw(points: Points, axis: Axis, *, width: int, height: int, style: Glyphs) -> list[Row]:
    """Return exactly `height` rows of exactly `width` characters.

    The vertical axis begins at 0 and ends above everything that is shown. The column of a peak
    reaches the row of its value, however many samples share the column.

    Args:
        points: the measured curve; what lies outside of the axis's times is not drawn.
        axis: times, planned levels and unit.
        width: characters; too few for a chart give empty rows.
        height: rows, the horizontal axis included.
        style: `glyphs(...)`.
    """
    if width < _LEAST_WIDTH or height < _LEAST_HEIGHT:
        return [[(" " * max(width, 0), "empty")] for _ in range(max(height, 0))]
    top = _top(points, axis)
    columns, rows = width - _LABEL, height - 1
    cells = _Grid(columns, rows, style)
    for value, glyph, role in _levels(axis, style, top):
        cells.level(value / top, glyph, role)
    cells.curve(_columns(points, axis, columns * cells.per_column), top)
    labels = _labels(top, rows, axis.unit)
    lines: list[Row] = [
        [(labels[i].rjust(_LABEL - 1) + " ", "axis"), *cells.row(i)] for i in range(rows)
    ]
    return [*lines, _floor(axis, columns, style)]


def _top(points: Points, axis: Axis) -> int:
    shown = [value for t, value in points if axis.start_ns <= t <= axis.end_ns]
    known = [v for v in (axis.plan, axis.high, axis.low, *shown) if v is not None]
    top = max([1, *known])
    if axis.capacity is not None and axis.capacity <= 1.5 * top:
        top = max(top, axis.capacity)
    return top + max(top // 20, 1)


def _levels(axis: Axis, style: Glyphs, top: int) -> list[tuple[int, str, Role]]:
    levels: list[tuple[int | None, str, Role]] = [
        (axis.capacity, style.capacity, "capacity"),
        (axis.low, style.band, "band"),
        (axis.high, style.band, "band"),
        (axis.plan, style.plan, "plan"),
    ]
    return [(value, g, r) for value, g, r in levels if value is not None and 0 <= value <= top]


def _columns(points: Points, axis: Axis, count: int) -> list[int | None]:
    """Return the highest value in each column; short gaps hold the last value, long ones None."""
    span = max(axis.end_ns - axis.start_ns, 1)
    highest: list[int | None] = [None] * count
    last: tuple[int, int, int] | None = None
    for t, value in points:
        if not axis.start_ns <= t <= axis.end_ns:
            continue
        column = min((t - axis.start_ns) * count // span, count - 1)
        if last is not None and t - last[1] <= axis.gap_ns:
            for between in range(last[0] + 1, column):
                highest[between] = last[2]
        known = highest[column]
        highest[column] = value if known is None else max(known, value)
        last = (column, t, value)
    return highest


class _Grid:
    """Cells of the drawing area: levels behind, the curve in front."""

    def __init__(self, columns: int, rows: int, style: Glyphs) -> None:
        self._style = style
        self._back: list[list[tuple[str, Role]]] = [[(" ", "empty")] * columns for _ in range(rows)]
        self._bits = [[0] * columns for _ in range(rows)]
        self._rows = rows
        self.per_column = 2 if style.braille else 1
        self._per_row = 4 if style.braille else 1

    def level(self, share: float, glyph: str, role: Role) -> None:
        """Draw a horizontal line at a share of the height."""
        row = self._dot(share) // self._per_row
        self._back[row] = [(glyph, role)] * len(self._back[row])

    def _dot(self, share: float) -> int:
        """Return the dot's row counted from the top."""
        dots = self._rows * self._per_row
        return min(max(round((1 - share) * (dots - 1)), 0), dots - 1)

    def curve(self, columns: Sequence[int | None], top: int) -> None:
        """Draw the curve, each column joined to the one before."""
        before: int | None = None
        for x, value in enumerate(columns):
            if value is None:
                before = None
                continue
            y = self._dot(max(value, 0) / top)
            other = y if before is None else before
            for dot in range(min(y, other), max(y, other) + 1):
                self._set(x, dot)
            before = y

    def _set(self, x: int, y: int) -> None:
        row, inner = divmod(y, self._per_row)
        column, side = divmod(x, self.per_column)
        self._bits[row][column] |= _DOTS[inner][side] if self._style.braille else 1

    def row(self, index: int) -> Row:
        """Return a row, neighbours of one role joined."""
        result: Row = []
        for bits, behind in zip(self._bits[index], self._back[index], strict=True):
            measured: tuple[str, Role] = (self._glyph(bits), "measured")
            glyph, role = measured if bits else behind
            if result and result[-1][1] == role:
                result[-1] = (result[-1][0] + glyph, role)
            else:
                result.append((glyph, role))
        return result

    def _glyph(self, bits: int) -> str:
        return chr(_BRAILLE + bits) if self._style.braille else self._style.point


def _labels(top: int, rows: int, unit: str) -> list[str]:
    """Return the label of each row: top, middle and bottom have one."""
    labels = [""] * rows
    marked = {0, rows - 1} | ({rows // 2} if rows >= 5 else set())
    for row in marked:
        value = top * (1 - row / max(rows - 1, 1)) / UNITS[unit]
        digits = 2 if top / UNITS[unit] < 10 else 1 if top / UNITS[unit] < 1000 else 0
        labels[row] = f"{value:.{digits}f}"[: _LABEL - 1]
    return labels


def _floor(axis: Axis, columns: int, style: Glyphs) -> Row:
    span = f" {_duration(axis.end_ns - axis.start_ns)}"
    line = style.corner + style.floor * max(columns - 1 - len(span), 0) + span
    return [(axis.unit.rjust(_LABEL - 1) + " " + line[:columns].ljust(columns), "axis")]


def _duration(ns: int) -> str:
    """Return a length of time in one unit: 45 s, 12 min, 3.5 h."""
    seconds = ns / 1e9
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
