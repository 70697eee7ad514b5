"""Memory of a run's processes, one by one and as a tree."""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from memplan_daemon.clock import Clock
from memplan_daemon.collectors.base import ALWAYS_IN_FULL, Gap, Reading, Watch
from memplan_daemon.collectors.rollup import Budget, Rollups
from memplan_daemon.proc import Process, Statms

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

Values = dict[str, int]


@dataclass(slots=True)
class _Member:
    """One process as it was read in full the last time."""

    text: bytes
    """What its status had of interest then."""
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
    processes: tuple[Process, ...] = ()
    """The processes of the last tick."""
    files: Statms | None = None
    """Their statm files; None for so few that each is read in full."""
    statms: Sequence[bytes | None] = ()
    """What these said: while that is the same, so are all readings but marks and swap."""
    members: dict[Process, _Member] = field(default_factory=dict)
    """What was read of them; who is gone, or has no memory of its own, is not in it."""
    found: dict[int, Values] = field(default_factory=dict)
    """Values by process id, less those that live in their parent's memory."""
    sums: Values = field(default_factory=dict)
    """Their sums over the tree."""
    fast: list[Reading] = field(default_factory=list)
    """What is read of them in every tick: first each one's, then the sums."""
    places: dict[Process, int] = field(default_factory=dict)
    """Where in it a process begins; who is not one of the largest is not in it."""


class ProcessCollector:
    """Reads every member of a tree, and adds them up under "tree".

    Per process: RSS and its three kinds, swap, the kernel's high-water mark (VmHWM), in trees of
    more than ALWAYS_IN_FULL processes between two ticks of the pace "still" only where RSS moved;
    PSS and USS where that is allowed and within its budget. A process that runs in its parent's
    memory, as between vfork and exec, is that memory seen twice and is left out. One that ended has
    its last RSS and mark stored once more, as final_rss_bytes and final_hwm_bytes.

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
        ended = self._update(state, watch)
        medium = watch.in_full or "medium" in watch.due
        slow = self._slow(state, watch) if medium else []
        denied = _denied(state, watch)
        if not (ended or medium or denied):
            return state.fast
        slower = _slower(state) if "medium" in watch.due else []
        return [*ended, *slower, *slow, *state.fast, *denied]

    def _update(self, state: _State, watch: Watch) -> list[Reading]:
        """Read who may have moved; return the final rows of those that are gone since."""
        processes = tuple(watch.members.values())
        same = processes == state.processes
        if not same:
            few = len(processes) <= ALWAYS_IN_FULL
            state.processes, state.files = processes, None if few else Statms(processes)
        before = state.statms
        state.statms = state.files.read() if state.files is not None else [None] * len(processes)
        if same and not watch.in_full:
            if state.statms == before and None not in before:
                return []
            trios = zip(processes, state.statms, before, strict=True)
            moved = [p for p, now, then in trios if now != then or now is None]
            if _stepped(state, moved):
                return []
        else:
            moved = list(processes)
        known = state.members
        state.members = {p: m for p in processes if (m := known.get(p)) is not None}
        for process in moved:
            member = _read(process, known.get(process))
            if member is not None:
                state.members[process] = member
            else:
                state.members.pop(process, None)
        state.found = _found(state.members)
        state.places, state.fast = _fast(state)
        state.sums = _sums(state.found.values())
        state.fast += _tree(state, (m.get("hwm_bytes", 0) for m in state.found.values()))
        return list(_ended(state))

    def _slow(self, state: _State, watch: Watch) -> list[Reading]:
        """Return PSS and USS of those whose turn it is, and of the tree."""
        if watch.quiet or not state.found:
            return []
        rss = {pid: values["rss_bytes"] for pid, values in state.found.items()}
        found = state.rollups.read(watch.members, rss)
        if not found:
            return []
        readings = [
            Reading(f"process:{process.label}", metric, value)
            for process in state.places
            for metric, value in found.get(process.pid, {}).items()
        ]
        totals = state.rollups.total(watch.members, state.found)
        return [*readings, *(Reading("tree", metric, value) for metric, value in totals.items())]

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


def _ended(state: _State) -> Iterator[Reading]:
    """Yield the final row of every process that was there in the last tick and is not now."""
    now = {process.label: state.found[process.pid] for process in _shown(state)}
    for label in state.last.keys() - now.keys():
        for metric in ("rss_bytes", "hwm_bytes"):
            if metric in state.last[label]:
                yield Reading(f"process:{label}", f"final_{metric}", state.last[label][metric])
    state.last = now


def _denied(state: _State, watch: Watch) -> list[Gap]:
    """Return a gap for each process whose slow reading was refused."""
    if watch.quiet or not state.rollups.denied:
        return []
    return [
        Gap(f"process:{process.label}", "pss_bytes", "no-permission")
        for process in _shown(state)
        if process.pid in state.rollups.denied
    ]


def _shown(state: _State) -> Iterator[Process]:
    """Yield the processes that have memory of their own."""
    return (process for process in state.members if process.pid in state.found)


def _found(members: Mapping[Process, _Member]) -> dict[int, Values]:
    """Return values by process id, less those of processes in their parent's memory."""
    every = {process.pid: member.values for process, member in members.items()}
    shared = [
        process.pid
        for process, member in members.items()
        if member.values == every.get(member.parent)
    ]
    return {pid: values for pid, values in every.items() if pid not in shared} if shared else every


def _largest(state: _State) -> Container[int]:
    """Return the processes that have series of their own."""
    found = state.found
    if len(found) <= LARGEST:
        return found
    return set(sorted(found, key=lambda pid: -found[pid].get("rss_bytes", 0))[:LARGEST])


def _fast(state: _State) -> tuple[dict[Process, int], list[Reading]]:
    """Return what is read of processes in every tick, and where in it each begins."""
    largest = _largest(state)
    places: dict[Process, int] = {}
    readings: list[Reading] = []
    for process, member in state.members.items():
        if process.pid in largest:
            places[process] = len(readings)
            readings += member.fast
    return places, readings


def _stepped(state: _State, moved: Sequence[Process]) -> bool:
    """Take in who has moved where that changes numbers and nothing else; tell whether it was so.

    If not, everything is to be put together anew: somebody came or went, has other readings than
    before, lives in its parent's memory, or the largest are to be chosen.
    """
    if len(state.places) != len(state.processes):
        return False
    fast, marks, found = list(state.fast), [], state.found
    for process in moved:
        before = state.members[process]
        member = _read(process, before)
        if member is None or member.values.keys() != before.values.keys():
            return False
        if member is before:
            continue
        place, values = state.places[process], member.values
        fast[place : place + len(member.fast)] = member.fast
        for metric in state.sums:
            state.sums[metric] += values.get(metric, 0) - before.values.get(metric, 0)
        state.members[process] = member
        found[process.pid] = state.last[process.label] = values
        marks.append(values.get("hwm_bytes", 0))
    if any(found[p.pid] == found.get(state.members[p].parent) for p in moved):
        return False
    if marks:
        tree = _tree(state, marks)
        fast[len(fast) - len(tree) :] = tree
        state.fast = fast
    return True


def _slower(state: _State) -> Iterator[Reading]:
    for process in state.places:
        yield from state.members[process].slower


def _read(process: Process, before: _Member | None) -> _Member | None:
    """Read one process in full; None when it is gone or has no memory of its own."""
    data = process.status()
    if data is None:
        return None
    begin, end = data.find(b"\nPPid:"), data.find(b"\nThreads:")  # what is wanted lies here
    text = data[max(begin, 0) : end if end > begin else len(data)]
    if before is not None and before.text == text:
        return before
    values = {_STATUS[name]: int(kib) * 1024 for name, kib in _LINE.findall(text)}
    if "rss_bytes" not in values:
        return None
    entity = f"process:{process.label}"
    known = {} if before is None else {r.metric: r for r in (*before.fast, *before.slower)}
    readings = []
    for metric, value in values.items():  # what is the same stays the same object
        reading = known.get(metric)
        if reading is None or reading.value != value:
            reading = Reading(entity, metric, value)
        readings.append(reading)
    fast = [reading for reading in readings if reading.metric in _FAST]
    slower = [reading for reading in readings if reading.metric not in _FAST]
    return _Member(text, values, _parent(text), fast, slower)


def _parent(status: bytes) -> int:
    _, _, rest = status.partition(b"\nPPid:")
    words = rest.split(None, 1)
    return int(words[0]) if words and words[0].isdigit() else 0


def _sums(found: Collection[Values]) -> Values:
    """Return the sums of what each process, or at least one, has."""
    every = {}
    for metric in _SUMMED:
        values = [process[metric] for process in found if metric in process]
        if values:
            every[metric] = sum(values)
    return every


def _tree(state: _State, marks: Iterable[int]) -> list[Reading]:
    """Return the tree's readings.

    Args:
        state: with its sums.
        marks: the processes' own high-water marks, at least those that are new.
    """
    if not state.found:
        return []
    state.hwm_bytes = max(state.hwm_bytes, state.sums["rss_bytes"], *marks)
    return [
        *(Reading("tree", metric, value) for metric, value in state.sums.items()),
        Reading("tree", "hwm_bytes", state.hwm_bytes),
        Reading("tree", "processes_count", len(state.found)),
    ]
