"""PSS and USS, within a budget: reading them stops the target for a while.

smaps_rollup walks the target's page tables with its memory lock held, about 13 ms per GiB: at ten
readings a second an 8 GiB process lost nine tenths of its speed at mapping memory. So a reading is
made only when what it is expected to cost has been saved up. Within that a process is asked at an
interval (in a large run at AT_REST of them, while its RSS is what it was then), and once more where
it is no longer what it was: doubled, or grown by a quarter and at rest. So the peak of a program
that ends before the interval does is missed by half at the most.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sized
from dataclasses import dataclass, field

from memplan_daemon.clock import NS, Clock
from memplan_daemon.collectors.base import ALWAYS_IN_FULL
from memplan_daemon.proc import Process

__all__ = ["Budget", "Rollups"]

PSS_LARGEST_BYTES = 4 * 1024**3
"""Larger processes are never asked: the stall would be longer than 50 ms."""

SHARE = 0.005
"""Part of the time that may go into such readings."""

LONGEST_NS = 60_000_000
"""Most that is saved up: no series of stalls is longer."""

AT_REST = 3
"""Intervals after which a process of a large run that did not move is asked again."""

FIRST_NS_PER_GIB = 15_000_000
FIRST_NS = 60_000
"""What a process is expected to cost before it was asked once: measured on torch programs."""


class Budget:
    """Time that may be spent, saved up at SHARE of the time that goes by."""

    def __init__(self, clock: Clock) -> None:
        """Begin with all that can be saved."""
        self._clock = clock
        self._saved_ns = float(LONGEST_NS)
        self._at_ns = clock.monotonic_ns()

    def allows(self, cost_ns: float) -> bool:
        """Tell whether so much has been saved."""
        now = self._clock.monotonic_ns()
        self._saved_ns = min(self._saved_ns + SHARE * (now - self._at_ns), LONGEST_NS)
        self._at_ns = now
        return cost_ns <= self._saved_ns

    def spend(self, cost_ns: float) -> None:
        """Take off what a reading did cost; that may be more than was there."""
        self._saved_ns -= cost_ns


_LINE = re.compile(rb"^(Pss|Private_Clean|Private_Dirty|Private_Hugetlb):\s+(\d+) kB", re.MULTILINE)

_NEVER = -(2**63)
"""When a process was asked that was not."""


@dataclass(slots=True)
class _Known:
    """What is known of one process."""

    values: dict[str, int] | None = None
    at_ns: int = _NEVER
    """When it was asked, or its turn went by."""
    rss_bytes: int = 0
    """Its RSS then."""
    cost_ns: float | None = None
    """What that took."""
    before_bytes: int = 0
    """Its RSS a tick ago."""


@dataclass(slots=True)
class Rollups:
    """The readings of one run's processes; each is asked every `interval_s` at most."""

    clock: Clock
    """Paces and times the readings."""
    budget: Budget
    """Shared by all runs."""
    interval_s: float
    """Seconds between two readings of one process."""
    denied: set[int] = field(default_factory=set)
    """Whose reading was refused in the last `read`."""
    _known: dict[str, _Known] = field(default_factory=dict)

    def read(
        self, members: Mapping[int, Process], rss: Mapping[int, int]
    ) -> dict[int, dict[str, int]]:
        """Read whom the budget allows, the longest unread first; return what was read now.

        Args:
            members: the processes.
            rss: their resident bytes.
        """
        known = {members[pid].label: self._of(members[pid]) for pid in rss}
        self._known = known
        now = self.clock.monotonic_ns()
        latest = now - round(self.interval_s * NS), now - round(self._longest_s(rss) * NS)
        due = [pid for pid in rss if _is_due(known[members[pid].label], rss[pid], *latest)]
        found = {}
        self.denied = set()
        for pid in sorted(due, key=lambda pid: known[members[pid].label].at_ns):
            one = known[members[pid].label]
            if rss[pid] > PSS_LARGEST_BYTES:
                continue
            cost_ns = _expected(one, rss[pid])
            if cost_ns > LONGEST_NS:
                self._pass_by(one)
            elif not self.budget.allows(cost_ns):
                break
            elif values := self._ask(members[pid], one, rss[pid]):
                found[pid] = values
            else:
                self.denied.add(pid)
        for pid in rss:
            known[members[pid].label].before_bytes = rss[pid]
        return found

    def total(self, members: Mapping[int, Process], pids: Mapping[int, object]) -> dict[str, int]:
        """Return the sums over all processes; {} unless each was read lately."""
        lately_s = self.interval_s + self._longest_s(pids)
        oldest = self.clock.monotonic_ns() - round(lately_s * NS)
        known = [self._of(members[pid]) for pid in pids]
        if any(k.values is None or k.at_ns < oldest for k in known):
            return {}
        return {
            metric: sum((k.values or {})[metric] for k in known)
            for metric in ("pss_bytes", "uss_bytes")
        }

    def _longest_s(self, pids: Sized) -> float:
        """Return the seconds between two readings of a process that does not move."""
        return self.interval_s * (AT_REST if len(pids) > ALWAYS_IN_FULL else 1)

    def _of(self, member: Process) -> _Known:
        return self._known.get(member.label) or self._known.setdefault(member.label, _Known())

    def _ask(self, member: Process, known: _Known, rss: int) -> dict[str, int] | None:
        begin = self.clock.monotonic_ns()
        known.values = _rollup(member)
        known.at_ns = self.clock.monotonic_ns()
        self.budget.spend(known.at_ns - begin)
        known.rss_bytes, known.cost_ns = rss, known.at_ns - begin
        return known.values

    def _pass_by(self, known: _Known) -> None:
        """Let a turn go by for which so much is never saved up: the others must not wait for it.

        What it is thought to cost is halved: the machine may have been busy when it was timed.
        """
        known.values, known.at_ns = None, self.clock.monotonic_ns()
        if known.cost_ns is not None:
            known.cost_ns /= 2


def _is_due(known: _Known, rss: int, latest_ns: int, latest_at_rest_ns: int) -> bool:
    """Tell whether a process is to be asked: for long it was not, or it has grown by much."""
    unmoved = known.values is not None and rss == known.rss_bytes
    if known.at_ns <= (latest_at_rest_ns if unmoved else latest_ns):
        return True
    if known.values is None:
        return False
    grown = rss - known.rss_bytes
    rests = 64 * (rss - known.before_bytes) <= known.before_bytes
    return grown > 0 and (grown >= known.rss_bytes or (rests and 4 * grown >= known.rss_bytes))


def _expected(known: _Known, rss: int) -> float:
    """Return what a reading is expected to cost, from the last one of this process.

    That one had a fixed part, large beside a small process, so growth is added at the usual rate.
    """
    if known.cost_ns is None:
        return FIRST_NS + FIRST_NS_PER_GIB * rss / 1024**3
    if rss <= known.rss_bytes:
        return known.cost_ns * rss / max(known.rss_bytes, 1)
    return known.cost_ns + FIRST_NS_PER_GIB * (rss - known.rss_bytes) / 1024**3


def _rollup(member: Process) -> dict[str, int] | None:
    lines = _LINE.findall(member.read("smaps_rollup") or b"")
    pss = [int(kib) for name, kib in lines if name == b"Pss"]
    if not pss:
        return None
    private = sum(int(kib) for name, kib in lines if name != b"Pss")
    return {"pss_bytes": pss[0] * 1024, "uss_bytes": private * 1024}
