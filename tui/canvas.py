"""The one widget: draws lines with roles, and repaints only those that changed."""

from __future__ import annotations

from collections.abc import Sequence

from memplan_tui.lines import Line, fitted, plain
from memplan_tui.themes import role_styles
from rich.segment import Segment
from rich.style import Style
from textual.events import Click
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

__all__ = ["Canvas"]


class Canvas(Widget):
    """Shows lines; a click says which one."""

    class Clicked(Message):
        """A line was clicked."""

        def __init__(self, canvas: Canvas, line: int) -> None:
            super().__init__()
            self.canvas = canvas
            self.line = line

    class Wheel(Message):
        """The wheel was turned."""

        def __init__(self, step: int) -> None:
            super().__init__()
            self.step = step

    def __init__(
        self,
        *,
        unicode: bool,
        id: str | None = None,  # noqa: A002
        base: str = "",
        inset: int = 0,
    ) -> None:
        """Begin empty.

        Args:
            unicode: False = ASCII alone.
            id: the widget's id.
            base: role of the background.
            inset: blanks before each line. A margin would have the library's own background,
                which is none of the terminal's.
        """
        super().__init__(id=id)
        self._unicode = unicode
        self._base = base
        self._inset = " " * inset
        self._lines: list[Line] = []
        self._styles: dict[str, Style] = {}
        self._ground = Style()
        self._painted: dict[str, Style] = {}
        self._theme = ""

    def show(self, lines: Sequence[Line]) -> None:
        """Show lines; those that are as before are not painted again."""
        old, new = self._lines, list(lines)
        self._lines = new
        if self.app.theme != self._theme or len(old) != len(new):
            self.refresh()
            return
        width = self.size.width
        changed = [Region(0, y, width, 1) for y, line in enumerate(new) if line != old[y]]
        if changed:
            self.refresh(*changed)

    def render_line(self, y: int) -> Strip:
        """Return one row of the screen; each of its pieces has a style."""
        if self._theme != self.app.theme or not self._styles:
            self._theme = self.app.theme
            theme = self.app.current_theme
            self._styles = role_styles(theme, colour=not self.app.no_color)
            colour = None if theme.ansi or self.app.no_color else theme.background
            self._ground = Style(bgcolor=colour)
            self._painted = {}
        width = self.size.width
        segments = [
            Segment(piece if self._unicode else plain(piece), self._style(role))
            for piece, role in self._fitted(y)
        ]
        return Strip(segments, width)

    def _fitted(self, y: int) -> Line:
        line = [(self._inset, ""), *self._lines[y]] if y < len(self._lines) else []
        return fitted(line, self.size.width)

    def _style(self, role: str) -> Style:
        """Return a role's style on the ground; adding styles up takes a while, so it is kept."""
        found = self._painted.get(role)
        if found is None:
            base = self._ground + self._styles.get(self._base, Style())
            plain_role = not role and bool(self._base)
            own = Style() if plain_role else self._styles.get(role, self._styles[""])
            found = self._painted[role] = base + own
        return found

    def text(self) -> str:
        """Return what is shown, for tests."""
        lines = (self._fitted(y) for y in range(len(self._lines)))
        return "\n".join("".join(piece for piece, _ in line).rstrip() for line in lines)

    def on_click(self, event: Click) -> None:
        """Tell which line was clicked."""
        self.post_message(self.Clicked(self, event.y))

    def on_mouse_scroll_down(self) -> None:
        """Move down."""
        self.post_message(self.Wheel(1))

    def on_mouse_scroll_up(self) -> None:
        """Move up."""
        self.post_message(self.Wheel(-1))
