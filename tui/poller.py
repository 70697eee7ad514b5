"""Reads the database for the screens: only what is new, in short transactions, off the loop."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from memplan_tui.assemble import detail_at, highest, hosts_of, machine_at
from memplan_tui.follow import Follower
from memplan_tui.messages import Detail, Request, Snapshot, State

from memplan.errors import (
    MemplanError,
    NotStoredError,
    StoreLockedError,
    StoreMissingError,
    StoreVersionError,
)
from memplan.store.base import Reader
from memplan.types import Device, FrozenMap, Phase, Run

if TYPE_CHECKING:
    from memplan.types import Plan

__all__ = ["Poller", "database_text"]

LISTED_RUNS = 200

GLANCED_RUNS = 5
"""Runs among which the first look chooses: a run takes a while to read."""

LOOKED_UP = 5
"""Runs whose peak is looked up in one poll: the first screen must not wait for all of them."""

LIST_NS = 5 * 10**9
"""How often the lists of runs and plans are read anew; a run that goes on is read each time."""

WATCHED_NS = 60 * 10**9
"""A machine that was sampled so lately is shown before a run that has ended."""

KEPT_HOST_NS = 24 * 3600 * 10**9
"""How far back the machine's curves are read at most."""


def database_text(database: str | Path) -> str:
    """Return a database's place for people: a URL without its password."""
    text = str(database)
    scheme, sign, rest = text.partition("://")
    if sign and "@" in rest:
        return f"{scheme}://...@{rest.rpartition('@')[2]}"
    return text


class Poller:
    """Keeps a reader open and a cursor per run; one `poll` makes one Snapshot."""

    def __init__(
        self,
        database: str | Path,
        *,
        open_reader: Callable[[str | Path], Reader],
        now_ns: Callable[[], int],
    ) -> None:
        """Prepare; nothing is opened before the first poll.

        Args:
            database: file or URL.
            open_reader: makes a reader.
            now_ns: the wall clock.
        """
        self._database = database
        self._open_reader = open_reader
        self._now_ns = now_ns
        self._reader: Reader | None = None
        self._lock = threading.Lock()
        self.last: Snapshot | None = None
        """What was read last; None before the first answer."""
        self._file: tuple[int, int] | None = None
        self._forget()

    def _forget(self) -> None:
        self._run: Follower | None = None
        self._host = Follower(None)
        self._ended: dict[str, int | None] = {}
        self._finished: dict[str, Detail] = {}
        self._listed_ns: int | None = None
        self._runs: tuple[Run, ...] = ()
        self._plans: dict[str, Plan] = {}
        self._plan_ids: tuple[str, ...] = ()
        self._devices: tuple[Device, ...] = ()
        self._phases: tuple[Phase, ...] = ()

    def begin(self, request: Request) -> None:
        """Have a first look, in a thread: what comes next finds it done."""
        threading.Thread(target=self.glance, args=(request,), daemon=True).start()

    def glance(self, request: Request) -> Snapshot:
        """Return what is there now, without what was: a first screen needs no more.

        Once something was read, that is returned.

        Args:
            request: what the screens want to know.
        """
        with self._lock:
            return self.last or self._answer(request, glance=True)

    def poll(self, request: Request = Request()) -> Snapshot:  # noqa: B008 - frozen
        """Return what the database says now. Never raises: a problem is a state with a reason.

        Once something was read, it stays on the screen while the database cannot be read.

        Args:
            request: what the screens want to know.
        """
        with self._lock:
            return self._answer(request, glance=False)

    def _answer(self, request: Request, *, glance: bool) -> Snapshot:
        try:
            self._check_file()
            if self._reader is None:
                self._reader = self._open_reader(self._database)
            self.last = self._read(self._reader, self._now_ns(), request, glance=glance)
        except (MemplanError, OSError) as error:
            return self._failed(error)
        return self.last

    def _check_file(self) -> None:
        """Let go of a file that was taken away or replaced: an open one would go on answering."""
        path = Path(self._database)
        if self._reader is None or "://" in str(self._database):
            return
        if not path.exists():
            raise StoreMissingError(f"there is no database at {path} any more")
        found = path.stat()
        if self._file not in {None, (found.st_dev, found.st_ino)}:
            self._close()
        self._file = (found.st_dev, found.st_ino)

    def _failed(self, error: MemplanError | OSError) -> Snapshot:
        states: dict[type[Exception], State] = {
            StoreMissingError: "missing",
            StoreVersionError: "newer",
            StoreLockedError: "locked",
        }
        state = states.get(type(error), "broken")
        if state != "locked":
            self._close()
        reason, hint = str(error), getattr(error, "hint", "")
        reason = reason.replace(str(self._database), database_text(self._database))
        if self.last is not None:
            return replace(self.last, state=state, reason=reason, hint=hint, kept=True)
        return Snapshot(state=state, reason=reason, hint=hint, now_ns=self._now_ns())

    def _read(self, reader: Reader, now: int, request: Request, *, glance: bool) -> Snapshot:
        self._list(reader, now, glance=glance)
        last = reader.last_sample_ns()
        self._follow_host(reader, last, request.window_ns, glance=glance)
        chosen = self._choose(request.run_id, now, last)
        detail = None
        if chosen is not None:
            detail = self._detail(reader, chosen, now, request, glance=glance)
        peaks = {} if glance else self._run_peaks(reader, detail)
        machine = machine_at(
            self._host.tracks, self._devices, at_ns=now, window_ns=request.window_ns
        )
        beside = tuple(self._whole(reader, name) for name in request.beside)
        plan = self._shown_plan(reader, detail, request.plan_id)
        return Snapshot(
            state="ok",
            glance=glance,
            now_ns=now,
            last_sample_ns=last,
            machine=machine,
            runs=self._runs,
            peaks=FrozenMap(peaks),
            detail=detail,
            plan=plan,
            plans=self._plan_ids,
            beside=tuple(found for found in beside if found is not None),
            hosts=hosts_of(self._runs, peaks),
        )

    def _list(self, reader: Reader, now: int, *, glance: bool) -> None:
        """Read the lists when they are due, and each run that goes on every time."""
        due = self._listed_ns is None or not 0 <= now - self._listed_ns < LIST_NS
        if due:
            self._runs = reader.runs(GLANCED_RUNS if glance else LISTED_RUNS)
            self._plan_ids = reader.plan_ids(20)
            self._devices = reader.devices()
            self._listed_ns = None if glance else now
            return
        if any(run.status == "running" for run in self._runs):
            fresh = {r.id: reader.run(r.id) for r in self._runs if r.status == "running"}
            self._runs = tuple(fresh.get(run.id, run) for run in self._runs)

    def _choose(self, wanted: str | None, now: int, last: int | None) -> Run | None:
        """Return the run to show: the one asked for, one that goes on, else by what is sampled."""
        named = next((run for run in self._runs if run.id == wanted), None)
        if named is not None or not self._runs:
            return named
        running = next((run for run in self._runs if run.status == "running"), None)
        if running is not None:
            return running
        watched = last is not None and now - last < WATCHED_NS and self._host.tracks.series
        return None if watched else self._runs[0]

    def _run_peaks(self, reader: Reader, detail: Detail | None) -> dict[str, int]:
        """Return each run's highest process memory; a few new ones are looked up per poll."""
        if detail is not None:
            self._ended[detail.run.id] = highest(detail.peaks)
        new = [run for run in self._runs if run.id not in self._ended and run.status != "running"]
        for run in new[:LOOKED_UP]:
            self._ended[run.id] = highest(reader.peaks(run.id))
        return {run.id: p for run in self._runs if (p := self._ended.get(run.id)) is not None}

    def _detail(
        self, reader: Reader, run: Run, now: int, request: Request, *, glance: bool
    ) -> Detail:
        at = now if run.ended_ns is None else min(now, run.ended_ns)
        if self._run is None or run.id != self._run.run_id:
            self._run = Follower(run.id)
        if not self._run.settled:
            self._phases = reader.phases(run.id)
        if glance:
            self._run.glance(reader)
        else:
            since = run.started_ns if request.window_ns is None else at - request.window_ns
            self._run.read(reader, since, ended=run.status != "running")
        return detail_at(
            run,
            self._plan(reader, run.plan_id),
            self._run.tracks,
            self._phases,
            self._devices,
            at_ns=at,
            window_ns=request.window_ns,
        )

    def _whole(self, reader: Reader, run_id: str) -> Detail | None:
        """Return a run that is shown beside another one; what has ended is read once."""
        run = next((run for run in self._runs if run.id == run_id), None)
        if run is None or run_id in self._finished:
            return self._finished.get(run_id)
        found = Follower(run_id)
        found.read(reader, run.started_ns)
        phases, plan = reader.phases(run_id), self._plan(reader, run.plan_id)
        detail = detail_at(
            run, plan, found.tracks, phases, self._devices, at_ns=2**62, window_ns=None
        )
        if run.status != "running":
            self._finished[run_id] = detail
        return detail

    def _plan(self, reader: Reader, plan_id: str | None) -> Plan | None:
        if plan_id is None:
            return None
        if plan_id not in self._plans:
            with contextlib.suppress(NotStoredError):
                self._plans[plan_id] = reader.plan(plan_id)
        return self._plans.get(plan_id)

    def _shown_plan(
        self, reader: Reader, detail: Detail | None, plan_id: str | None
    ) -> Plan | None:
        if plan_id is not None:
            return self._plan(reader, plan_id)
        if detail is not None and detail.plan is not None:
            return detail.plan
        return self._plan(reader, self._plan_ids[0]) if self._plan_ids else None

    def _follow_host(
        self, reader: Reader, last: int | None, window_ns: int | None, *, glance: bool
    ) -> None:
        if last is None:
            return
        if glance:
            self._host.glance(reader)
        else:
            self._host.read(reader, last - min(window_ns or KEPT_HOST_NS, KEPT_HOST_NS))

    def _close(self) -> None:
        if self._reader is not None:
            with contextlib.suppress(MemplanError):
                self._reader.close()
        self._reader = None
        self._forget()

    def close(self) -> None:
        """Give the reader back; the next poll opens it anew."""
        with self._lock:
            self._close()
