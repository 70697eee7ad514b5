"""Memory of a run's processes, one by one and as a tree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from memplan_daemon.clock import NS, Clock
from memplan_daemon.collectors.base import Reading, Watch
from memplan_daemon.proc import Process, kib_fields

__all__ = ["ProcessCollector"]

_STATUS = {
    "rss_bytes": "VmRSS",
    "rss_anon_bytes": "RssAnon",
    "rss_file_bytes": "RssFile",
    "rss_shmem_bytes": "RssShmem",
    "swap_bytes": "VmSwap",
    "hwm_bytes": "VmHWM",
}
"""Metric -> line of /proc/PID/status; reading them costs the target nothing."""

_SUMMED = ("rss_bytes", "rss_anon_bytes", "rss_file_bytes", "rss_shmem_bytes", "swap_bytes")
_ROLLUP = ("pss_bytes", "uss_bytes")

LARGEST = 64
"""Processes of a tree that get series of their own in a tick: the largest. All are summed."""

PSS_INTERVAL_S = 5.0
PSS_SLOWEST_NS = 20_000_000
PSS_LARGEST_BYTES = 1024**3
"""smaps_rollup holds the target's memory lock for about 13 ms per GiB: larger processes, and
those whose last read was slower than 20 ms, are not asked again."""


@dataclass(slots=True)
class _State:
    """What is remembered about one run between ticks."""

    tick: int = 0
    """The last tick in which the run was read; a run that was left out of one is forgotten."""
    hwm_bytes: int = 0
    """The tree's high-water mark so far."""
    pss_due_ns: int = 0
    """When smaps_rollup is read next, monotonic."""
    too_slow: set[int] = field(default_factory=set)
    """Processes whose smaps_rollup is not read any more."""


class ProcessCollector:
    """Reads every member of a tree, and adds them up under "tree".

    Per process: RSS and its three kinds, swap, the kernel's high-water mark (VmHWM); PSS and USS
    every PSS_INTERVAL_S where that is allowed and cheap. A process that runs in its parent's
    memory, as between vfork and exec, is that memory seen twice and is left out.

    tree.rss_bytes is the plain sum: pages that processes share are counted in each, so it is an
    upper bound for forked workers (tree.pss_bytes counts them once, and is left out unless every
    process could be read). tree.hwm_bytes is the highest so far of two things that the tree
    certainly reached: each sampled sum, and each single process's own VmHWM. For a tree of one
    process that is exact, also between samples; for several it is a lower bound, because their
    marks need not fall on the same moment.
    """

    def __init__(self, clock: Clock) -> None:
        """Remember the clock that paces the slow readings."""
        self._clock = clock
        self._states: dict[str, _State] = {}

    def collect(self, watch: Watch) -> Iterable[Reading]:
        """Return the readings of a run's processes; nothing for the host."""
        if watch.run_id is None:
            return
        state = self._state(watch.run_id, watch.tick)
        found = _read_members(watch.members)
        if not found:
            return
        self._add_rollup(state, watch.members, found)
        largest = sorted(found, key=lambda pid: -found[pid].get("rss_bytes", 0))[:LARGEST]
        for pid in sorted(largest):
            for metric, value in found[pid].items():
                yield Reading(f"process:{pid}", metric, value)
        yield from _tree(state, found)

    def tree_hwm(self, run_id: str) -> int:
        """Return the high-water mark of a run's tree so far, in bytes; 0 before any reading."""
        return self._states[run_id].hwm_bytes if run_id in self._states else 0

    def _state(self, run_id: str, tick: int) -> _State:
        gone = [key for key, state in self._states.items() if state.tick < tick - 1]
        for key in gone:
            del self._states[key]
        state = self._states.setdefault(run_id, _State())
        state.tick = tick
        return state

    def _add_rollup(
        self, state: _State, members: Mapping[int, Process], found: dict[int, dict[str, int]]
    ) -> None:
        if self._clock.monotonic_ns() < state.pss_due_ns:
            return
        for pid, values in found.items():
            if pid in state.too_slow or values.get("rss_bytes", 0) > PSS_LARGEST_BYTES:
                continue
            begin = self._clock.monotonic_ns()
            values.update(_rollup(members[pid]))
            if self._clock.monotonic_ns() - begin > PSS_SLOWEST_NS:
                state.too_slow.add(pid)
        state.too_slow &= members.keys()
        state.pss_due_ns = self._clock.monotonic_ns() + round(PSS_INTERVAL_S * NS)


def _read_members(members: Mapping[int, Process]) -> dict[int, dict[str, int]]:
    """Return the status readings by process, less those that live in their parent's memory."""
    found: dict[int, dict[str, int]] = {}
    parents: dict[int, int] = {}
    for pid, member in members.items():
        data = member.read("status")
        if data is None:
            continue
        fields = kib_fields(data)
        values = {metric: fields[key] for metric, key in _STATUS.items() if key in fields}
        if "rss_bytes" in values:
            found[pid] = values
            parents[pid] = _parent(data)
    shared = [pid for pid in found if found[pid] == found.get(parents[pid])]
    for pid in shared:
        del found[pid]
    return found


def _parent(status: bytes) -> int:
    _, _, rest = status.partition(b"\nPPid:")
    words = rest.split(None, 1)
    return int(words[0]) if words and words[0].isdigit() else 0


def _rollup(member: Process) -> dict[str, int]:
    data = member.read("smaps_rollup")
    if not data:
        return {}
    fields = kib_fields(data)
    if "Pss" not in fields:
        return {}
    private = ("Private_Clean", "Private_Dirty", "Private_Hugetlb")
    return {
        "pss_bytes": fields["Pss"],
        "uss_bytes": sum(fields.get(name, 0) for name in private),
    }


def _tree(state: _State, found: Mapping[int, Mapping[str, int]]) -> Iterator[Reading]:
    processes = found.values()
    for metric in _SUMMED:
        values = [process[metric] for process in processes if metric in process]
        if values:
            yield Reading("tree", metric, sum(values))
    for metric in _ROLLUP:
        if all(metric in process for process in processes):
            yield Reading("tree", metric, sum(process[metric] for process in processes))
    total = sum(process["rss_bytes"] for process in processes)
    marks = (process.get("hwm_bytes", 0) for process in processes)
    state.hwm_bytes = max(state.hwm_bytes, total, *marks)
    yield Reading("tree", "hwm_bytes", state.hwm_bytes)
    yield Reading("tree", "processes_count", len(found))
