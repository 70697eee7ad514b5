"""The sampler: at each tick it asks every collector and hands one batch to the store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from memplan_daemon.backlog import Backlog
from memplan_daemon.budget import CpuBudget
from memplan_daemon.clock import NS, Clock, ClockWatch
from memplan_daemon.collectors.base import (
    Collector,
    Event,
    HostOnly,
    Pace,
    Reading,
    Steady,
    Watch,
)
from memplan_daemon.counts import Counts, Paces
from memplan_daemon.eventlog import EventLog
from memplan_daemon.layouts import Found, Layouts
from memplan_daemon.proc import ProcFolder
from memplan_daemon.pulse import Pulse
from memplan_daemon.snapshot import Board, RunInfo
from memplan_daemon.tree import Group, ProcessTable, Tree

from memplan.errors import DaemonError, StoreError, UsageError
from memplan.store.base import Writer
from memplan.store.batch import Instant, Instants
from memplan.types import Sample

__all__ = ["Counts", "Paces", "Sampler"]

_log = logging.getLogger("memplan.daemon")

SHORTEST_INTERVAL_S = 0.01

_PACES: tuple[Pace, ...] = ("medium", "still", "rare")
"""Those that the sampler keeps; what is slow has a budget of its own."""


class Sampler:
    """Samples the host and the watched process trees, and keeps what the store cannot take yet.

    A collector that fails is logged once and left out until it works again. When the store
    refuses (disk full) or is gone, samples wait in memory (`Backlog`), and are offered again at
    every tick.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        collectors: Sequence[Collector],
        writer: Writer,
        interval_s: float,
        host_interval_s: float | None = None,
        proc: ProcFolder | None = None,
        paces: Paces | None = None,
        table: ProcessTable | None = None,
        budget: CpuBudget | None = None,
        staged: bool = False,
    ) -> None:
        """Set up; nothing is read before the first tick.

        Args:
            clock: cadence and time stamps.
            collectors: what is read.
            writer: where samples go.
            interval_s: seconds from tick to tick.
            host_interval_s: seconds between the host's own samples (longer than interval_s to
                thin them out); None = not sampled at all.
            proc: the /proc in which trees are followed.
            paces: how often the slower readings are taken.
            table: lists the processes; one that lists as often as is cheap, if not given.
            budget: what the sampler may cost; None = no limit.
            staged: let the store hold samples back for some seconds and write them at once: it
                costs a tenth, and a kill loses them.

        Raises UsageError for an interval below 10 ms or that is not finite.
        """
        self.set_interval(interval_s)
        self.writer = writer
        """Where samples go; may be replaced when another process takes the database over."""
        self.counts = Counts()
        """What was done so far."""
        self.store_error = ""
        """Why the store refused last; empty while all is well."""
        self.store_gone = False
        """True when nobody answered at the last try, False when the store itself refused."""
        self.board = Board()
        """The newest readings."""
        self.events = EventLog()
        """What happened."""
        self.budget = budget
        """What the sampler may cost."""
        self.before_tick: list[Callable[[ProcessTable, bool], None]] = []
        """Called in each tick with the table of processes, and whether it is new: they choose
        what is watched."""
        self.listed_rarely = False
        """True where nobody who chooses needs a listing to find processes."""
        self.quiet: set[str] = set()
        """Runs that ask not to be disturbed at the moment."""
        self._staged = staged
        self._clock = clock
        self._of_host = list(enumerate(collectors))
        self._of_runs = [(i, one) for i, one in self._of_host if not isinstance(one, HostOnly)]
        self._host_interval_ns = None if host_interval_s is None else round(host_interval_s * NS)
        self._proc = proc or ProcFolder()
        self._table = table or ProcessTable(self._proc, clock)
        self._paces = paces or Paces()
        self._groups: dict[str, Group] = {}
        self._layouts = Layouts()
        self._pulse = Pulse()
        self._failing: set[int] = set()
        self._over: list[str] = []
        self._backlog = Backlog(clock)
        self._extra: list[Instant] = []
        self._extra_found: list[tuple[str | None, Found]] = []
        self._due_ns = self._host_due_ns = clock.monotonic_ns()
        self._pace_due_ns: dict[Pace, int] = dict.fromkeys(_PACES, self._due_ns)
        self._last_t_ns = 0
        self._clock_watch = ClockWatch(clock)

    def set_interval(self, interval_s: float) -> None:
        """Take another interval from the next tick on. Raises UsageError as the constructor."""
        if not SHORTEST_INTERVAL_S <= interval_s <= 86400:
            raise UsageError(
                f"an interval of {interval_s} s makes no sense", hint="use 0.01 to 86400 seconds"
            )
        self.interval_s = interval_s
        """Seconds from tick to tick."""

    @property
    def watched(self) -> dict[str, int]:
        """Runs that are watched, with the root process of each."""
        return {run_id: group.pid or 0 for run_id, group in self._groups.items()}

    def watch(self, pid: int, run_id: str) -> None:
        """Sample a process and all that comes from it under a run's name.

        Raises DaemonError when there is no such process.
        """
        tree = Tree(pid, self._proc)
        if not tree.alive:
            raise DaemonError(f"there is no process {pid}")
        self.watch_group(run_id, tree)
        self._table.expire()

    def watch_group(self, run_id: str, group: Group) -> None:
        """Sample a group under a run's name, as long as `unwatch` is not called."""
        self.unwatch(run_id)
        self._groups[run_id] = group

    def unwatch(self, run_id: str) -> None:
        """Stop sampling a run; harmless when it is not watched."""
        group = self._groups.pop(run_id, None)
        if group is not None:
            group.drop_ended()
            if not group.alive:
                self._over.append(run_id)
            group.close()
        self._layouts.forget(run_id)
        self.quiet.discard(run_id)

    def join(self, pid: int, run_id: str) -> None:
        """Add a process and all that comes from it to a run that is watched as a tree."""
        group = self._groups.get(run_id)
        if isinstance(group, Tree):
            group.join(pid)
            self._table.expire()

    def run_of(self, pid: int) -> str | None:
        """Return the run that a process belongs to, itself or by those that it comes from."""
        for ancestor in self._proc.line(pid):
            for run_id, group in self._groups.items():
                if ancestor in group.members:
                    return run_id
        return None

    def owner(self, run_id: str) -> int | None:
        """Return the user whose processes a run is made of; None when that is not known."""
        group = self._groups.get(run_id)
        return _info(group).uid if group is not None else None

    def add(self, run_id: str | None, t_ns: int, readings: list[Reading]) -> None:
        """Take readings from elsewhere (an agent) into the next tick's batch."""
        if readings:
            self._extra_found.append((run_id, readings))
            self._extra.append(self._layouts.instant(run_id, t_ns, readings))

    def note(self, event: Event, run_id: str | None = None) -> None:
        """Take an event from elsewhere: stored in the next tick's batch, logged, kept."""
        self.events.keep(event, run_id, self._clock.wall_ns())

    def due_in_s(self) -> float:
        """Return the seconds until the next tick; 0 when it is due."""
        return max(self._due_ns - self._clock.monotonic_ns(), 0) / NS

    def tick(self) -> None:
        """Read everything once and offer it to the store."""
        now = self._clock.monotonic_ns()
        self._schedule(now)
        t_ns = self._stamp()
        due = self._due(now)
        self.counts.ticks += 1
        found, self._extra_found = self._extra_found, []
        instants, self._extra = self._extra, []
        for watch in self._watches(now, due):
            instants += self._collect(watch, t_ns, found)
        while self._over:  # their processes have had their final rows
            self._layouts.forget(self._over.pop())
        runs = {run_id: _info(group) for run_id, group in self._groups.items()}
        self.board.publish(t_ns=t_ns, tick=self.counts.ticks, due=due, found=found, runs=runs)
        self.offer(Instants(instants))
        if self.budget is not None:
            self.budget.update()

    def offer(self, samples: Sequence[Sample]) -> None:
        """Put samples behind those that wait, and write as many as the store takes."""
        self._backlog.add(samples)
        write = self.writer.stage_samples if self._staged else self.writer.write_samples
        try:
            self.events.save(self.writer)
            self._backlog.flush(write)
        except (StoreError, DaemonError) as error:
            if str(error) != self.store_error:
                _log.warning("the store refuses samples, they wait: %s", error)
            self.store_error = str(error)
            self.store_gone = isinstance(error, DaemonError)
            self.counts.samples_dropped += self._backlog.trim()
            return
        finally:
            self.update_counts()
        degraded = getattr(self.writer, "degraded", "") if self._staged else ""
        if degraded:
            if degraded != self.store_error:
                _log.warning("the store writes nothing at the moment: %s", degraded)
            self.store_error = degraded
        elif self.store_error:
            _log.info("the store takes samples again")
            self.store_error, self.store_gone = "", False

    def update_counts(self) -> None:
        """Bring what is written and what waits up to date: others may have made the store flush."""
        staged = int(getattr(self.writer, "waiting", 0))
        given_up = int(getattr(self.writer, "dropped", 0))
        self.counts.samples_written = self._backlog.taken - staged - given_up
        self.counts.samples_waiting = staged + len(self._backlog)

    @property
    def dropped(self) -> int:
        """Samples given up so far: here, and by a store that kept them back for too long."""
        return self.counts.samples_dropped + int(getattr(self.writer, "dropped", 0))

    def close(self) -> None:
        """Let go of all processes; what still waits is counted as dropped."""
        for run_id in list(self._groups):
            self.unwatch(run_id)
        self.counts.samples_dropped += self._backlog.clear()

    def _stretched_ns(self, seconds: float) -> int:
        stretch = self.budget.stretch if self.budget is not None else 1.0
        return round(seconds * stretch * NS)

    def _schedule(self, now: int) -> None:
        """Set the next due time on the grid of the first one."""
        interval_ns = self._stretched_ns(self.interval_s)
        self.counts.lateness_ns = max(now - self._due_ns, 0)
        missed = self.counts.lateness_ns // interval_ns
        self.counts.late_ticks += missed
        self._due_ns += (missed + 1) * interval_ns

    def _due(self, now: int) -> frozenset[Pace]:
        """Return the slower paces that are due, and set when they are due next."""
        due = frozenset(pace for pace, at in self._pace_due_ns.items() if now >= at)
        for pace in due:
            half = self._stretched_ns(self.interval_s) // 2  # the tick nearest to the due time
            seconds = getattr(self._paces, f"{pace}_s")
            self._pace_due_ns[pace] = now + self._stretched_ns(seconds) - half
        return due

    def _stamp(self) -> int:
        """Return the wall clock, moved on by 1 ns where it stood still since the last tick."""
        wall = self._clock.wall_ns()
        if moved := self._clock_watch.moved_ns(wall):
            text = f"the wall clock moved by {moved / NS:+.1f} s (it was set, or the machine slept)"
            self.events.keep(Event("host", "host.clock", round(moved / NS), text), None, wall)
        self._last_t_ns = wall + 1 if wall == self._last_t_ns else wall
        return self._last_t_ns

    def _watches(self, now: int, due: frozenset[Pace]) -> list[Watch]:
        watches = []
        tick = self.counts.ticks
        if self._host_interval_ns is not None and now >= self._host_due_ns:
            half = self._stretched_ns(self.interval_s) // 2
            self._host_due_ns = now + self._host_interval_ns - half
            watches.append(Watch(run_id=None, pid=None, tick=tick, due=due))
        self._update_groups()
        for run_id, group in list(self._groups.items()):
            if not group.alive and isinstance(group, Tree):
                self.unwatch(run_id)
                continue
            watch = Watch(  # also of one that is empty, whose end is to be told
                run_id=run_id,
                pid=group.pid,
                members=group.members,
                moved=self._pulse.moved.get(run_id, ()) if group.is_large else None,
                late=self._pulse.late,
                tick=tick,
                due=due,
                quiet=run_id in self.quiet,
            )
            watches.append(watch)
        watches += [Watch(run_id=run_id, pid=None, tick=tick, due=due) for run_id in self._over]
        return watches

    def _update_groups(self) -> None:
        """Find out who belongs to which run, who of large runs has moved, and who has ended."""
        rarely = self.listed_rarely and not any(isinstance(g, Tree) for g in self._groups.values())
        listed = bool(self._groups or self.before_tick) and self._table.refresh(rarely=rarely)
        for choose in self.before_tick:
            choose(self._table, listed)
        for group in self._groups.values():
            if group.needs_update(listed=listed):
                group.update(self._table)
        self._pulse.read({run: g.members for run, g in self._groups.items() if g.is_large})
        for run_id, pid in self._pulse.faint:
            self._groups[run_id].let_go(pid)

    def _collect(
        self, watch: Watch, t_ns: int, found: list[tuple[str | None, Found]]
    ) -> list[Instant]:
        """Ask every collector about a run, or the host, and return the samples."""
        groups = []
        host = watch.run_id is None
        for i, collector in self._of_host if host else self._of_runs:
            items = self._readings(i, collector, watch)
            if items:
                groups.append(items)
                found.append((watch.run_id, items.found if isinstance(items, Steady) else items))
        thin = not watch.in_full
        samples, events = self._layouts.sort_out(watch.run_id, t_ns, groups, thin=thin)
        for event in events:
            self.events.keep(event, watch.run_id, t_ns)
        return samples

    def _readings(self, index: int, collector: Collector, watch: Watch) -> Found | Steady:
        try:
            readings = collector.collect(watch)
            if not isinstance(readings, (list, Steady)):
                readings = list(readings)
        except Exception:  # noqa: BLE001 - whatever it is, the other collectors go on
            if index not in self._failing:
                _log.exception("%s failed and is left out", type(collector).__name__)
                self._failing.add(index)
            return []
        self._failing.discard(index)
        return readings


def _info(group: Group) -> RunInfo:
    member = next(iter(group.members.values()), None)
    return RunInfo(pid=group.pid, uid=member.uid if member is not None else None)
