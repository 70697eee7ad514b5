"""What a replay adds to the program: load a recording, play it, and move in it by keys."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from memplan_tui.clock import Replay, parse_time
from memplan_tui.messages import FIRST_WINDOW_NS, Request, Snapshot
from memplan_tui.text import tr
from memplan_tui.views.charts import curves
from textual import work
from textual.app import App

from memplan.errors import MemplanError
from memplan.store.base import Reader

if TYPE_CHECKING:
    from memplan_tui.replay import Recording
    from textual.worker import Worker

__all__ = ["Replaying"]

PLAYED_S = 0.25
"""Between two pictures of a replay that plays; a paused one is not drawn again."""


class Replaying(App[None]):
    """A program whose clock can be a recording's; without a recording it is the wall clock."""

    def __init__(
        self,
        database: str | Path,
        *,
        open_reader: Callable[[str | Path], Reader],
        replay: str | None,
    ) -> None:
        """Begin live.

        Args:
            database: file or URL that recordings are read from.
            open_reader: makes a reader of it.
            replay: run to begin a replay of; "" = the newest, or the machine; None = none.
        """
        super().__init__()
        self.snapshot = Snapshot(state="reading")
        self.replay: Replay | None = None
        self.window_ns: int | None = FIRST_WINDOW_NS
        self._request = Request(window_ns=self.window_ns)
        self._device = 0
        self._database, self._open_reader = database, open_reader
        self._recording: Recording | None = None
        self._first_replay = replay
        self._ticked_s = 0.0

    @abstractmethod
    def poll(self) -> Worker[None]:
        """Read what the screens show as of the clock."""

    def begin_replay(self) -> None:
        """Prepare to play, and load the recording that was asked for at the start."""
        self._player = self.set_interval(PLAYED_S, self._play, pause=True)
        if self._first_replay is not None:
            self._load(self._first_replay or None)

    def _play(self) -> None:
        if self.replay is None or not self.replay.playing:
            self._player.pause()
            return
        now = time.monotonic()
        self.replay = self.replay.advanced(round((now - self._ticked_s) * 1e9))
        self._ticked_s = now
        self.poll()

    def action_replay(self) -> None:
        """Play the selected run again, or come back to what happens now."""
        if self.replay is not None:
            self._stop_replay()
            self.poll()
            return
        detail = self.snapshot.detail
        self._load(detail.run.id if detail is not None else None)

    @work(thread=True, exclusive=True, group="load")
    def _load(self, run_id: str | None) -> None:
        """Read a run, or the machine's last day, and begin to play it."""
        from memplan_tui.replay import load_recording

        try:
            with self._open_reader(self._database) as reader:
                if run_id is None and self._first_replay is not None:
                    run_id = next((run.id for run in reader.runs(1)), None)
                last = reader.last_sample_ns() or 0
                since = None if run_id is not None else last - (self.window_ns or 86400 * 10**9)
                recording = load_recording(reader, run_id, since_ns=since)
        except (MemplanError, OSError) as error:
            self.call_from_thread(self.notify, str(error), severity="error", markup=False)
            return
        self.call_from_thread(self._begin, recording)

    def _begin(self, recording: Recording) -> None:
        found = recording.clock()
        if found is None:
            self.notify(tr("Nothing was sampled there: nothing to replay."), severity="warning")
            return
        self._recording = recording
        self.window_ns = None
        self._request = replace(self._request, window_ns=None)
        self._set(found)

    def _stop_replay(self) -> None:
        self._recording, self.replay, self._first_replay = None, None, None

    def _set(self, replay: Replay) -> None:
        self.replay = replay
        self._ticked_s = time.monotonic()
        if replay.playing:
            self._player.resume()
        self.poll()

    def _in_replay(self) -> Replay | None:
        if self.replay is None:
            self.notify(tr("Only in a replay: r begins one."))
        return self.replay

    def action_step(self, step: int) -> None:
        """Step back or on."""
        if (replay := self._in_replay()) is not None:
            self._set(replay.stepped(step))

    def action_speed(self, step: int) -> None:
        """Play slower or faster."""
        if (replay := self._in_replay()) is not None:
            self._set(replay.faster(step))

    def action_edge(self, end: int) -> None:
        """Go to the begin (0) or the end (1)."""
        if (replay := self._in_replay()) is not None:
            self._set(replay.jumped(replay.end_ns if end else replay.start_ns))

    def action_peak(self) -> None:
        """Go to the highest point of the first chart."""
        replay, recording = self._in_replay(), self._recording
        if replay is None or recording is None:
            return
        found = curves(self.snapshot)
        device = found[self._device % len(found)].device if found else "cpu"
        at = recording.peak_ns(device)
        if at is not None:
            self._set(replace(replay.jumped(at), playing=False))

    def action_time(self) -> None:
        """Ask for a time and go there."""
        from memplan_tui.screens.prompt import Prompt

        replay = self._in_replay()
        if replay is None:
            return

        def go(words: str | None) -> None:
            if not words:
                return
            at = parse_time(words, replay)
            if at is None:
                self.notify(tr("{words} is no time.").format(words=repr(words)), markup=False)
            elif self.replay is not None:
                self._set(replace(self.replay.jumped(at), playing=False))

        title = tr("Go to: 14:03:22 (time of day), 90s or 5min (from the begin), +30s, 50%")
        self.push_screen(Prompt(title), go)
