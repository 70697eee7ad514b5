"""Runs: the history. Fleet: the machines."""

from __future__ import annotations

from memplan_tui.canvas import Canvas
from memplan_tui.keys import bindings, mark
from memplan_tui.lines import Line
from memplan_tui.messages import Snapshot
from memplan_tui.page import Page
from memplan_tui.screens.prompt import Prompt
from memplan_tui.text import tr
from memplan_tui.views.runs import SORTS, fleet_screen, ordered, runs_screen
from memplan_tui.views.words import Look

from memplan.types import Run

__all__ = ["FleetScreen", "RunsScreen"]


class RunsScreen(Page):
    """Filter, sort, open, mark."""

    NAME = "runs"
    NEED = "runs"
    TITLE_WORD = mark("Runs")
    BINDINGS = [*bindings("runs")]  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.words = ""
        """The filter."""
        self._sort = SORTS[0]
        self._reverse = False
        self._cursor = 0
        self._marked: list[str] = []

    def body(self, snapshot: Snapshot, look: Look, width: int, height: int) -> list[Line]:
        """Return the list, and marked runs side by side."""
        shown = self._shown()
        self._cursor = min(self._cursor, max(len(shown) - 1, 0))
        return runs_screen(
            snapshot,
            shown,
            look,
            width,
            height,
            cursor=self._cursor,
            marked=self._marked,
            sort=self._sort,
            words=self.words,
        )

    def _shown(self) -> list[Run]:
        snapshot = self.memplan.snapshot
        return ordered(snapshot, words=self.words, sort=self._sort, reverse=self._reverse)

    def action_move(self, step: int) -> None:
        """Move the cursor."""
        self._cursor = min(max(self._cursor + step, 0), max(len(self._shown()) - 1, 0))
        self.show()

    def on_canvas_wheel(self, event: Canvas.Wheel) -> None:
        """Move by the wheel."""
        self.action_move(event.step)

    def action_open(self) -> None:
        """Show the run under the cursor beside its plan."""
        shown = self._shown()
        if shown:
            self.memplan.select_run(shown[self._cursor].id)
            self.memplan.action_show("compare")

    def action_sort(self, step: int) -> None:
        """Sort by another column."""
        self._sort = SORTS[(SORTS.index(self._sort) + step) % len(SORTS)]
        self.show()

    def action_reverse(self) -> None:
        """Turn the order round."""
        self._reverse = not self._reverse
        self.show()

    def action_mark(self) -> None:
        """Mark a run; of three the oldest mark goes."""
        shown = self._shown()
        if not shown:
            return
        name = shown[self._cursor].id
        marked = [run for run in self._marked if run != name]
        self._marked = marked if len(marked) < len(self._marked) else [*marked, name][-2:]
        self.memplan.put_beside(tuple(self._marked))
        self.show()

    def action_filter(self) -> None:
        """Ask for words."""
        title = tr("Show runs that hold these words (id, command, host, plan, status)")
        self.app.push_screen(Prompt(title, self.words), self.filter)

    def filter(self, words: str | None) -> None:
        """Show only runs that hold some words."""
        if words is not None:
            self.words, self._cursor = words.strip(), 0
        self.show()


class FleetScreen(Page):
    """Machines."""

    NAME = "fleet"
    NEED = "fleet"
    TITLE_WORD = mark("Fleet")
    BINDINGS = [*bindings("fleet")]  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self._cursor = 0

    def body(self, snapshot: Snapshot, look: Look, width: int, height: int) -> list[Line]:
        """Return the machines."""
        self._cursor = min(self._cursor, max(len(snapshot.hosts) - 1, 0))
        return fleet_screen(snapshot, look, width, cursor=self._cursor)[:height]

    def action_move(self, step: int) -> None:
        """Move the cursor."""
        last = max(len(self.memplan.snapshot.hosts) - 1, 0)
        self._cursor = min(max(self._cursor + step, 0), last)
        self.show()

    def action_open(self) -> None:
        """Show a machine's runs."""
        hosts = self.memplan.snapshot.hosts
        if hosts:
            self.memplan.show_runs_of(hosts[self._cursor].name)
