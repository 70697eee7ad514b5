"""A chart in characters: one measured curve against a planned level and the device's capacity.

Measured and planned have different glyphs, so that the chart reads without colour: dots against
dashes, the capacity a double line, and each line's name in words at the right edge. Pure functions:
numbers in, rows of cells out; whoever shows them gives each role a colour.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from memplan.chart_scale import Columns, Points, downsample, ticks, top_of
from memplan.units import UNITS

__all__ = [
    "GLYPHS",
    "Axis",
    "Chart",
    "Glyphs",
    "Points",
    "Row",
    "Words",
    "downsample",
    "draw",
    "glyphs",
]

Role = Literal["measured", "plan", "band", "capacity", "axis", "empty"]
Row = list[tuple[str, Role]]
"""One line of the chart: pieces of text and what each of them means."""

_LABEL = 8
"""Characters of the vertical axis's labels."""

_LEAST_PLOT, _LEAST_HEIGHT = 8, 3

_NARROW = 44
"""Below this width the lines are not named at the right edge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Glyphs:
    """What a chart is drawn with."""

    name: str
    """"braille", "block" or "ascii"."""
    across: int
    """Dots of one cell, side by side."""
    down: int
    """Dots of one cell, one above the other."""
    cells: str
    """The character of each set of dots; bit `across * row + column` is set for a dot."""
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
    up: str
    """Says that a line lies above the chart."""


def _braille() -> str:
    bits = (0x01, 0x08, 0x02, 0x10, 0x04, 0x20, 0x40, 0x80)
    sets = (sum(bit for i, bit in enumerate(bits) if dots >> i & 1) for dots in range(256))
    return "".join(chr(0x2800 + found) for found in sets)


_LINES = {"plan": "╌", "band": "┄", "capacity": "═", "corner": "└", "floor": "─", "up": "↑"}
_PLAIN = {"plan": "-", "band": ".", "capacity": "=", "corner": "+", "floor": "-", "up": "^"}

GLYPHS: dict[str, Glyphs] = {
    "braille": Glyphs(name="braille", across=2, down=4, cells=_braille(), **_LINES),
    "block": Glyphs(name="block", across=2, down=2, cells=" ▘▝▀▖▌▞▛▗▚▐▜▄▙▟█", **_LINES),
    "ascii": Glyphs(name="ascii", across=1, down=1, cells=" *", **_PLAIN),
}
"""Eight dots a cell, four quarters a cell, or one character for terminals without either."""


def glyphs(name: str) -> Glyphs:
    """Return a set of glyphs by its name. Raises KeyError for an unknown one."""
    return GLYPHS[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What the lines are called; another language brings its own."""

    measured: str = "measured"
    """The curve."""
    plan: str = "plan"
    """The planned level."""
    capacity: str = "capacity"
    """All that the device has."""

    def width(self) -> int:
        """Return the characters of the longest name."""
        return max(len(self.measured), len(self.plan), len(self.capacity))


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
    """All that the device has; its line is drawn only when the rest comes near it."""
    unit: str = "GiB"
    """Unit of the labels."""
    gap_ns: int = 5_000_000_000
    """A longer time without a sample is left empty."""
    left: str = ""
    """What stands under the left edge; "" = the length of time."""
    right: str = ""
    """What stands under the right edge."""
    words: Words = field(default_factory=Words)
    """Names of the lines."""


def draw(
    points: Points, axis: Axis, *, width: int, height: int, style: Glyphs, floor: bool = True
) -> list[Row]:
    """Return exactly `height` rows of exactly `width` characters.

    The vertical axis begins at 0 and ends above everything that is shown. A column shows the
    highest and the lowest of its samples, never their mean: a short peak is what runs out of
    memory. Charts of one width share their left and right edge.

    Args:
        points: the measured curve; what lies outside of the axis's times is not drawn.
        axis: times, planned levels and unit.
        width: characters; too few for a chart give empty rows.
        height: rows, the horizontal axis included.
        style: `glyphs(...)`.
        floor: draw the horizontal axis; without, charts can be stacked over one axis.
    """
    chart = Chart(axis, width=width, height=height, style=style, floor=floor)
    chart.add(points)
    return chart.rows()


def columns(width: int, style: Glyphs, words: Words) -> int:
    """Return the columns of time in a chart of a width."""
    gutter = words.width() + 3 if width >= _NARROW else 0
    return max(width - _LABEL - gutter, 0) * style.across


class Chart:
    """A chart that goes on: newer points cost their own columns, the rest stays drawn."""

    def __init__(
        self, axis: Axis, *, width: int, height: int, style: Glyphs, floor: bool = True
    ) -> None:
        """Begin without points; the arguments are those of `draw`."""
        self._axis, self._style, self._floor = axis, style, floor
        self._width, self._height = max(width, 0), max(height, 0)
        self._gutter = axis.words.width() + 3 if width >= _NARROW else 0
        self._inner, self._rows = width - _LABEL - self._gutter, height - floor
        self._fits = self._inner >= _LEAST_PLOT and self._rows >= _LEAST_HEIGHT - 1
        self._columns = Columns(axis, self._inner * style.across if self._fits else 0)
        self._changed, self._top = 0, 0
        self._cells = _Cells(0, 0, style)
        self._labels: list[str] = []

    def add(self, points: Iterable[tuple[int, int]]) -> None:
        """Add points, oldest first, none older than those that were added before."""
        if self._fits:
            self._changed = min(self._changed, self._columns.add(points))

    def move(self, axis: Axis) -> bool:
        """Go on over a later stretch of time, as far as that lies on the same cells.

        Args:
            axis: all but the times are as before.
        """
        steps = self._columns.move(axis, self._style.across) if self._fits else None
        if steps is None:
            return False
        self._axis = axis
        if steps:
            self._cells.shift(steps, self._columns.spans, self._top)
        return True

    def rows(self) -> list[Row]:
        """Return the rows as `draw` does."""
        if not self._fits:
            return [[(" " * self._width, "empty")] for _ in range(self._height)]
        axis, style, spans = self._axis, self._style, self._columns.spans
        top = top_of(self._columns.highest, axis)
        if top != self._top:
            self._top, self._changed = top, 0
            self._cells = _Cells(self._inner, self._rows, style)
            for value, glyph, role in _levels(axis, style, top):
                self._cells.level(value / top, glyph, role)
            self._labels = _labels(self._cells, axis.unit, top, self._rows)
        self._cells.curve(spans, top, self._changed)
        self._changed = len(spans)
        lines = self._named(top)
        return [*lines, _floor(axis, self._inner, self._gutter, style)] if self._floor else lines

    def _named(self, top: int) -> list[Row]:
        """Return the rows above the horizontal axis, between their labels and names."""
        cells, spans = self._cells, self._columns.spans
        blank: Row = [("", "empty")] * self._rows
        names = _names(self._axis, cells, spans, top, self._style) if self._gutter else blank
        lines = []
        for i, (name, role) in enumerate(names):
            right: Row = [(_right(name, self._gutter), role)] if self._gutter else []
            lines.append([(self._labels[i], "axis"), *cells.row(i), *right])
        return lines


def _right(name: str, gutter: int) -> str:
    return f" {name}".ljust(gutter)[:gutter] if gutter else ""


def _joined(cells: Iterable[tuple[str, Role]]) -> Row:
    """Return cells as pieces: neighbours of one role are one."""
    return [
        ("".join(text for text, _ in group), role)
        for role, group in itertools.groupby(cells, key=operator.itemgetter(1))
    ]


def _levels(axis: Axis, style: Glyphs, top: int) -> list[tuple[int, str, Role]]:
    levels: list[tuple[int | None, str, Role]] = [
        (axis.low, style.band, "band"),
        (axis.high, style.band, "band"),
        (axis.capacity, style.capacity, "capacity"),
        (axis.plan, style.plan, "plan"),
    ]
    return [(value, g, r) for value, g, r in levels if value is not None and 0 <= value <= top]


def _names(
    axis: Axis,
    cells: _Cells,
    spans: Sequence[tuple[int, int] | None],
    top: int,
    style: Glyphs,
) -> list[tuple[str, Role]]:
    """Return the name at the right end of each row; what lies above the chart says so."""
    names: list[tuple[str, Role] | None] = [None] * cells.rows
    last = next((span for span in reversed(spans) if span is not None), None)
    wanted: list[tuple[int | None, str, Role]] = [
        (axis.capacity, axis.words.capacity, "capacity"),
        (axis.plan, axis.words.plan, "plan"),
        (last[1] if last else None, axis.words.measured, "measured"),
    ]
    for value, word, role in wanted:
        if value is None:
            continue
        above = value > top
        row = 0 if above else cells.row_of(value / top)
        free = [i for i, name in enumerate(names) if name is None]
        if free:
            spot = min(free, key=lambda i: (abs(i - row), i))
            names[spot] = (f"{word} {style.up}" if above else word, role)
    return [name or ("", "empty") for name in names]


class _Cells:
    """Cells of the drawing area: levels behind, the curve in front."""

    def __init__(self, width: int, rows: int, style: Glyphs) -> None:
        self._style = style
        self._back: list[list[tuple[str, Role]]] = [[(" ", "empty")] * width for _ in range(rows)]
        self._bits = [[0] * width for _ in range(rows)]
        self._joined: list[Row | None] = [None] * rows
        self.rows = rows

    def level(self, share: float, glyph: str, role: Role) -> None:
        """Draw a horizontal line at a share of the height."""
        row = self.row_of(share)
        self._back[row] = [(glyph, role)] * len(self._back[row])

    def row_of(self, share: float) -> int:
        """Return the row of a share of the height."""
        return self._dot(share) // self._style.down

    def _dot(self, share: float) -> int:
        """Return the dot's row counted from the top."""
        dots = self.rows * self._style.down
        return min(max(round((1 - share) * (dots - 1)), 0), dots - 1)

    def shift(self, steps: int, spans: Sequence[tuple[int, int] | None], top: int) -> None:
        """Move the curve to the left by columns that fill whole cells; its new end is empty."""
        cells = steps // self._style.across
        for bits in self._bits:
            bits[:] = bits[cells:] + [0] * cells
        self._joined = [None] * self.rows
        if top:
            self.curve(spans[: self._style.across], top, 0)

    def curve(self, spans: Sequence[tuple[int, int] | None], top: int, first: int) -> None:
        """Draw the curve from the lowest to the highest of each column, joined to the last.

        Args:
            spans: lowest and highest of every column, up to the last that is drawn.
            top: value at the upper end.
            first: column from which on the curve is drawn anew.
        """
        cell, end = first // self._style.across, -(-len(spans) // self._style.across)
        first = cell * self._style.across
        old = [bits[cell:end] for bits in self._bits]
        for bits in self._bits:
            bits[cell:end] = [0] * (end - cell)
        before = self._dots(spans[first - 1], top) if first else None
        shown, dots = spans[first - 1] if first else None, before
        for x, span in enumerate(spans[first:], first):
            if span != shown:
                shown, dots = span, self._dots(span, top)
            if dots is not None:
                high, low = dots
                if before is not None:
                    high, low = min(high, before[1]), max(low, before[0])
                self._stroke(x, high, low)
            before = dots
        for i, part in enumerate(old):
            if self._bits[i][cell:end] != part:
                self._joined[i] = None

    def _dots(self, span: tuple[int, int] | None, top: int) -> tuple[int, int] | None:
        """Return the rows of dots of a column's highest and lowest value."""
        if span is None:
            return None
        return self._dot(max(span[1], 0) / top), self._dot(max(span[0], 0) / top)

    def _stroke(self, x: int, high: int, low: int) -> None:
        """Set the dots of a column between two rows of dots, both included."""
        across, down = self._style.across, self._style.down
        column, side = divmod(x, across)
        for y in range(high, low + 1):
            self._bits[y // down][column] |= 1 << (y % down * across + side)

    def row(self, index: int) -> Row:
        """Return a row's pieces; one that did not change is not put together again."""
        row = self._joined[index]
        if row is None:
            cells = self._style.cells
            pairs = zip(self._bits[index], self._back[index], strict=True)
            row = _joined((cells[bits], "measured") if bits else behind for bits, behind in pairs)
            self._joined[index] = row
        return row


def _labels(cells: _Cells, unit: str, top: int, rows: int) -> list[str]:
    """Return the label of each row: round numbers where they lie, and 0 at the bottom."""
    labels = [" " * _LABEL] * rows
    for value, text in ticks(top, rows, unit):
        labels[cells.row_of(value / top)] = text.rjust(_LABEL - 1)[: _LABEL - 1] + " "
    labels[rows - 1] = "0".rjust(_LABEL - 1) + " "
    return labels


def _floor(axis: Axis, inner: int, gutter: int, style: Glyphs) -> Row:
    left = f" {axis.left or duration(axis.end_ns - axis.start_ns)} "
    right = f" {axis.right} " if axis.right else ""
    room = inner - 2 - len(left) - len(right)
    line = style.corner + style.floor + left + style.floor * max(room, 0) + right
    unit = axis.unit if axis.unit in UNITS else ""
    return [(unit.rjust(_LABEL - 1) + " " + line[:inner].ljust(inner) + " " * gutter, "axis")]


def duration(ns: int) -> str:
    """Return a length of time in one unit: 45 s, 12 min, 3.5 h."""
    seconds = ns / 1e9
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
