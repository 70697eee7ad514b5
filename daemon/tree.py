"""Which processes belong together: a process's tree, or what a watch has chosen, over time."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet

from memplan_daemon.clock import NS, Clock
from memplan_daemon.collectors.base import ALWAYS_IN_FULL
from memplan_daemon.proc import Process, ProcFolder, Stat, has_memory

__all__ = ["ALL_ANEW", "Group", "ProcessTable", "Tree"]

SCAN_SHARE = 10
"""A scan of all processes is repeated after ten times what it took: at most a tenth of a core."""

RARELY = 6
"""Where listings are needed only to see how processes belong together, there are so many fewer."""

ALL_ANEW = 12
"""Listings after which all processes are read, also those that were the same in the last two: in
between a name may be old (a program can give itself another one)."""

_REMEMBERED = 65536
"""Process ids of which a group remembers how often it has seen them."""


class ProcessTable:
    """All processes of the machine, listed no more often than is cheap."""

    def __init__(
        self, proc: ProcFolder, clock: Clock, *, share: int = SCAN_SHARE, shortest_s: float = 0.0
    ) -> None:
        """Remember where to look.

        Args:
            proc: the /proc to list.
            clock: measures what a listing costs.
            share: listings are as many times their own duration apart.
            shortest_s: and at least so many seconds.
        """
        self.number = 0
        """Listings so far."""
        self._proc = proc
        self._clock = clock
        self._share = share
        self._shortest_ns = round(shortest_s * NS)
        self._next_ns = self._rarely_ns = self._soonest_ns = 0
        self._stats: Mapping[int, Stat] = {}
        self._settled: Mapping[int, Stat] = {}
        self._children: Mapping[int, list[int]] = {}
        self._sessions: Mapping[int, list[int]] = {}

    @property
    def stats(self) -> Mapping[int, Stat]:
        """Every process of the last listing."""
        return self._stats

    def refresh(self, *, rarely: bool = False) -> bool:
        """List the processes again, unless the last listing was expensive and is recent.

        Args:
            rarely: nobody is found by listings alone: one in RARELY is enough.
        """
        begin = self._clock.monotonic_ns()
        if begin < (self._rarely_ns if rarely else self._next_ns):
            return False
        every = self.number % ALL_ANEW == 0
        stats = self._proc.stats({} if every else self._settled)
        self._settled = {pid: s for pid, s in stats.items() if _is_like(s, self._stats.get(pid))}
        self._stats = stats
        self.number += 1
        children: dict[int, list[int]] = defaultdict(list)
        sessions: dict[int, list[int]] = defaultdict(list)
        for pid, stat in self._stats.items():
            children[stat.parent].append(pid)
            sessions[stat.session].append(pid)
        self._children, self._sessions = children, sessions
        end = self._clock.monotonic_ns()
        self._soonest_ns = end + self._share * (end - begin)
        self._next_ns = max(self._soonest_ns, begin + self._shortest_ns)
        self._rarely_ns = begin + RARELY * (self._next_ns - begin)
        return True

    def expire(self) -> None:
        """Let the next `refresh` list in any case."""
        self._next_ns = self._rarely_ns = 0

    def hasten(self) -> None:
        """List as soon as it is cheap."""
        self._next_ns = min(self._next_ns, self._soonest_ns)
        self._rarely_ns = self._next_ns

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

    def ancestor_in(self, pid: int, chosen: Mapping[int, object]) -> int | None:
        """Return the nearest ancestor of a process that is among the chosen."""
        seen = {pid}
        while (stat := self._stats.get(pid)) is not None and stat.parent not in seen:
            pid = stat.parent
            if pid in chosen:
                return pid
            seen.add(pid)
        return None


def _is_like(stat: Stat, before: Stat | None) -> bool:
    """Tell whether a process is the one it was, and in the same place; its state may differ."""
    if stat is before:  # it was not read again
        return True
    return before is not None and before._replace(state=stat.state) == stat


class Group:
    """Processes that somebody else chooses.

    Each member is held by descriptor: a process id that is used again is never taken for the
    member, and gets a label of its own ("4711#2").
    """

    def __init__(self, proc: ProcFolder) -> None:
        """Begin empty.

        Args:
            proc: the /proc to read.
        """
        self.wanted: set[int] = set()
        """Process ids that belong in; taken hold of at the next `update`."""
        self.pid: int | None = None
        """The first member's process id."""
        self._proc = proc
        self._members: dict[int, Process] = {}
        self._seen: OrderedDict[int, int] = OrderedDict()

    @property
    def members(self) -> Mapping[int, Process]:
        """The living members by process id: another mapping as soon as one came or went."""
        return self._members

    @property
    def alive(self) -> bool:
        """True while any member lives."""
        return bool(self._members)

    @property
    def is_large(self) -> bool:
        """True where who has not moved is not read in every tick."""
        return len(self._members) > ALWAYS_IN_FULL

    def needs_update(self, *, listed: bool) -> bool:
        """Tell whether `update` has something to do; `listed` = all processes were just listed."""
        return listed or self.wanted != self._members.keys()

    def update(self, table: ProcessTable) -> None:
        """Drop members that ended or do not belong any more, and add new ones.

        In a large group those that have gone from the table; who waits to be reaped is found by
        who looks at all of it in every tick.
        """
        self.drop_ended(self._suspects(table))
        self._drop(self._members.keys() - self.wanted)
        self._adopt(self.wanted)

    def _suspects(self, table: ProcessTable) -> Collection[int]:
        """Return those that may have ended."""
        return self._members.keys() - table.stats.keys() if self.is_large else self._members

    def drop_ended(self, suspects: Iterable[int] | None = None) -> None:
        """Let go of members that ended: what has memory has not, which costs least to ask.

        Args:
            suspects: who is to be asked, members or not; None = all.
        """
        ended = []
        for pid in self._members if suspects is None else suspects:
            member = self._members.get(pid)
            if member is None:
                continue
            if has_memory(member.statm()):
                continue
            stat = member.stat()
            if stat is None or stat.state in "ZX":
                ended.append(pid)
        self._drop(ended)

    def let_go(self, pid: int) -> None:
        """Drop a member if it has ended: its number may be another's until the next listing."""
        self.drop_ended([pid])
        if pid not in self._members:
            self.wanted = self.wanted - {pid}

    def _drop(self, pids: Iterable[int]) -> None:
        gone = {pid: self._members[pid] for pid in pids}
        if gone:
            self._members = {p: m for p, m in self._members.items() if p not in gone}
        for member in gone.values():
            member.close()

    def _adopt(self, pids: AbstractSet[int]) -> None:
        """Take hold of processes that are no members yet."""
        held = {pid: self._held(pid) for pid in sorted(pids - self._members.keys())}
        new = {pid: member for pid, member in held.items() if member is not None}
        if new:
            self._members = self._members | new
            self.pid = next(iter(new)) if self.pid is None else self.pid

    def _held(self, pid: int) -> Process | None:
        member = self._proc.open(pid)
        if member is None:
            return None
        if not self._is_meant(member.stat()):
            member.close()
            return None
        member.identify()
        times = self._seen.pop(pid, 0) + 1
        self._seen[pid] = times
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        member.label = str(pid) if times == 1 else f"{pid}#{times}"
        return member

    def _is_meant(self, stat: Stat | None) -> bool:
        return stat is not None and stat.state not in "ZX"

    def close(self) -> None:
        """Let go of every member."""
        self._drop(list(self._members))


class Tree(Group):
    """A process and all that came from it.

    Members are found by walking parents down from the root and from every member known so far, so
    a child whose parent has ended (an orphan) stays in. When the root leads a session, everything
    in the session belongs, too.
    """

    def __init__(self, pid: int, proc: ProcFolder) -> None:
        """Take hold of the root.

        Args:
            pid: the root's process id.
            proc: the /proc to read.
        """
        super().__init__(proc)
        self.pid = pid
        self._related: set[int] | None = None
        self._adopt({pid})

    def join(self, pid: int) -> None:
        """Take in another root: a rank of the same job."""
        if pid not in self._members:
            self._related = None
            self._adopt({pid})

    def needs_update(self, *, listed: bool) -> bool:
        """Tell whether `update` has something to do: only a new listing shows new children."""
        return listed

    def update(self, table: ProcessTable) -> None:
        """Drop members that ended and add new ones, by a table that was just refreshed."""
        self.drop_ended(self._suspects(table))
        if not self._members:
            return
        self._related = table.related(self.pid or 0, self._members)
        self._adopt(self._related)

    def _is_meant(self, stat: Stat | None) -> bool:
        """Tell whether the descriptor itself shows the process that the table meant."""
        if stat is None or stat.state in "ZX":
            return False
        related = self._related
        return related is None or stat.parent in related or stat.session == self.pid
