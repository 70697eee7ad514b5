"""What the daemon watches by itself: rules that choose processes, and runs made of the chosen."""

from __future__ import annotations

import fnmatch
import logging
import os
import re
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from memplan_daemon.proc import Process, ProcFolder, Stat
from memplan_daemon.runbook import RunBook
from memplan_daemon.sampler import Sampler
from memplan_daemon.tree import Group, ProcessTable

from memplan.errors import UsageError
from memplan.wire import job_of

__all__ = ["KINDS", "Rule", "Watches", "parse_rule"]

_log = logging.getLogger("memplan.daemon")

KINDS = ("pid", "name", "user", "cgroup", "container", "gpu")
"""What a rule can choose by."""

FORGET_AFTER = 12
"""Listings after which a process that was not chosen is looked at again: it may have moved."""

MOST_RUNS = 256
"""Runs that one daemon keeps open for its rules; a process beyond that is not watched."""

_KTHREADD = 2
"""The kernel's threads descend from it; they have no memory of their own."""

_HINT = "pid:4711, name:python*, user:alice, cgroup:/system.slice/x, container:1f0e..., gpu:all"
_CONTAINER = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule."""

    kind: str
    """One of KINDS."""
    value: str
    """What it is compared with."""
    text: str
    """The rule as it was written: its name."""


def parse_rule(text: str) -> Rule:
    """Return a rule from "kind:value".

    pid: a process and all that comes from it. name: a pattern for the program's name (15 bytes, as
    the kernel keeps it). user: a name or number. cgroup: a path, with all below it. container: the
    id, or its beginning. gpu: "all", or one UUID: every process on it.

    Raises UsageError for anything else.
    """
    text = text.strip()
    kind, colon, value = text.partition(":")
    if not colon or kind not in KINDS or not value:
        raise UsageError(f"{text!r} is nothing to watch", hint=f"for example {_HINT}")
    if kind == "pid" and not (value.isdigit() and 0 < int(value) < 2**31):
        raise UsageError(f"{value!r} is not a process id", hint=f"for example {_HINT}")
    if kind == "user":
        value = str(_uid(value))
    if kind == "container" and not _CONTAINER.fullmatch(value):
        raise UsageError(f"{value!r} is not a container's id", hint="at least 8 of its hex digits")
    if kind == "cgroup":
        value = value.rstrip("/") or "/"
    return Rule(kind=kind, value=value, text=text)


def _uid(value: str) -> int:
    import pwd

    if value.isdigit():
        return int(value)
    try:
        return pwd.getpwnam(value).pw_uid
    except KeyError as error:
        raise UsageError(f"there is no user {value!r}", hint="getent passwd") from error


def _paths(process: Process) -> list[str]:
    """Return the paths of the control groups that a process is in."""
    data = (process.read("cgroup") or b"").decode("utf-8", "replace")
    return [line.split(":", 2)[2] for line in data.splitlines() if line.count(":") >= 2]


def _matches(rule: Rule, process: Process) -> bool:
    """Tell whether a held process is chosen by a rule that needs one of its files."""
    if rule.kind == "user":
        process.identify()
        return str(process.uid) == rule.value
    if rule.kind == "cgroup":
        below = rule.value.rstrip("/") + "/"
        return any(path == rule.value or path.startswith(below) for path in _paths(process))
    parts = (part for path in _paths(process) for part in re.split(r"[/:.-]", path))
    return any(part.startswith(rule.value) for part in parts)


class _Chooser:
    """Applies one rule to each listing; a process is looked at once, and again much later."""

    def __init__(
        self, rule: Rule, proc: ProcFolder, gpu_pids: Callable[[str | None], AbstractSet[int]]
    ) -> None:
        self.rule = rule
        self._proc = proc
        self._gpu_pids = gpu_pids
        self._known: dict[int, bool] = {}

    def choose(self, table: ProcessTable) -> AbstractSet[int]:
        if self.rule.kind == "gpu":
            return self._gpu_pids(None if self.rule.value == "all" else self.rule.value)
        if self.rule.kind == "pid":
            root = int(self.rule.value)
            return table.related(root, ()) & table.stats.keys()
        if self.rule.kind == "name":
            return {
                p for p, s in table.stats.items() if fnmatch.fnmatchcase(s.name, self.rule.value)
            }
        return self._by_files(table.stats, again=table.number % FORGET_AFTER == 0)

    def _by_files(self, stats: Mapping[int, Stat], *, again: bool) -> set[int]:
        known = {p: y for p, y in self._known.items() if p in stats and (y or not again)}
        for pid in stats.keys() - known.keys():
            process = self._proc.open(pid)
            if process is not None:
                known[pid] = _matches(self.rule, process)
                process.close()
        self._known = known
        return {pid for pid, yes in known.items() if yes}


@dataclass(slots=True)
class _Run:
    """A run that a rule has made."""

    run_id: str
    group: Group
    pids: set[int] = field(default_factory=set)


class Watches:
    """Holds the rules, and turns what they choose into runs of the sampler.

    Ranks of one job (by their environment, where it may be read) are one run; so are a process and
    those of its descendants that were chosen, too. What a `memplan run` watches already, and what
    belongs to the daemon itself, is left to it. A run ends when its last process has.
    """

    def __init__(
        self,
        *,
        sampler: Sampler,
        book: RunBook,
        proc: ProcFolder,
        gpu_pids: Callable[[str | None], AbstractSet[int]],
    ) -> None:
        """Begin without rules.

        Args:
            sampler: samples the runs.
            book: stores them.
            proc: the /proc to read.
            gpu_pids: returns the processes on a GPU, or (None) on any.
        """
        self._sampler = sampler
        self._book = book
        self._proc = proc
        self._gpu_pids = gpu_pids
        self._choosers: dict[str, _Chooser] = {}
        self._runs: dict[tuple[str, str], _Run] = {}
        self._keys: dict[str, dict[int, str]] = {}
        self._chosen: dict[str, AbstractSet[int]] = {}
        self._full = False
        self._set: set[str] = set()
        self._strangers: set[int] = set()

    @property
    def rules(self) -> dict[str, list[str]]:
        """Each rule with the runs that it has at the moment."""
        return {
            text: [run.run_id for (rule, _), run in self._runs.items() if rule == text]
            for text in self._choosers
        }

    def add(self, rule: Rule) -> None:
        """Follow a rule from the next listing on; one that is there already stays."""
        if not self._choosers:  # without rules nobody needs to know what processes there are
            self._sampler.before_tick.append(self._tick)
        if rule.text not in self._choosers:
            self._choosers[rule.text] = _Chooser(rule, self._proc, self._gpu_pids)
        self._set_pace()

    def remove(self, text: str) -> None:
        """Forget a rule and end its runs. Raises UsageError when there is no such rule."""
        if text not in self._choosers:
            raise UsageError(f"{text!r} is not watched", hint="memplan watch list")
        del self._choosers[text]
        if not self._choosers:
            self._sampler.before_tick.remove(self._tick)
        self._set_pace()
        self._keys.pop(text, None)
        self._chosen.pop(text, None)
        for key in [key for key in self._runs if key[0] == text]:
            self._end(key)

    def replace(self, rules: list[Rule]) -> None:
        """Follow these instead of those of the last `replace`; what was added in between stays."""
        wanted = {rule.text for rule in rules}
        for text in self._set - wanted:
            if text in self._choosers:
                self.remove(text)
        for rule in rules:
            self.add(rule)
        self._set = wanted

    def _set_pace(self) -> None:
        kinds = {chooser.rule.kind for chooser in self._choosers.values()}
        self._sampler.listed_rarely = kinds <= {"gpu"}

    def _tick(self, table: ProcessTable, listed: bool) -> None:  # noqa: FBT001 - a callback
        if listed:
            self._strangers = self._not_ours(table)
        for text, chooser in self._choosers.items():
            if listed:
                self._chosen[text] = chooser.choose(table)
                self._assign(text, self._chosen[text] - self._strangers, table)
            elif chooser.rule.kind == "gpu":
                self._follow(text, chooser.choose(table), table)
        if listed:
            self._book.retry()
            for key in [k for k, run in self._runs.items() if not run.pids]:
                self._end(key)

    def _follow(self, text: str, pids: AbstractSet[int], table: ProcessTable) -> None:
        """Take in what a GPU's list says; where it names new processes they are listed first."""
        before = self._chosen.get(text, frozenset())
        if pids is before or pids == before:
            return
        self._chosen[text] = pids
        if pids - before <= table.stats.keys():
            self._assign(text, pids - self._strangers, table)
        else:
            table.hasten()

    def _not_ours(self, table: ProcessTable) -> set[int]:
        """Return what is never watched: this daemon with its probes, and the kernel's threads."""
        if not self._proc.is_real:
            return set()
        return table.related(os.getpid(), ()) | table.related(_KTHREADD, ())

    def _assign(self, text: str, pids: AbstractSet[int], table: ProcessTable) -> None:
        """Give each chosen process to a run, and each run its processes."""
        keys = {pid: key for pid, key in self._keys.get(text, {}).items() if pid in pids}
        found: dict[str, set[int]] = {}
        for pid in sorted(pids):
            if pid not in keys:
                key = self._key(pid, pids, keys, table)
                if key is None:
                    continue
                keys[pid] = key
            found.setdefault(keys[pid], set()).add(pid)
        self._keys[text] = keys
        for key in found.keys() | {key for rule, key in self._runs if rule == text}:
            self._give(text, key, found.get(key, set()))

    def _key(
        self, pid: int, pids: AbstractSet[int], keys: Mapping[int, str], table: ProcessTable
    ) -> str | None:
        """Return the run that a process belongs to: its job, its chosen ancestor's, its own."""
        process = self._proc.open(pid)
        if process is None:
            return None
        try:
            environ = _environ(process)
        finally:
            process.close()
        if "MEMPLAN_RUN" in environ:
            return None
        if (job := job_of(environ)) is not None:
            return job
        above = table.ancestor_in(pid, dict.fromkeys(pids))
        if above is not None and above in keys:
            return keys[above]
        return f"process:{pid if above is None else above}"

    def _give(self, text: str, key: str, pids: set[int]) -> None:
        run = self._runs.get((text, key))
        if run is None and pids:
            run = self._begin(text, key, min(pids))
        if run is not None:
            run.pids = pids
            run.group.wanted = pids

    def _begin(self, text: str, key: str, pid: int) -> _Run | None:
        if len(self._runs) >= MOST_RUNS:
            if not self._full:
                _log.warning("more than %d runs: what else is chosen is not watched", MOST_RUNS)
            self._full = True
            return None
        process = self._proc.open(pid)
        if process is None:
            return None
        about = {} if key.startswith("process:") else {"job": key}
        run = _Run(self._book.begin(process, watch=text, **about), Group(self._proc))
        process.close()
        self._runs[text, key] = run
        self._sampler.watch_group(run.run_id, run.group)
        return run

    def _end(self, key: tuple[str, str]) -> None:
        run = self._runs.pop(key)
        self._full = False
        self._sampler.unwatch(run.run_id)
        self._book.end(run.run_id)


def _environ(process: Process) -> dict[str, str]:
    """Return a process's environment; {} where it may not be read. Nothing of it is kept."""
    data = (process.read("environ") or b"").decode("utf-8", "replace")
    return dict(line.split("=", 1) for line in data.split("\0") if "=" in line)
