"""Live: what happens now, or happened at the replay's time."""

from __future__ import annotations

from memplan_tui.keys import bindings, mark
from memplan_tui.lines import Line
from memplan_tui.messages import Snapshot
from memplan_tui.page import Page
from memplan_tui.views.live import live
from memplan_tui.views.words import Look

__all__ = ["LiveScreen"]


class LiveScreen(Page):
    """Devices, curves, processes."""

    NAME = "live"
    TITLE_WORD = mark("Live")
    BINDINGS = [*bindings("live")]  # noqa: RUF012

    def body(self, snapshot: Snapshot, look: Look, width: int, height: int) -> list[Line]:
        """Return the devices, their charts and the processes."""
        return live(snapshot, look, width, height)
