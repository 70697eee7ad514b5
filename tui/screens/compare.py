"""Compare: one run beside its plan, part by part, with what nothing explains."""

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
    from memplan_tui.messages import Detail, Snapshot

__all__ = ["CompareScreen"]

_VERDICTS = {
    "within": "WITHIN: every measured peak lies inside its planned band",
    "over": "OVER: a peak lies above its planned band",
    "under": "UNDER: a peak lies below its planned band",
    None: "NOT COMPARED: nothing was both planned and measured",
}

_STYLES = {"device": "bold", "unaccounted": "italic", "peak": "bold"}


class CompareScreen(Screen[None]):
    """Plan beside measurement."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "app.show('live')", "Back", id="compare.back"),
        Binding("n", "other_run(1)", "Older run", id="compare.older"),
        Binding("p", "other_run(-1)", "Newer run", id="compare.newer"),
    ]

    def compose(self) -> ComposeResult:
        """Lay out: run, table, verdict, chart."""
        yield Static(id="status", markup=False)
        yield Static(id="empty", markup=False)
        with Vertical(id="body"):
            yield Grid(view.COMPARE_COLUMNS, id="parts")
            yield Static(id="verdict", markup=False)
            yield Chart(unicode=self._app.unicode, id="chart")
        yield Footer(show_command_palette=False, compact=True)

    @property
    def _app(self) -> MemplanApp:
        return cast("MemplanApp", self.app)

    def on_mount(self) -> None:
        """Show what is known already."""
        self.show(self._app.snapshot)

    def show(self, snapshot: Snapshot) -> None:
        """Show a snapshot."""
        detail = snapshot.detail
        line = f"compare   {view.headline(detail)}"
        self.query_one("#status", Static).update(line)
        empty = view.empty_text(snapshot)
        self.query_one("#empty", Static).update(empty or "")
        self.query_one("#empty").display = empty is not None
        self.query_one("#body").display = empty is None
        if empty is None and detail is not None:
            self._fill(detail, snapshot)

    def _fill(self, detail: Detail, snapshot: Snapshot) -> None:
        unit = self._app.unit
        table = self.query_one("#parts", Grid)
        table.border_title = f"plan {detail.comparison.plan_id or 'none'}   sizes in {unit}"
        rows = view.compare_rows(detail.comparison, detail.plan, unit)
        table.fill((_STYLES.get(kind, self._app.row_style(kind)), cells) for kind, cells in rows)
        table.styles.height = min(len(rows) + 2, max(self.size.height - 6, 6))
        words = [_VERDICTS[detail.comparison.verdict]]
        words += [f"note: {note}" for note in detail.comparison.notes]
        verdict = self.query_one("#verdict", Static)
        verdict.update("\n".join(words))
        verdict.set_class(detail.comparison.verdict == "over", "bad")
        verdict.set_class(detail.comparison.verdict == "within", "good")
        chart = self.query_one("#chart", Chart)
        chart.display = self.size.height >= len(rows) + len(words) + 13
        name = next((name for name, points in detail.history.items() if points), None)
        if name is not None:
            axis = view.chart_axis(detail, name, unit, snapshot.now_ns)
            chart.show(name, detail.history[name], axis)

    def action_other_run(self, step: int) -> None:
        """Show the next older or newer run."""
        self._app.step_run(step)

    def on_resize(self) -> None:
        """Lay the lines out anew."""
        self.call_after_refresh(lambda: self.show(self._app.snapshot))
