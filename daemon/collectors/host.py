"""The machine's memory: how much, how hard it is to get, and who was killed for it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from memplan_daemon.collectors.base import Event, Gap, HostOnly, Reading, Watch
from memplan_daemon.proc import ProcFolder

__all__ = ["HostCollector", "OomKills"]

_MEMORY = re.compile(rb"^(Mem|Swap)(Total|Free|Available):\s+(\d+) kB$", re.MULTILINE)
"""The lines of meminfo that are wanted: a tenth of it."""

_STALL = re.compile(rb"^(some|full) .*total=(\d+)", re.MULTILINE)
_KILLED = re.compile(
    rb"(?:Out of memory|Memory cgroup out of memory): Killed process (\d+) \((.*?)\)"
)
_MESSAGE_BYTES = 8192

_MOST_MESSAGES = 1000


class HostCollector(HostOnly):
    """Reads /proc/meminfo and pressure stall totals once per tick, OOM kills at the medium pace.

    used_bytes is total less available: what cannot be had without swapping. Page cache that can be
    dropped does not count as used. stall_some_microseconds and stall_full_microseconds are the
    kernel's totals since boot of the time in which some, or all, tasks waited for memory.
    """

    def __init__(self, proc: ProcFolder, kernel_log: Path = Path("/dev/kmsg")) -> None:
        """Remember where to look.

        Args:
            proc: the /proc to read.
            kernel_log: names the victims of OOM kills, where it may be read.
        """
        self._proc = proc
        self._kills = OomKills(kernel_log)

    def collect(self, watch: Watch) -> Iterable[Reading | Gap | Event]:
        """Return the host's readings; nothing for a run."""
        return [] if watch.run_id is not None else self._read(watch)

    def _read(self, watch: Watch) -> Iterator[Reading | Gap | Event]:
        yield from self._memory()
        yield from self._pressure()
        if "medium" in watch.due and (count := self._oom_count()) is not None:
            yield Reading("host", "oom_kill_count", count)
            yield from self._kills.news(count)

    def _memory(self) -> Iterator[Reading | Gap]:
        data = self._proc.read("meminfo")
        if data is None:
            yield Gap("host", "total_bytes", "no-permission")
            return
        fields = {kind + what: int(kib) * 1024 for kind, what, kib in _MEMORY.findall(data)}
        total, available = fields.get(b"MemTotal"), fields.get(b"MemAvailable")
        values = {
            "total_bytes": total,
            "available_bytes": available,
            "free_bytes": fields.get(b"MemFree"),
            "used_bytes": _difference(total, available),
            "swap_bytes": _difference(fields.get(b"SwapTotal"), fields.get(b"SwapFree")),
        }
        for metric, value in values.items():
            if value is not None:
                yield Reading("host", metric, value)

    def _pressure(self) -> Iterator[Reading | Gap]:
        data = self._proc.read("pressure/memory")
        if data is None:  # a kernel without PSI
            yield Gap("host", "stall_some_microseconds", "not-supported")
            return
        for kind, total in _STALL.findall(data):
            yield Reading("host", f"stall_{kind.decode()}_microseconds", int(total))

    def _oom_count(self) -> int | None:
        _, found, rest = (self._proc.read("vmstat") or b"").partition(b"\noom_kill ")
        return int(rest.split(None, 1)[0]) if found else None


class OomKills:
    """Turns the kernel's count of OOM kills into events that name the victims.

    The count is always readable and is never wrong; names come from the kernel's log, which needs
    a privilege. Without it an event says how many were killed.
    """

    def __init__(self, path: Path) -> None:
        """Remember the log; it is opened at the first news."""
        self._path = path
        self._count: int | None = None
        self._log: int | None = None

    def news(self, count: int) -> Iterator[Event]:
        """Yield the kills since the last call.

        Args:
            count: the kernel's count now.
        """
        if self._count is None:
            self._open()
        before, self._count = self._count, count
        victims = list(self._victims()) if before is not None and count > before else []
        for pid, name in victims:
            yield Event("host", "host.oom_kill", pid, f"the kernel killed process {pid} ({name})")
        if before is not None and count - before > len(victims):
            unnamed = count - before - len(victims)
            yield Event(
                "host", "host.oom_kill", 0, f"the kernel killed {unnamed} for want of memory"
            )

    def _open(self) -> None:
        try:
            self._log = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._log, 0, os.SEEK_END)
        except OSError:
            pass

    def _victims(self) -> Iterator[tuple[int, str]]:
        if self._log is None:
            return
        for _ in range(_MOST_MESSAGES):
            try:
                message = os.read(self._log, _MESSAGE_BYTES)
            except BrokenPipeError:  # the log has moved on: the rest is still there
                continue
            except OSError:
                return
            if not message:
                return
            for pid, name in _KILLED.findall(message):
                yield int(pid), name.decode("utf-8", "replace")


def _difference(total: int | None, rest: int | None) -> int | None:
    return None if total is None or rest is None else total - rest
