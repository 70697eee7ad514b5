"""A stored window read once and shown as of any time in it: the same screens, another clock."""

from __future__ import annotations

import contextlib
import threading

from memplan_tui.assemble import detail_at, highest, machine_at, run_at
from memplan_tui.clock import Replay
from memplan_tui.messages import Detail, Machine, Request, Snapshot
from memplan_tui.tracks import Tracks

from memplan.errors import NotStoredError
from memplan.store.base import Reader
from memplan.types import Device, FrozenMap, Phase, Plan, Run

__all__ = ["Recording", "load_recording"]

BUCKETS = 2000
"""Of a curve whose samples were rolled up."""

KEPT = 400_000
"""Points of one series: a window of ten hours at ten samples a second stays whole."""


class Recording:
    """What a window holds; `at` is a pure function of the time."""

    def __init__(
        self,
        *,
        run: Run | None,
        plan: Plan | None,
        tracks: Tracks,
        host: Tracks,
        phases: tuple[Phase, ...],
        devices: tuple[Device, ...],
        runs: tuple[Run, ...],
        plans: tuple[str, ...],
    ) -> None:
        """Keep what was read; see `load_recording`."""
        self.run = run
        self._plan = plan
        self._tracks = tracks
        self._host = host
        self._phases = phases
        self._devices = devices
        self._runs = runs
        self._plans = plans
        self._lock = threading.Lock()

    def clock(self) -> Replay | None:
        """Return a clock at the begin of the window; None when nothing was sampled in it."""
        ends = self._tracks.ends() or self._host.ends()
        if ends is None:
            return None
        start = min(ends[0], self.run.started_ns) if self.run is not None else ends[0]
        end = max(ends[1], self.run.ended_ns or 0) if self.run is not None else ends[1]
        return Replay(start_ns=start, end_ns=end, at_ns=start)

    def peak_ns(self, device: str) -> int | None:
        """Return when a device's curve is highest."""
        detail = self._detail(Request(), 2**62)
        curves = detail.history if detail is not None else self._machine(Request(), 2**62).history
        points = curves.get(device) or next(iter(curves.values()), ())
        return max(points, key=lambda p: (p[1], -p[0]))[0] if points else None

    def _machine(self, request: Request, at: int) -> Machine:
        return machine_at(self._host, self._devices, at_ns=at, window_ns=request.window_ns)

    def _detail(self, request: Request, at: int) -> Detail | None:
        if self.run is None:
            return None
        return detail_at(
            self.run,
            self._plan,
            self._tracks,
            self._phases,
            self._devices,
            at_ns=at,
            window_ns=request.window_ns,
        )

    def poll(self, request: Request) -> Snapshot:
        """Return what the screens showed at the request's time."""
        with self._lock:
            at = request.at_ns if request.at_ns is not None else 2**62
            detail = self._detail(request, at)
            peaks = {}
            if detail is not None and (peak := highest(detail.peaks)) is not None:
                peaks[detail.run.id] = peak
            return Snapshot(
                state="ok",
                now_ns=at,
                last_sample_ns=at,
                machine=self._machine(request, at),
                runs=tuple(run_at(run, at) for run in self._runs if run.started_ns <= at),
                peaks=FrozenMap(peaks),
                detail=detail,
                plan=self._plan,
                plans=self._plans,
            )

    def close(self) -> None:
        """Nothing is open."""


def load_recording(
    reader: Reader, run_id: str | None, *, since_ns: int | None = None, until_ns: int | None = None
) -> Recording:
    """Read a window: a run with its plan and phases, and the machine beside it.

    Args:
        reader: of the database.
        run_id: None = the machine's own samples alone.
        since_ns: begin of the window; None = the run's.
        until_ns: end of the window; None = the run's.
    """
    run = reader.run(run_id) if run_id is not None else None
    plan = None
    if run is not None and run.plan_id is not None:
        with contextlib.suppress(NotStoredError):
            plan = reader.plan(run.plan_id)
    if run is not None:
        since_ns, until_ns = since_ns or run.started_ns, until_ns or run.ended_ns
    return Recording(
        run=run,
        plan=plan,
        tracks=_read(reader, run.id, since_ns, until_ns) if run is not None else Tracks(""),
        host=_read(reader, None, since_ns, until_ns),
        phases=reader.phases(run.id) if run is not None else (),
        devices=reader.devices(),
        runs=reader.runs(200),
        plans=reader.plan_ids(20),
    )


def _read(reader: Reader, run_id: str | None, since: int | None, until: int | None) -> Tracks:
    """Read samples; where they were rolled up already, what is left of them."""
    tracks = Tracks(run_id, limit=KEPT)
    cursor = 0
    while True:
        batch = reader.columns(run_id, after=cursor, since_ns=since, until_ns=until)
        tracks.add(batch.columns)
        cursor = batch.cursor
        if not batch.more:
            break
    span = reader.span_ns(run_id) if not tracks.series else None
    if span is not None:
        begin, end = max(since or 0, span[0]), min(until or span[1], span[1])
        if begin <= end:
            tracks.add_curves(
                reader.curves(run_id, since_ns=begin, until_ns=end + 1, buckets=BUCKETS)
            )
    return tracks
