"""The sampler: at each tick it asks every collector and hands one batch to the store."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from memplan_daemon.clock import NS, Clock
from memplan_daemon.collectors.base import Collector, Reading, Watch
from memplan_daemon.proc import ProcFolder
from memplan_daemon.tree import ProcessTable, Tree

from memplan.errors import DaemonError, StoreError, UsageError
from memplan.store.base import Writer
from memplan.types import Sample, Series

__all__ = ["BUFFER_S", "Counts", "Sampler"]

_log = logging.getLogger("memplan.daemon")

BUFFER_S = 60.0
"""Seconds of samples that are kept while the store refuses them; older ones are dropped."""

BATCH_SAMPLES = 20_000
"""Samples written in one transaction at most, so that a long backlog goes in parts."""

SHORTEST_INTERVAL_S = 0.01


@dataclass(slots=True, kw_only=True)
class Counts:
    """What a sampler did so far."""

    ticks: int = 0
    """Ticks taken."""
    late_ticks: int = 0
    """Ticks that were due while the one before was still running: skipped, never made up for."""
    samples_written: int = 0
    """Samples that the store has committed."""
    samples_dropped: int = 0
    """Samples given up because the store refused them for too long."""


@dataclass(slots=True)
class _Tick:
    """The samples of one tick on their way to the store."""

    monotonic_ns: int
    samples: list[Sample]


class Sampler:
    """Samples the host and the watched process trees, and keeps what the store cannot take yet.

    A collector that fails is logged once and left out until it works again. When the store
    refuses (disk full) or is gone, samples wait in memory, BUFFER_S long at most, and are offered
    again at every tick. Series objects are kept, so that a tick makes no new ones.
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

        Raises UsageError for an interval below 10 ms or that is not finite.
        """
        if not SHORTEST_INTERVAL_S <= interval_s <= 86400:
            raise UsageError(
                f"an interval of {interval_s} s makes no sense", hint="use 0.01 to 86400 seconds"
            )
        self.writer = writer
        """Where samples go; may be replaced when another process takes the database over."""
        self.interval_s = interval_s
        """Seconds from tick to tick."""
        self.counts = Counts()
        """What was done so far."""
        self.store_error = ""
        """Why the store refused last; empty while all is well."""
        self.store_gone = False
        """True when nobody answered at the last try, False when the store itself refused."""
        self._clock = clock
        self._collectors = collectors
        self._interval_ns = round(interval_s * NS)
        self._host_interval_ns = None if host_interval_s is None else round(host_interval_s * NS)
        self._proc = proc or ProcFolder()
        self._table = ProcessTable(self._proc, clock)
        self._trees: dict[str, Tree] = {}
        self._series: dict[str | None, dict[tuple[str, str], Series]] = {}
        self._failing: set[int] = set()
        self._buffer: deque[_Tick] = deque()
        self._due_ns = self._host_due_ns = clock.monotonic_ns()
        self._last_t_ns = 0

    @property
    def watched(self) -> dict[str, int]:
        """Runs that are watched, with the root process of each."""
        return {run_id: tree.pid for run_id, tree in self._trees.items()}

    def watch(self, pid: int, run_id: str) -> None:
        """Sample a process and all that comes from it under a run's name.

        Raises DaemonError when there is no such process.
        """
        tree = Tree(pid, self._proc)
        if not tree.alive:
            raise DaemonError(f"there is no process {pid}")
        self.unwatch(run_id)
        self._trees[run_id] = tree

    def unwatch(self, run_id: str) -> None:
        """Stop sampling a run; harmless when it is not watched."""
        tree = self._trees.pop(run_id, None)
        if tree is not None:
            tree.close()
        self._series.pop(run_id, None)

    def due_in_s(self) -> float:
        """Return the seconds until the next tick; 0 when it is due."""
        return max(self._due_ns - self._clock.monotonic_ns(), 0) / NS

    def tick(self) -> None:
        """Read everything once and offer it to the store."""
        now = self._clock.monotonic_ns()
        self._schedule(now)
        t_ns = self._stamp()
        samples = [s for watch in self._watches(now) for s in self._collect(watch, t_ns)]
        self.counts.ticks += 1
        self.offer(samples)

    def offer(self, samples: list[Sample]) -> None:
        """Put samples behind those that wait, and write as many as the store takes."""
        if samples:
            self._buffer.append(_Tick(self._clock.monotonic_ns(), samples))
        try:
            self._flush()
        except (StoreError, DaemonError) as error:
            if str(error) != self.store_error:
                _log.warning("the store refuses samples, they wait: %s", error)
            self.store_error = str(error)
            self.store_gone = isinstance(error, DaemonError)
            self._trim()
            return
        if self.store_error:
            _log.info("the store takes samples again")
            self.store_error, self.store_gone = "", False

    def close(self) -> None:
        """Let go of all processes; what still waits is counted as dropped."""
        for run_id in list(self._trees):
            self.unwatch(run_id)
        self.counts.samples_dropped += sum(len(tick.samples) for tick in self._buffer)
        self._buffer.clear()

    def _schedule(self, now: int) -> None:
        """Set the next due time on the grid of the first one."""
        missed = max(now - self._due_ns, 0) // self._interval_ns
        self.counts.late_ticks += missed
        self._due_ns += (missed + 1) * self._interval_ns

    def _stamp(self) -> int:
        """Return the wall clock, moved on by 1 ns where it stood still since the last tick."""
        wall = self._clock.wall_ns()
        self._last_t_ns = wall + 1 if wall == self._last_t_ns else wall
        return self._last_t_ns

    def _watches(self, now: int) -> list[Watch]:
        watches = []
        tick = self.counts.ticks
        if self._host_interval_ns is not None and now >= self._host_due_ns:
            self._host_due_ns = now + self._host_interval_ns - self._interval_ns // 2
            watches.append(Watch(run_id=None, pid=None, tick=tick))
        if self._trees:
            self._table.refresh()
        for run_id, tree in list(self._trees.items()):
            tree.update(self._table)
            if tree.alive:
                watches.append(Watch(run_id=run_id, pid=tree.pid, members=tree.members, tick=tick))
            else:
                self.unwatch(run_id)
        return watches

    def _collect(self, watch: Watch, t_ns: int) -> list[Sample]:
        known = self._series.setdefault(watch.run_id, {})
        samples = []
        for index, collector in enumerate(self._collectors):
            for reading in self._readings(index, collector, watch):
                key = (reading.entity, reading.metric)
                if (series := known.get(key)) is None:
                    series = Series(
                        run_id=watch.run_id, entity=reading.entity, metric=reading.metric
                    )
                    known[key] = series
                samples.append(Sample(series=series, t_ns=t_ns, value=reading.value))
        return samples

    def _readings(self, index: int, collector: Collector, watch: Watch) -> list[Reading]:
        try:
            readings = list(collector.collect(watch))
        except Exception:  # noqa: BLE001 - whatever it is, the other collectors go on
            if index not in self._failing:
                _log.exception("%s failed and is left out", type(collector).__name__)
                self._failing.add(index)
            return []
        self._failing.discard(index)
        return readings

    def _flush(self) -> None:
        while self._buffer:
            count = 0
            batch: list[Sample] = []
            for tick in self._buffer:
                if batch and len(batch) + len(tick.samples) > BATCH_SAMPLES:
                    break
                batch += tick.samples
                count += 1
            self.writer.write_samples(batch)
            self.counts.samples_written += len(batch)
            for _ in range(count):
                self._buffer.popleft()

    def _trim(self) -> None:
        oldest = self._clock.monotonic_ns() - round(BUFFER_S * NS)
        while self._buffer and self._buffer[0].monotonic_ns < oldest:
            self.counts.samples_dropped += len(self._buffer.popleft().samples)
