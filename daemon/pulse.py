"""Who of all watched processes has other memory than a tick ago: one look at each, all in a row."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from operator import eq

from memplan_daemon.proc import Process

__all__ = ["Pulse"]

_STATM_BYTES = 256

Runs = Mapping[str, Mapping[int, Process]]
"""Run -> its processes by id: another mapping as soon as anything in it is another."""


class Pulse:
    """Reads the statm file of each process, which is what the kernel makes in the least time.

    While it says the same, so does all that a process's status file says of memory, but for marks
    and swap.
    """

    def __init__(self) -> None:
        """Begin with nobody."""
        self.moved: dict[str, list[Process]] = {}
        """Run -> who said something else in the last `read` than in the one before, was not there
        before, or says nothing."""
        self.faint: list[tuple[str, int]] = []
        """(run, process id) of those without memory: they have ended, or are about to."""
        self._runs: Runs = {}
        self._owners: list[str] = []
        self._processes: list[Process] = []
        self._descriptors: list[int] | None = None
        self._said: Sequence[bytes | None] = ()

    def read(self, runs: Runs) -> None:
        """Look at every process of these runs."""
        if not self._are(runs):
            self._take(runs)
        before, now = self._said, self._look()
        self._said = now
        if now == before and not self.faint and None not in now:
            self.moved = {}
            return
        self.moved, self.faint = {}, []
        for i, same in enumerate(map(eq, now, before)):
            said = now[i]
            if said is not None and same and not said.startswith(b"0 "):
                continue
            run_id, process = self._owners[i], self._processes[i]
            if said is None or not same:
                self.moved.setdefault(run_id, []).append(process)
            if said is None or said.startswith(b"0 "):
                self.faint.append((run_id, process.pid))

    def _are(self, runs: Runs) -> bool:
        """Tell whether these are the runs of the last time, with the same processes."""
        known = self._runs
        return len(runs) == len(known) and all(known.get(run) is runs[run] for run in runs)

    def _take(self, runs: Runs) -> None:
        """Look at these from now on; what was said before is remembered."""
        said = dict(zip(self._processes, self._said, strict=True))
        self._runs = dict(runs)
        self._owners = [run_id for run_id, members in runs.items() for _ in members]
        self._processes = [p for members in runs.values() for p in members.values()]
        self._said = [said.get(process) for process in self._processes]
        self._descriptors = None
        with contextlib.suppress(OSError):  # one is gone
            kept = [process.keep("statm") for process in self._processes]
            if None not in kept:
                self._descriptors = kept  # type: ignore[assignment]

    def _look(self) -> list[bytes | None]:
        if self._descriptors is not None:
            with contextlib.suppress(OSError):  # one is gone
                return [os.pread(one, _STATM_BYTES, 0) or None for one in self._descriptors]
        return [process.statm() for process in self._processes]
