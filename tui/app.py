"""The dashboard: reads the database once a second and hands one snapshot to the screen."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, cast

from memplan_tui.keys import KEYS, bindings
from memplan_tui.messages import Request, Snapshot
from memplan_tui.page import Page
from memplan_tui.poller import Poller
from memplan_tui.replaying import Replaying
from memplan_tui.screens.live import LiveScreen
from memplan_tui.text import tr
from memplan_tui.themes import DEFAULT, THEMES
from memplan_tui.views.charts import curves
from memplan_tui.views.words import WINDOWS, Look, clock, sampler
from textual import work
from textual.app import App, ScreenStackError, SystemCommand
from textual.binding import Binding, BindingType
from textual.command import CommandPalette
from textual.filter import ANSIToTruecolor, LineFilter
from textual.message import Message
from textual.screen import Screen

from memplan.chart import glyphs
from memplan.store.base import Reader
from memplan.store.reader import StoreReader

if TYPE_CHECKING:
    from memplan_tui.screens.plan import Planner

__all__ = ["MemplanApp", "Polled"]

_UNITS = ("GiB", "MiB", "GB")


_SCREENS = {
    "live": "live:LiveScreen",
    "plan": "plan:PlanScreen",
    "compare": "compare:CompareScreen",
    "runs": "runs:RunsScreen",
    "fleet": "runs:FleetScreen",
}
"""Mode -> where its screen is: imported when it is first shown."""


class Source(Protocol):
    """Where snapshots come from: the live database, or a recording."""

    def poll(self, request: Request) -> Snapshot:
        """Return what the screens show."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class Polled(Message):
    """A new snapshot is there."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        self.snapshot = snapshot


class MemplanApp(Replaying):
    """Plans beside measurements, live and replayed."""

    TITLE = "memplan"
    ENABLE_COMMAND_PALETTE = True
    DEFAULT_MODE = "live"
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings("app"),
        Binding("escape", "app.show('live')", "Live", id="app.home", show=False),
    ]
    COMMAND_PALETTE_BINDING = "ctrl+p"

    def __init__(
        self,
        database: str | Path,
        *,
        unit: str = "GiB",
        theme: str = DEFAULT,
        style: str = "braille",
        unicode: bool = True,
        interval_s: float = 1.0,
        planner: Planner | None = None,
        moved: Mapping[str, str] | None = None,
        folder: Path | None = None,
        replay: str | None = None,
        poller: Poller | None = None,
        open_reader: Callable[[str | Path], Reader] = StoreReader,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Set up.

        Args:
            database: file or URL.
            unit: "GiB", "MiB" or "GB".
            theme: one of ours or Textual's.
            style: "braille", "block" or "ascii".
            unicode: False = ASCII alone, everywhere.
            interval_s: seconds between polls.
            planner: makes plans anew for the Plan screen; None = it only shows them.
            moved: binding id -> keys, as the config moves them.
            folder: where exports go; None = the working folder.
            replay: run to begin a replay of; "" = the newest, or the machine.
            poller: has begun to read already; None = one of its own.
            open_reader: makes a reader of a database.
            now_ns: the wall clock.
        """
        super().__init__(database, open_reader=open_reader, replay=replay)
        for known in THEMES:
            self.register_theme(known)
        self._wear(theme if theme in self.available_themes else DEFAULT)
        self.unicode = unicode
        self.planner = planner
        self.moved = dict(moved or {})
        self._unit, self._style = unit, style
        self._folder = folder or Path.cwd()
        self._interval_s = interval_s
        self._now_ns = now_ns
        self._poller = poller or Poller(database, open_reader=open_reader, now_ns=now_ns)
        self._paused = False
        self.set_keymap(self.moved)

    def _wear(self, theme: str) -> None:
        """Choose the first colours: set as usual, the library would parse all its CSS twice."""
        if self.available_themes[theme].ansi:
            self.theme = theme
            return
        self.set_reactive(App.theme, theme)
        self.stylesheet.set_variables(self.get_css_variables())

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Leave out what turns the terminal's sixteen colours into others: no theme needs it."""
        return [f for f in super().get_line_filters() if not isinstance(f, ANSIToTruecolor)]

    def get_default_screen(self) -> Screen[None]:
        """Return the first screen."""
        return LiveScreen()

    def on_mount(self) -> None:
        """Begin to poll."""
        for mode, place in _SCREENS.items():
            self.add_mode(mode, partial(_screen, place))
        self.snapshot = self._poller.last or self.snapshot
        self.begin_replay()
        self.glance()
        self.set_interval(self._interval_s, self._tick)

    def on_unmount(self) -> None:
        """Close the database."""
        self._poller.close()

    def _tick(self) -> None:
        if not self._paused and self.replay is None:
            self.poll()

    @work(thread=True, exclusive=True, group="poll")
    def poll(self) -> None:
        """Read in a thread; the answer comes as a message."""
        source: Source = self._recording if self._recording is not None else self._poller
        at = self.replay.at_ns if self.replay is not None else None
        self.post_message(Polled(source.poll(replace(self._request, at_ns=at))))

    @work(thread=True, exclusive=True, group="poll")
    def glance(self) -> None:
        """Have a first look in a thread."""
        self.post_message(Polled(self._poller.glance(self._request)))

    def on_polled(self, message: Polled) -> None:
        """Show a new snapshot; behind a first look all the rest is read."""
        self.snapshot = message.snapshot
        self.draw()
        if self.snapshot.glance:
            self.call_after_refresh(self.poll)

    def draw(self) -> None:
        """Draw the screen in front."""
        try:
            if isinstance(self.screen, Page):
                self.screen.show()
        except ScreenStackError:
            return  # the answer came while the program was ending

    def look(self) -> Look:
        """Return how things are shown now."""
        return Look(
            unit=self._unit,
            style=glyphs(self._style if self.unicode else "ascii"),
            window_ns=self.window_ns,
            device=self._device,
            clock=self._clock(),
        )

    def _clock(self) -> tuple[str, str]:
        """Return what stands at the right end of the status line."""
        window = self.window_ns
        span = tr("all") if window is None else f"{window // (60 * 10**9)} min"
        if self.replay is not None:
            state = "▸" if self.replay.playing else tr("paused")
            at, speed = clock(self.replay.at_ns), f"x{self.replay.speed:g}"
            share = f"{self.replay.share:.0%}"
            return tr("REPLAY") + f" {at}  {state} {speed}  {share}  {span}", ""
        if self._paused:
            return tr("HELD: sampling goes on"), ""
        words, _ = sampler(self.snapshot)
        return f"{words}  {span}", ""

    def _ask(self, request: Request) -> None:
        self._request = request
        self.poll()

    def select_run(self, run_id: str | None) -> None:
        """Show another run in detail; None = whatever happens now."""
        if self.replay is not None:
            self._stop_replay()
        self._ask(replace(self._request, run_id=run_id, plan_id=None))

    def put_beside(self, runs: tuple[str, ...]) -> None:
        """Read runs that are shown side by side."""
        if self.replay is not None and len(runs) == 2:
            self.notify(tr("Side by side comes after the replay: r ends it."))
        self._ask(replace(self._request, beside=runs))

    def select_plan(self, key: str) -> None:
        """Show a plan by its id, or the "last" one."""
        ids = self.snapshot.plans
        self._ask(replace(self._request, plan_id=ids[0] if key == "last" and ids else key))

    def step_plan(self, step: int) -> None:
        """Show the plan that is `step` places older."""
        ids, shown = self.snapshot.plans, self.snapshot.plan
        if ids:
            now = ids.index(shown.id) if shown is not None and shown.id in ids else 0
            wanted = ids[min(max(now + step, 0), len(ids) - 1)]
            self._ask(replace(self._request, plan_id=wanted))

    def show_runs_of(self, host: str) -> None:
        """Show one machine's runs."""
        self.action_show("runs")

        def choose() -> None:
            from memplan_tui.screens.runs import RunsScreen

            if isinstance(self.screen, RunsScreen):
                self.screen.filter(host)

        self.call_after_refresh(choose)

    def action_show(self, mode: str) -> None:
        """Switch to a screen."""
        if self.current_mode != mode:
            self.switch_mode(mode)  # the screen draws when it comes to the front

    def action_unit(self) -> None:
        """Switch the unit of all sizes."""
        self._unit = _UNITS[(_UNITS.index(self._unit) + 1) % len(_UNITS)]
        self.draw()

    def action_theme(self) -> None:
        """Switch the colours."""
        names = [theme.name for theme in THEMES]
        now = names.index(self.theme) if self.theme in names else -1
        self.theme = names[(now + 1) % len(names)]
        self.call_after_refresh(self.draw)

    def action_device(self) -> None:
        """Bring the next device's chart to the top."""
        self._device = (self._device + 1) % max(len(curves(self.snapshot)), 1)
        self.draw()

    def action_window(self, step: int) -> None:
        """Show a longer or a shorter time."""
        place = min(max(WINDOWS.index(self.window_ns) + step, 0), len(WINDOWS) - 1)
        self.window_ns = WINDOWS[place]
        self._ask(replace(self._request, window_ns=self.window_ns))

    def action_run(self, step: int) -> None:
        """Select an older or a newer run; beyond the newest, what happens now."""
        ids = [run.id for run in self.snapshot.runs]
        detail = self.snapshot.detail
        now = ids.index(detail.run.id) if detail is not None and detail.run.id in ids else -1
        wanted = min(now + step, len(ids) - 1)
        self.select_run(ids[wanted] if wanted >= 0 else None)

    def action_pause(self) -> None:
        """Hold the picture still, or go on."""
        if self.replay is not None:
            self._set(self.replay.toggled())
            return
        self._paused = not self._paused
        self.draw()
        if not self._paused:
            self.poll()

    def action_help(self) -> None:
        """Open the help page."""
        from memplan_tui.screens.help import HelpScreen

        name = self.screen.NAME if isinstance(self.screen, Page) else ""
        self.push_screen(HelpScreen(name, self.moved, unicode=self.unicode))

    def action_command_palette(self) -> None:
        """Open the list of all actions."""
        if not any(isinstance(screen, CommandPalette) for screen in self.screen_stack):
            words = tr("Find an action")
            self.push_screen(CommandPalette(placeholder=words, id="--command-palette"))

    def action_export(self) -> None:
        """Write curves, facts and the screen into the folder."""
        from memplan_tui import export

        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(self._now_ns() / 1e9))
        try:
            svg = self.export_screenshot(title="memplan")
            paths = export.write(self.snapshot, svg, self._folder, stamp)
        except OSError as error:
            self.notify(str(error), title=tr("Not written"), severity="error")
            return
        names = "\n".join(path.name for path in paths)
        self.notify(f"{paths[0].parent}\n{names}", title=tr("Written"), markup=False)

    def get_system_commands(self, screen: Screen[None]) -> Iterable[SystemCommand]:
        """Name every action in the palette, those of the screen in front first."""
        name = screen.NAME if isinstance(screen, Page) else ""
        for key in (*KEYS.get(name, ()), *KEYS["app"]):
            if key.id != "app.palette":
                yield SystemCommand(tr(key.title), tr(key.sentence), self._runner(key.action))

    def _runner(self, action: str) -> Callable[[], None]:
        owner = self if action.startswith("app.") else self.screen

        async def run() -> None:
            await self.run_action(action.removeprefix("app."), owner)

        def later() -> None:
            self.call_later(run)

        return later


def _screen(place: str) -> Screen[None]:
    module, _, name = place.partition(":")
    found = importlib.import_module(f"memplan_tui.screens.{module}")
    return cast("Screen[None]", getattr(found, name)())
