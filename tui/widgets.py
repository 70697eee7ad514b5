"""The two widgets: a chart, and a table whose columns never jump."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from memplan_tui.messages import Points
from memplan_tui.view import Column, legend
from rich.style import Style
from rich.text import Text
from textual.widget import Widget
from textual.widgets import DataTable

from memplan.chart import Axis, draw, glyphs

__all__ = ["Chart", "Grid"]

_COLOURS = {
    "measured": "primary",
    "plan": "secondary",
    "band": "secondary",
    "capacity": "error",
    "axis": "foreground",
    "empty": "foreground",
}


class Chart(Widget):
    """Draws one device's curve against its plan."""

    DEFAULT_CSS = "Chart { height: 1fr; min-height: 4; }"

    def __init__(self, *, unicode: bool, id: str | None = None) -> None:  # noqa: A002
        """Begin empty.

        Args:
            unicode: braille and box lines, or ASCII.
            id: the widget's id.
        """
        super().__init__(id=id)
        self._style = glyphs(unicode=unicode)
        self._points: Points = ()
        self._axis: Axis | None = None
        self._title = ""

    def show(self, title: str, points: Points, axis: Axis | None) -> None:
        """Show a curve; an axis of None clears the chart and leaves the title."""
        if (title, points, axis) != (self._title, self._points, self._axis):
            self._title, self._points, self._axis = title, points, axis
            self.refresh()

    def render(self) -> Text:
        """Return the whole chart as text: every piece has a style, also without colour."""
        size = self.content_size
        text = Text(no_wrap=True, end="", style=self._colour("foreground"))
        head = self._title if self._axis is None else f"{self._title}   {legend(self._axis)}"
        text.append(head[: size.width], self._colour("foreground", bold=True))
        if self._axis is None:
            return text
        rows = draw(
            self._points, self._axis, width=size.width, height=size.height - 1, style=self._style
        )
        for row in rows:
            text.append("\n", self._colour("foreground"))
            for piece, role in row:
                text.append(piece, self._colour(_COLOURS[role]))
        return text

    def _colour(self, name: str, *, bold: bool = False) -> Style:
        return Style(color=self.app.theme_variables.get(name, "default"), bold=bold)


class Grid(DataTable[Text]):
    """A table with fixed columns that keeps its cursor on the same row."""

    def __init__(self, columns: Sequence[Column], *, id: str | None = None) -> None:  # noqa: A002
        """Set up.

        Args:
            columns: headings and widths; the last one takes what is left.
            id: the widget's id.
        """
        super().__init__(id=id, cursor_type="row", zebra_stripes=False)
        self._columns_wanted = columns
        self._shown: list[tuple[str, tuple[str, ...]]] = []
        self._fitted = 0

    def on_mount(self) -> None:
        """Make the columns."""
        self._make_columns()

    def on_resize(self) -> None:
        """Give the last column what is left."""
        if self.size.width != self._fitted:
            self._make_columns()
            rows, self._shown = self._shown, []
            self.fill(rows)

    def _make_columns(self) -> None:
        self._fitted = self.size.width
        row = self.cursor_row
        self.clear(columns=True)
        padding = 2 * self.cell_padding
        fixed = sum(column.width + padding for column in self._columns_wanted[:-1])
        for column in self._columns_wanted:
            last = column is self._columns_wanted[-1]
            rest = max(self._fitted - fixed - padding, column.width)
            label = Text(column.label, justify="right" if column.right else "left")
            self.add_column(label, key=column.key, width=rest if last else column.width)
        self.move_cursor(row=row)

    def fill(self, rows: Iterable[tuple[str, tuple[str, ...]]]) -> None:
        """Show rows; only what changed is touched.

        Args:
            rows: (style, cells): a rich style such as "bold" or "" for each row.
        """
        wanted = list(rows)
        if len(wanted) != len(self._shown):
            row = self.cursor_row
            self.clear()
            for style, cells in wanted:
                self.add_row(*self._texts(style, cells))
            self.move_cursor(row=min(row, max(len(wanted) - 1, 0)))
        else:
            for i, (new, old) in enumerate(zip(wanted, self._shown, strict=True)):
                if new != old:
                    for j, text in enumerate(self._texts(*new)):
                        self.update_cell_at((i, j), text)  # type: ignore[arg-type]
        self._shown = wanted

    def _texts(self, style: str, cells: tuple[str, ...]) -> list[Text]:
        return [
            Text(cell, style=style, justify="right" if column.right else "left", no_wrap=True)
            for cell, column in zip(cells, self._columns_wanted, strict=True)
        ]
