"""Memory of a run's processes, one by one and as a tree."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from memplan_daemon.clock import Clock
from memplan_daemon.collectors.base import Gap, Reading, Watch
from memplan_daemon.collectors.rollup import Budget, Rollups
from memplan_daemon.proc import Process

__all__ = ["ProcessCollector"]

_STATUS = {
    b"VmRSS": "rss_bytes",
    b"RssAnon": "rss_anon_bytes",
    b"RssFile": "rss_file_bytes",
    b"RssShmem": "rss_shmem_bytes",
    b"VmSwap": "swap_bytes",
    b"VmHWM": "hwm_bytes",
}
"""Line of /proc/PID/status -> metric; reading them costs the target nothing."""

_LINE = re.compile(rb"\n(%s):\s*(\d+) kB" % b"|".join(_STATUS))

_FAST = ("rss_bytes", "rss_anon_bytes")
"""Of each process in every tick; the rest is summed in every tick, too, but kept for each process
at the medium pace only: it changes slowly, and half of the store's work would be for it."""

_SUMMED = ("rss_bytes", "rss_anon_bytes", "rss_file_bytes", "rss_shmem_bytes", "swap_bytes")

LARGEST = 64
"""Processes of a tree that get series of their own in a tick: the largest. All are summed."""

PSS_INTERVAL_S = 5.0

ALWAYS_IN_FULL = 8
"""Processes of a tree up to which every tick reads all; of larger trees, what has moved."""

Values = dict[str, int]


@dataclass(slots=True)
class _Member:
    """One process as it was read in full the last time."""

    statm: bytes | None
    """Its statm then: while that is the same, so are all readings but marks and swap."""
    values: Values
    parent: int
    fast: list[Reading]
    """Its readings of every tick."""
    slower: list[Reading]
    """The others."""


@dataclass(slots=True)
class _State:
    """What is remembered about one run between ticks."""

    rollups: Rollups
    """PSS and USS."""
    tick: int = 0
    """The last tick in which the run was read; a run that was left out of one is forgotten."""
    hwm_bytes: int = 0
    """The tree's high-water mark so far."""
    last: dict[str, Values] = field(default_factory=dict)
    """Each process's last values, by label: they become its final row."""
    members: dict[str, _Member] = field(default_factory=dict)
    """The processes of the last tick, by label."""
    processes: tuple[Process, ...] = ()
    """The same as they are held."""
    statms: Sequence[bytes | None] = ()
    """Their statm files."""
    fast: list[Reading | Gap] = field(default_factory=list)
    """What is read of them in every tick."""

    def is_same(self, processes: tuple[Process, ...], statms: list[bytes | None]) -> bool:
        """Tell whether these are the processes of the last tick, and none has moved."""
        return processes == self.processes and statms == self.statms and None not in statms


class ProcessCollector:
    """Reads every member of a tree, and adds them up under "tree".

    Per process: RSS and its three kinds, swap, the kernel's high-water mark (VmHWM), in trees of
    more than ALWAYS_IN_FULL processes between two medium ticks only where RSS moved; PSS and USS
    where that is allowed and within its budget. A process that runs in its parent's memory, as
    between vfork and exec, is that memory seen twice and is left out. One that ended has its last
    RSS and mark stored once more, as final_rss_bytes and final_hwm_bytes.

    tree.rss_bytes is the plain sum: pages that processes share are counted in each, so it is an
    upper bound for forked workers (tree.pss_bytes counts them once, and is left out unless every
    process could be read). tree.hwm_bytes is the highest so far of two things that the tree
    certainly reached: each sampled sum, and each single process's own VmHWM. For a tree of one
    process that is exact, also between samples; for several it is a lower bound, because their
    marks need not fall on the same moment.
    """

    def __init__(self, clock: Clock, pss_interval_s: float = PSS_INTERVAL_S) -> None:
        """Set up.

        Args:
            clock: paces the slow readings.
            pss_interval_s: seconds between two readings of a process's PSS.
        """
        self._clock = clock
        self._pss_interval_s = pss_interval_s
        self._budget = Budget(clock)
        self._states: dict[str, _State] = {}

    def collect(self, watch: Watch) -> Iterable[Reading | Gap]:
        """Return the readings of a run's processes; nothing for the host."""
        if watch.run_id is None:
            return []
        state = self._state(watch.run_id, watch.tick)
        processes = tuple(watch.members.values())
        small = len(processes) <= ALWAYS_IN_FULL
        statms = [None if small else process.statm() for process in processes]
        full = small or "medium" in watch.due
        if full or not state.is_same(processes, statms):
            state.processes, state.statms = processes, statms
            return self._read(state, watch, full=full)
        denied = _denied(state, watch)
        return [*state.fast, *denied] if denied else state.fast

    def _read(self, state: _State, watch: Watch, *, full: bool) -> list[Reading | Gap]:
        """Return readings of processes that were read in full, or where they have moved."""
        found = _read_members(state, watch.members, full=full)
        items: list[Reading | Gap] = []
        items += _ended(state, {watch.members[pid].label: found[pid] for pid in found})
        state.fast = []
        if not found:
            return items
        slow = self._rollups(state, watch.members, found) if full and not watch.quiet else {}
        largest = sorted(found, key=lambda pid: -found[pid].get("rss_bytes", 0))[:LARGEST]
        for pid in sorted(largest):
            label = watch.members[pid].label
            state.fast += state.members[label].fast
            if "medium" in watch.due:
                items += state.members[label].slower
            items += _readings(label, slow.get(pid, {}))
        state.fast += _tree(state, found)
        if slow:
            totals = state.rollups.total(watch.members, found)
            items += [Reading("tree", metric, value) for metric, value in totals.items()]
        return [*items, *state.fast, *_denied(state, watch)]

    def tree_hwm(self, run_id: str) -> int:
        """Return the high-water mark of a run's tree so far, in bytes; 0 before any reading."""
        return self._states[run_id].hwm_bytes if run_id in self._states else 0

    def _state(self, run_id: str, tick: int) -> _State:
        gone = [key for key, state in self._states.items() if state.tick < tick - 1]
        for key in gone:
            del self._states[key]
        if run_id not in self._states:
            rollups = Rollups(self._clock, self._budget, self._pss_interval_s)
            self._states[run_id] = _State(rollups)
        self._states[run_id].tick = tick
        return self._states[run_id]

    @staticmethod
    def _rollups(
        state: _State, members: Mapping[int, Process], found: Mapping[int, Values]
    ) -> dict[int, Values]:
        rss = {pid: values["rss_bytes"] for pid, values in found.items()}
        return state.rollups.read(members, rss)


def _ended(state: _State, now: dict[str, Values]) -> Iterator[Reading]:
    """Yield the final row of every process that was there in the last tick and is not now."""
    for label in state.last.keys() - now.keys():
        for metric in ("rss_bytes", "hwm_bytes"):
            if metric in state.last[label]:
                yield Reading(f"process:{label}", f"final_{metric}", state.last[label][metric])
    state.last = now


def _denied(state: _State, watch: Watch) -> list[Reading | Gap]:
    """Return a gap for each process whose slow reading was refused."""
    if watch.quiet:
        return []
    labels = [p.label for p in state.processes if p.pid in state.rollups.denied]
    return [
        Gap(f"process:{label}", "pss_bytes", "no-permission")
        for label in labels
        if label in state.last
    ]


def _read_members(
    state: _State, members: Mapping[int, Process], *, full: bool
) -> dict[int, Values]:
    """Return the readings by process, less those that live in their parent's memory.

    Unless all are to be read in full, those whose statm has not moved keep what they had.
    """
    known, state.members = state.members, {}
    found: dict[int, Values] = {}
    for (pid, process), statm in zip(members.items(), state.statms, strict=True):
        member = known.get(process.label)
        if full or member is None or statm is None or statm != member.statm:
            member = _read(process, statm, member)
            if member is None:
                continue
        state.members[process.label] = member
        found[pid] = member.values
    shared = [
        pid
        for pid, values in found.items()
        if values == found.get(state.members[members[pid].label].parent)
    ]
    for pid in shared:
        del found[pid]
    return found


def _read(process: Process, statm: bytes | None, before: _Member | None) -> _Member | None:
    """Read one process in full; None when it is gone or has no memory of its own."""
    data = process.status()
    if data is None:
        return None
    begin, end = data.find(b"\nVm"), data.find(b"\nThreads:")  # all lines that are wanted lie here
    lines = _LINE.findall(data, max(begin, 0), end if end > begin else len(data))
    values = {_STATUS[name]: int(kib) * 1024 for name, kib in lines}
    if "rss_bytes" not in values:
        return None
    parent = _parent(data)
    if before is not None and before.values == values:
        before.statm, before.parent = statm, parent
        return before
    readings = _readings(process.label, values)
    fast = [reading for reading in readings if reading.metric in _FAST]
    slower = [reading for reading in readings if reading.metric not in _FAST]
    return _Member(statm, values, parent, fast, slower)


def _readings(label: str, values: Values) -> list[Reading]:
    entity = f"process:{label}"
    return [Reading(entity, metric, value) for metric, value in values.items()]


def _parent(status: bytes) -> int:
    _, _, rest = status.partition(b"\nPPid:")
    words = rest.split(None, 1)
    return int(words[0]) if words and words[0].isdigit() else 0


def _tree(state: _State, found: Mapping[int, Values]) -> Iterator[Reading]:
    processes = found.values()
    for metric in _SUMMED:
        values = [process[metric] for process in processes if metric in process]
        if values:
            yield Reading("tree", metric, sum(values))
    total = sum(process["rss_bytes"] for process in processes)
    marks = (process.get("hwm_bytes", 0) for process in processes)
    state.hwm_bytes = max(state.hwm_bytes, total, *marks)
    yield Reading("tree", "hwm_bytes", state.hwm_bytes)
    yield Reading("tree", "processes_count", len(found))
