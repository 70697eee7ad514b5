"""Compare: the selected run beside its plan."""

from __future__ import annotations

from memplan_tui.canvas import Canvas
from memplan_tui.keys import bindings, mark
from memplan_tui.lines import Line
from memplan_tui.messages import Snapshot
from memplan_tui.page import Page
from memplan_tui.views.compare import compare_screen
from memplan_tui.views.words import Look

__all__ = ["CompareScreen"]


class CompareScreen(Page):
    """Plan beside measurement."""

    NAME = "compare"
    NEED = "compare"
    TITLE_WORD = mark("Compare")
    BINDINGS = [*bindings("compare")]  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self._first = 0

    def body(self, snapshot: Snapshot, look: Look, width: int, height: int) -> list[Line]:
        """Return parts, phases and the reason of the gap."""
        whole = compare_screen(snapshot, look, width, 10_000)
        self._first = min(self._first, max(len(whole) - height, 0))
        return compare_screen(snapshot, look, width, height, first=self._first)

    def action_scroll(self, step: int) -> None:
        """Show lines above or below."""
        self._first = max(self._first + step, 0)
        self.show()

    def on_canvas_wheel(self, event: Canvas.Wheel) -> None:
        """Scroll by the wheel."""
        self.action_scroll(event.step)
