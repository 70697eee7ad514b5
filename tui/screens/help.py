"""Help: a page over the screen."""

from __future__ import annotations

from memplan_tui.canvas import Canvas
from memplan_tui.keys import bindings, footer
from memplan_tui.lines import Line, ends
from memplan_tui.text import tr
from memplan_tui.views.help import help_lines
from textual.app import ComposeResult
from textual.screen import Screen

__all__ = ["HelpScreen"]


class HelpScreen(Screen[None]):
    """Keys and signs."""

    DEFAULT_CSS = """
    HelpScreen { background: $background; layout: vertical; }
    HelpScreen > #status { height: 1; }
    HelpScreen > #body { height: 1fr; }
    HelpScreen > #keys { height: 1; }
    """
    BINDINGS = [*bindings("help")]  # noqa: RUF012

    def __init__(self, screen: str, moved: dict[str, str], *, unicode: bool) -> None:
        """Set up.

        Args:
            screen: where help was asked for.
            moved: keys that the config moved.
            unicode: False = ASCII alone.
        """
        super().__init__()
        self._screen = screen
        self._moved = moved
        self._unicode = unicode
        self._first = 0

    def compose(self) -> ComposeResult:
        """Lay out."""
        yield Canvas(unicode=self._unicode, id="status", base="status")
        yield Canvas(unicode=self._unicode, id="body", inset=1)
        yield Canvas(unicode=self._unicode, id="keys", inset=1)

    def on_mount(self) -> None:
        """Draw."""
        self.call_after_refresh(self.show)

    def on_resize(self) -> None:
        """Draw anew."""
        self.call_after_refresh(self.show)

    def show(self) -> None:
        """Draw the part of the page that fits."""
        width, height = self.size.width - 2, self.size.height - 2
        lines = help_lines(self._screen, self._moved, width)
        self._first = min(max(self._first, 0), max(len(lines) - height, 0))
        shown: list[Line] = lines[self._first : self._first + height]
        below = len(lines) - self._first - height
        note = tr("{n} more lines: down").format(n=below) if below > 0 else ""
        title: Line = [(" memplan  " + tr("Help"), "")]
        self.query_one("#status", Canvas).show([ends(title, [(f"{note} ", "")], self.size.width)])
        self.query_one("#body", Canvas).show(shown)
        self.query_one("#keys", Canvas).show([footer("help", self._moved, width, own=True)])

    def action_scroll(self, step: int) -> None:
        """Show lines above or below."""
        self._first += step * max(self.size.height // 2, 1)
        self.show()

    def action_close(self) -> None:
        """Go back."""
        self.dismiss()
