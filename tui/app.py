"""The dashboard: polls the database once a second and hands one snapshot to the screen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar

from memplan_tui.messages import Polled, Snapshot
from memplan_tui.poller import Poller
from memplan_tui.screens.compare import CompareScreen
from memplan_tui.screens.help import HelpScreen
from memplan_tui.screens.live import LiveScreen
from memplan_tui.themes import DEFAULT, THEMES
from textual import work
from textual.app import App, ScreenStackError, SystemCommand
from textual.binding import Binding, BindingType
from textual.css.query import NoMatches
from textual.screen import Screen

from memplan.store.base import Reader
from memplan.store.reader import StoreReader

__all__ = ["MemplanApp"]

_UNITS = ("GiB", "MiB", "GB")


class MemplanApp(App[None]):
    """Plans beside measurements, live."""

    TITLE = "memplan"
    CSS_PATH = "app.tcss"
    ENABLE_COMMAND_PALETTE = True
    MODES: ClassVar[dict[str, Callable[[], Screen[None]]]] = {  # type: ignore[assignment]
        "live": LiveScreen,
        "compare": CompareScreen,
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "show('live')", "Live", id="app.live"),
        Binding("2", "show('compare')", "Compare", id="app.compare"),
        Binding("u", "unit", "Unit", id="app.unit", show=False),
        Binding("t", "colours", "Colours", id="app.colours", show=False),
        Binding("space", "pause", "Hold", id="app.pause"),
        Binding("question_mark,f1", "help", "Help", id="app.help", key_display="?"),
        Binding("q", "quit", "Quit", id="app.quit"),
    ]

    def __init__(
        self,
        database: str | Path,
        *,
        unit: str = "GiB",
        theme: str = DEFAULT,
        unicode: bool = True,
        interval_s: float = 1.0,
        open_reader: Callable[[str | Path], Reader] = StoreReader,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Set up.

        Args:
            database: file or URL.
            unit: "GiB", "MiB" or "GB".
            theme: one of ours or Textual's.
            unicode: draw with braille and box lines, or with ASCII.
            interval_s: seconds between polls.
            open_reader: makes a reader of a database.
            now_ns: the wall clock.
        """
        super().__init__()
        for known in THEMES:
            self.register_theme(known)
        self.theme = theme if theme in self.available_themes else DEFAULT
        self.unit = unit
        self.unicode = unicode
        self.snapshot = Snapshot(state="missing", reason="Reading the database ...")
        self._interval_s = interval_s
        self._poller = Poller(database, open_reader=open_reader, now_ns=now_ns)
        self._selected: str | None = None
        self._paused = False

    def on_mount(self) -> None:
        """Open the first screen and begin to poll."""
        self.switch_mode("live")
        self.poll()
        self.set_interval(self._interval_s, self._tick)

    def on_unmount(self) -> None:
        """Close the database."""
        self._poller.close()

    def _tick(self) -> None:
        if not self._paused:
            self.poll()

    @work(thread=True, exclusive=True, group="poll")
    def poll(self) -> None:
        """Read the database in a thread; the answer comes as a message."""
        self.post_message(Polled(self._poller.poll(self._selected)))

    def on_polled(self, message: Polled) -> None:
        """Show a new snapshot."""
        self.snapshot = message.snapshot
        self._show()

    def _show(self) -> None:
        try:
            screen = self.screen
            if isinstance(screen, LiveScreen | CompareScreen) and screen.is_mounted:
                screen.show(self.snapshot)
        except (ScreenStackError, NoMatches):
            # The answer came while the program was ending: Textual takes the
            # widgets of a screen away before the screen itself.
            return

    def state_word(self, sampler: str) -> str:
        """Return what stands at the right end of the status line."""
        return "HELD, sampling goes on" if self._paused else sampler

    def row_style(self, words: str) -> str:
        """Return the rich style of a row: bold where the plan was left."""
        return "bold" if words in {"OVER PLAN", "over", "under plan", "under"} else ""

    def select_run(self, run_id: str) -> None:
        """Show another run in detail."""
        if run_id != self._selected:
            self._selected = run_id
            self.poll()

    def step_run(self, step: int) -> None:
        """Select the run `step` places further down the list."""
        ids = [run.id for run in self.snapshot.runs]
        if not ids:
            return
        now = ids.index(self._selected) if self._selected in ids else 0
        self.select_run(ids[min(max(now + step, 0), len(ids) - 1)])

    def action_show(self, mode: str) -> None:
        """Switch to a screen."""
        self.switch_mode(mode)
        self.call_after_refresh(self._show)

    def action_unit(self) -> None:
        """Switch the unit of all sizes."""
        self.unit = _UNITS[(_UNITS.index(self.unit) + 1) % len(_UNITS)]
        self._show()

    def action_colours(self) -> None:
        """Switch the theme."""
        names = [theme.name for theme in THEMES]
        now = names.index(self.theme) if self.theme in names else -1
        self.theme = names[(now + 1) % len(names)]
        self._show()

    def action_pause(self) -> None:
        """Hold the picture still, or go on."""
        self._paused = not self._paused
        self._show()
        if not self._paused:
            self.poll()

    def action_help(self) -> None:
        """Open the help page."""
        self.push_screen(HelpScreen())

    def get_system_commands(self, screen: Screen[None]) -> Iterable[SystemCommand]:
        """Name every action in the palette."""
        yield from super().get_system_commands(screen)
        yield SystemCommand("Live", "The machine, the runs, the selected run", self._to("live"))
        yield SystemCommand("Compare", "Planned and measured, part by part", self._to("compare"))
        yield SystemCommand("Unit", "GiB, MiB or GB", self.action_unit)
        yield SystemCommand("Colours", "Dark, light or high contrast", self.action_colours)
        yield SystemCommand("Hold", "Hold the picture still; sampling goes on", self.action_pause)

    def _to(self, mode: str) -> Callable[[], None]:
        return lambda: self.action_show(mode)
