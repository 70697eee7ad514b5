"""Which processes belong to a watched one: its tree, followed over time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from memplan_daemon.clock import Clock
from memplan_daemon.proc import Process, ProcFolder, Stat

__all__ = ["ProcessTable", "Tree"]

SCAN_SHARE = 10
"""A scan of all processes is repeated after ten times what it took: at most a tenth of a core."""


class ProcessTable:
    """All processes of the machine, listed no more often than is cheap."""

    def __init__(self, proc: ProcFolder, clock: Clock) -> None:
        """Remember where to look.

        Args:
            proc: the /proc to list.
            clock: measures what a listing costs.
        """
        self._proc = proc
        self._clock = clock
        self._next_ns = 0
        self._stats: Mapping[int, Stat] = {}
        self._children: Mapping[int, list[int]] = {}
        self._sessions: Mapping[int, list[int]] = {}

    def refresh(self) -> bool:
        """List the processes again, unless the last listing was expensive and is recent."""
        begin = self._clock.monotonic_ns()
        if begin < self._next_ns:
            return False
        self._stats = self._proc.stats()
        children: dict[int, list[int]] = defaultdict(list)
        sessions: dict[int, list[int]] = defaultdict(list)
        for pid, stat in self._stats.items():
            children[stat.parent].append(pid)
            sessions[stat.session].append(pid)
        self._children, self._sessions = children, sessions
        end = self._clock.monotonic_ns()
        self._next_ns = end + SCAN_SHARE * (end - begin)
        return True

    def related(self, root: int, members: Iterable[int]) -> set[int]:
        """Return the descendants of all members, and root's session when root leads one."""
        todo = [root, *members]
        if (stat := self._stats.get(root)) is not None and stat.session == root:
            todo += self._sessions.get(root, ())
        found: set[int] = set()
        while todo:
            pid = todo.pop()
            if pid not in found:
                found.add(pid)
                todo += self._children.get(pid, ())
        return found


class Tree:
    """A process and all that came from it.

    Members are found by walking parents down from the root and from every member known so far, so
    a child whose parent has ended (an orphan) stays in. When the root leads a session, everything
    in the session belongs, too. Each member is held by descriptor: a process id that is used
    again is never taken for the member.
    """

    def __init__(self, pid: int, proc: ProcFolder) -> None:
        """Take hold of the root.

        Args:
            pid: the root's process id.
            proc: the /proc to read.
        """
        self.pid = pid
        self._proc = proc
        self._members: dict[int, Process] = {}
        self._adopt(pid, None)

    @property
    def members(self) -> Mapping[int, Process]:
        """The living members by process id."""
        return self._members

    @property
    def alive(self) -> bool:
        """True while any member lives."""
        return bool(self._members)

    def update(self, table: ProcessTable) -> None:
        """Drop members that ended and add new ones, by a table that was just refreshed."""
        stats = {pid: member.stat() for pid, member in self._members.items()}
        for pid, stat in stats.items():
            if stat is None or stat.state in "ZX":
                self._members.pop(pid).close()
        if not self._members:
            return
        related = table.related(self.pid, self._members)
        for pid in sorted(related - self._members.keys()):
            self._adopt(pid, related)

    def _adopt(self, pid: int, related: set[int] | None) -> None:
        """Hold a process, once the descriptor itself shows that it is the one that was meant."""
        member = self._proc.open(pid)
        if member is None:
            return
        stat = member.stat()
        known = related is None or (
            stat is not None and (stat.parent in related or stat.session == self.pid)
        )
        if stat is None or stat.state in "ZX" or not known:
            member.close()
        else:
            self._members[pid] = member

    def close(self) -> None:
        """Let go of every member."""
        while self._members:
            self._members.popitem()[1].close()
