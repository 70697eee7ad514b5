"""Memory of a run's processes, one by one and as a tree."""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from memplan_daemon.clock import Clock
from memplan_daemon.collectors.base import Gap, Reading, Steady, Watch
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

_SLOWER = tuple(metric for metric in _STATUS.values() if metric not in _FAST)

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
    highest_bytes: int = 0
    """The highest sum of RSS so far."""
    last: dict[str, Values] = field(default_factory=dict)
    """Each process's last values, by label: they become its final row."""
    watched: Mapping[int, Process] = field(default_factory=dict)
    """The processes of the last tick."""
    members: dict[Process, _Member] = field(default_factory=dict)
    """What was read of them; who is gone, or has no memory of its own, is not in it."""
    found: dict[int, Values] = field(default_factory=dict)
    """Values by process id, less those that live in their parent's memory."""
    sums: Values = field(default_factory=dict)
    """Their sums over the tree."""
    fast: list[Reading] = field(default_factory=list)
    """What is read of them in every tick: first each one's, then the tree's."""
    tree: list[Reading] = field(default_factory=list)
    """The tree's; what is the same stays the same object."""
    untold: set[Process] = field(default_factory=set)
    """Whose slower readings may have changed since they were told last."""
    places: dict[Process, int] = field(default_factory=dict)
    """Where in it a process begins; who is not one of the largest is not in it."""
    smallest_bytes: int = 0
    """RSS of the smallest of the largest, when they were chosen; 0 where all of them are."""


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
        self._tick = -1

    def collect(self, watch: Watch) -> Sequence[Reading | Gap] | Steady:
        """Return the readings of a run's processes; nothing for the host."""
        if watch.run_id is None:
            return []
        state = self._state(watch.run_id, watch.tick)
        medium = watch.in_full or "medium" in watch.due
        news = self._carry_on(state, watch)
        ended = self._read_anew(state, watch) if news is None else []
        state.watched = watch.members
        slow = self._slow(state, watch) if medium else []
        denied = _denied(state, watch)
        if news is not None and not (medium or denied):
            return Steady(state.fast, news)
        slower: list[Reading] = []
        untold: list[Reading] = []
        if not watch.due.isdisjoint(("medium", "still")):
            shown = state.places.keys()
            slower = list(_slower(state, shown))
            untold = list(_slower(state, state.untold & shown))
            state.untold -= shown
        found: list[Reading | Gap] = [*ended, *slower, *slow, *state.fast, *denied]
        if news is None:
            return found
        return Steady(found, [*untold, *slow, *news])

    def _carry_on(self, state: _State, watch: Watch) -> list[Reading] | None:
        """Read who has moved and return what is new; None where all is to be put together."""
        watched, state.watched = state.watched, {}
        if not watched:  # the first tick, or the last one failed: nothing is known for sure
            state.members = {}
        if watch.moved is None or watch.in_full or watch.members is not watched:
            return None
        if not watch.moved:
            return state.tree[:1]
        return _stepped(state, watch) if len(state.found) == len(watched) else None

    def _read_anew(self, state: _State, watch: Watch) -> list[Reading]:
        """Put everything together; return the final rows of those that are gone since."""
        known, again = state.members, None
        if watch.moved is not None and not watch.in_full:
            again = {*watch.moved, *watch.late(watch.run_id or "")}
        state.members = {}
        for process in watch.members.values():
            member = known.get(process)
            if again is None or member is None or process in again:
                member = _read(process, member)
            if member is not None:
                state.members[process] = member
            if member is not known.get(process):
                state.untold.add(process)
        state.untold &= state.members.keys()
        state.found = _found(state.members)
        state.places, state.fast = _fast(state)
        state.sums = _sums(state.found.values())
        state.tree = _tree(state, (m.get("hwm_bytes", 0) for m in state.found.values()))
        state.fast += state.tree
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
        if tick != self._tick:
            self._tick = tick
            self._states = {r: state for r, state in self._states.items() if state.tick >= tick - 1}
        state = self._states.get(run_id)
        if state is None:
            rollups = Rollups(self._clock, self._budget, self._pss_interval_s)
            state = self._states[run_id] = _State(rollups)
        state.tick = tick
        return state


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
    """Choose the processes that have series of their own."""
    found = state.found
    state.smallest_bytes = 0
    if len(found) <= LARGEST:
        return found
    largest = sorted(found, key=lambda pid: -found[pid]["rss_bytes"])[:LARGEST]
    state.smallest_bytes = found[largest[-1]]["rss_bytes"]
    return set(largest)


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


def _who(state: _State, watch: Watch) -> Iterator[Process]:
    """Yield who has moved; where the sum has never been so high, also of those not looked at.

    It may be so high only because somebody whose turn it was not has let memory go.
    """
    yield from watch.moved or ()
    if state.sums["rss_bytes"] > state.highest_bytes:  # by those that were yielded
        yield from watch.late(watch.run_id or "")


def _stepped(state: _State, watch: Watch) -> list[Reading] | None:
    """Take in who has moved where that changes numbers and nothing else; return what is new.

    None where everything is to be put together anew: somebody has gone, has other readings than
    before, lives in its parent's memory, or is one of the largest now, or not any more.
    """
    fast, found, sums = list(state.fast), state.found, state.sums
    news: list[Reading] = []
    marks, moved = [], []
    for process in _who(state, watch):
        moved.append(process)
        before = state.members[process]
        member = _read(process, before)
        if member is None or member.values.keys() != before.values.keys():
            return None
        if member is before:
            continue
        place, values = state.places.get(process), member.values
        if place is None:
            if values["rss_bytes"] > state.smallest_bytes:
                return None
        elif values["rss_bytes"] < state.smallest_bytes:
            return None
        else:
            fast[place : place + len(member.fast)] = member.fast
            pairs = zip(member.fast, before.fast, strict=True)
            news += [now for now, then in pairs if now is not then]
        for metric in sums:
            sums[metric] += values.get(metric, 0) - before.values.get(metric, 0)
        state.members[process] = member
        state.untold.add(process)
        found[process.pid] = state.last[process.label] = values
        marks.append(values.get("hwm_bytes", 0))
    if any(found[p.pid] == found.get(state.members[p].parent) for p in moved):
        return None
    if marks:
        last, state.tree = state.tree, _tree(state, marks)
        fast[len(fast) - len(state.tree) :] = state.tree
        state.fast = fast
        news += [now for now, then in zip(state.tree, last, strict=True) if now is not then]
    return news if state.tree[0] in news else [*news, state.tree[0]]


def _slower(state: _State, processes: Iterable[Process]) -> Iterator[Reading]:
    for process in processes:
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
    fast, slower = ([], []) if before is None else (before.fast, before.slower)
    return _Member(
        text,
        values,
        _parent(text),
        _readings(entity, values, fast, _FAST),
        _readings(entity, values, slower, _SLOWER),
    )


def _readings(
    entity: str, values: Values, before: list[Reading], metrics: Sequence[str]
) -> list[Reading]:
    """Return readings of these metrics; what is the same stays the same object."""
    there = [metric for metric in metrics if metric in values]
    if [reading[1] for reading in before] == there:
        return [
            reading if values[metric] == reading[2] else Reading(entity, metric, values[metric])
            for metric, reading in zip(there, before, strict=True)
        ]
    return [Reading(entity, metric, values[metric]) for metric in there]


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
    """Return the tree's readings, RSS first.

    Args:
        state: with its sums.
        marks: the processes' own high-water marks, at least those that are new.
    """
    if not state.found:
        return []
    state.highest_bytes = max(state.highest_bytes, state.sums["rss_bytes"])
    state.hwm_bytes = max(state.hwm_bytes, state.highest_bytes, *marks)
    values = {
        **state.sums,
        "hwm_bytes": state.hwm_bytes,
        "processes_count": len(state.found),
    }
    return _readings("tree", values, state.tree, tuple(values))
