"""Live: the machine, the runs, and the selected run's memory against its plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from memplan_tui import view
from memplan_tui.widgets import Chart, Grid
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import Screen
from textual.widgets import Footer, Static

if TYPE_CHECKING:
    from memplan_tui.app import MemplanApp
    from memplan_tui.messages import Snapshot

__all__ = ["LiveScreen"]


class LiveScreen(Screen[None]):
    """What happens now."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "app.show('compare')", "Compare run", id="live.compare"),
        Binding("d", "next_device", "Device", id="live.device"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._device = 0
        self._run_ids: list[str] = []

    def compose(self) -> ComposeResult:
        """Lay out: status, machine, devices, chart, runs."""
        yield Static(id="status", markup=False)
        yield Static(id="empty", markup=False)
        with Vertical(id="body"):
            yield Static(id="machine", markup=False)
            yield Grid(view.RUN_COLUMNS, id="runs")
            yield Grid(view.DEVICE_COLUMNS, id="devices")
            yield Chart(unicode=self._app.unicode, id="chart")
        yield Footer(show_command_palette=False, compact=True)

    @property
    def _app(self) -> MemplanApp:
        return cast("MemplanApp", self.app)

    def on_mount(self) -> None:
        """Show what is known already."""
        self.query_one("#devices", Grid).can_focus = False
        self.show(self._app.snapshot)

    def show(self, snapshot: Snapshot) -> None:
        """Show a snapshot."""
        unit, width = self._app.unit, self.size.width
        text, well = view.sampler_text(snapshot)
        line = _ends("memplan   live", self._app.state_word(text), width)
        self.query_one("#status", Static).update(line)
        self.query_one("#status", Static).set_class(not well, "stale")
        empty = view.empty_text(snapshot)
        self.query_one("#empty", Static).update(empty or "")
        self.query_one("#empty").display = empty is not None
        self.query_one("#body").display = empty is None
        if empty is None:
            self._fill(snapshot, unit, width)

    def _fill(self, snapshot: Snapshot, unit: str, width: int) -> None:
        machine = view.machine_lines(snapshot.machine, unit, width)
        self.query_one("#machine", Static).update("\n".join(machine))
        self._run_ids = [run.id for run in snapshot.runs]
        runs = self.query_one("#runs", Grid)
        runs.border_title = f"runs, newest first; peak in {unit}"
        runs.fill(("", cells) for cells in view.run_rows(snapshot, unit, width))
        devices = self.query_one("#devices", Grid)
        devices.border_title = f"{view.headline(snapshot.detail)}   {unit}"
        rows = view.device_rows(snapshot.detail, unit)
        devices.fill((self._app.row_style(row[-1]), row) for row in rows)
        devices.styles.height = len(rows) + 2
        self._draw(snapshot, unit)

    def _draw(self, snapshot: Snapshot, unit: str) -> None:
        chart = self.query_one("#chart", Chart)
        detail = snapshot.detail
        drawn = [name for name in detail.history if detail.history[name]] if detail else []
        if detail is None or not drawn:
            chart.show("no samples of this run", (), None)
            return
        name = drawn[self._device % len(drawn)]
        axis = view.chart_axis(detail, name, unit, snapshot.now_ns)
        chart.show(name, detail.history[name], axis)

    def action_next_device(self) -> None:
        """Draw the next device's chart."""
        self._device += 1
        self.show(self._app.snapshot)

    def on_data_table_row_highlighted(self, event: Grid.RowHighlighted) -> None:
        """Show the run under the cursor."""
        if event.data_table.id == "runs" and event.cursor_row < len(self._run_ids):
            self._app.select_run(self._run_ids[event.cursor_row])

    def on_data_table_row_selected(self, event: Grid.RowSelected) -> None:
        """Open the run under the cursor beside its plan."""
        if event.data_table.id == "runs":
            self._app.action_show("compare")

    def on_resize(self) -> None:
        """Lay the lines out anew."""
        self.call_after_refresh(lambda: self.show(self._app.snapshot))


def _ends(left: str, right: str, width: int) -> str:
    """Return two texts at the ends of a line; the left one is cut where they meet."""
    room = max(width - len(right) - 4, 10)
    if len(left) > room:
        left = left[: room - 3] + "..."
    return left + right.rjust(max(width - len(left) - 2, len(right) + 1))
