"""Who of all watched processes has other memory than a tick ago: one look at each, all in a row."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from operator import eq

from memplan_daemon.proc import Process, has_memory

__all__ = ["REST_TICKS", "Pulse"]

_STATM_BYTES = 256

REST_TICKS = 60
"""Ticks without a move after which a process is looked at in every other tick, until it moves."""

_LINE_UP_TICKS = 20
"""Ticks after which it is looked up who rests by now."""

Runs = Mapping[str, Mapping[int, Process]]
"""Run -> its processes by id: another mapping as soon as anything in it is another."""


_Seen = tuple[str, Process, bool, bool]
"""(run, process, has it moved, has it no memory)."""


class Pulse:
    """Reads the statm file of each process, which is what the kernel makes in the least time.

    While it says the same, so does all that a process's status file says of memory, but for marks
    and swap. Most processes of a large run (loaders, helpers, who waits for work) do not move for
    hours: they take turns.
    """

    def __init__(self) -> None:
        """Begin with nobody."""
        self.moved: dict[str, list[Process]] = {}
        """Run -> who says something else in the last `read` than before, was not there before, or
        says nothing."""
        self.faint: list[tuple[str, int]] = []
        """(run, process id) of those without memory: they have ended, or are about to."""
        self._runs: Runs = {}
        self._tick = 0
        self._woken = False
        self._moved_at: dict[Process, int] = {}
        self._rows = [_Row([], {}) for _ in range(3)]  # awake, resting, resting

    def read(self, runs: Runs) -> None:
        """Look at the processes of these runs: at all that moved lately, and half of the others."""
        if self._woken or not self._are(runs) or self._tick % _LINE_UP_TICKS == 0:
            self._line_up(runs)
        self._tick += 1
        self.moved, self.faint = {}, []
        awake, *resting = self._rows
        for row in (awake, resting[self._tick % 2]):
            for run_id, process in self._take(row.look()):
                self.moved.setdefault(run_id, []).append(process)

    def late(self, run_id: str) -> list[Process]:
        """Look at those of a run whose turn it was not in this tick; return who of them moved."""
        row = self._rows[2 - self._tick % 2]
        return [process for _, process in self._take(row.look(run_id))]

    def _take(self, seen: Iterable[_Seen]) -> Iterator[tuple[str, Process]]:
        """Yield who has moved of those that were looked at."""
        for run_id, process, moved, faint in seen:
            if faint:
                self.faint.append((run_id, process.pid))
            if moved:
                self._woken |= self._tick - self._moved_at[process] > REST_TICKS
                self._moved_at[process] = self._tick
                yield run_id, process

    def _are(self, runs: Runs) -> bool:
        """Tell whether these are the runs of the last time, with the same processes."""
        known = self._runs
        return len(runs) == len(known) and all(known.get(run) is runs[run] for run in runs)

    def _line_up(self, runs: Runs) -> None:
        """Put everybody into a row: who moved lately, and in turns who did not."""
        self._woken = False
        said = {process: one for row in self._rows for process, one in row.said()}
        last = self._moved_at
        self._runs, self._moved_at = dict(runs), {}
        rows: list[list[tuple[str, Process]]] = [[], [], []]
        for run_id, members in runs.items():
            for process in members.values():
                moved_at = self._moved_at[process] = last.get(process, self._tick)
                rests = self._tick - moved_at >= REST_TICKS
                rows[1 + process.pid % 2 if rests else 0].append((run_id, process))
        self._rows = [_Row(row, said) for row in rows]


class _Row:
    """Processes that are looked at in one go."""

    def __init__(
        self, those: list[tuple[str, Process]], said: Mapping[Process, bytes | None]
    ) -> None:
        self._those = those
        self._said = [said.get(process) for _, process in those]
        self._places: dict[str, tuple[int, int]] = {}
        for i, (run_id, _) in enumerate(those):  # those of a run stand side by side
            self._places[run_id] = self._places.get(run_id, (i, i))[0], i + 1
        self._any_faint = True
        self._descriptors: list[int] | None = None
        with contextlib.suppress(OSError):  # one is gone
            kept = [process.keep("statm") for _, process in those]
            if None not in kept:
                self._descriptors = kept  # type: ignore[assignment]

    def said(self) -> Iterator[tuple[Process, bytes | None]]:
        """Yield each process with what it said last."""
        for (_, process), said in zip(self._those, self._said, strict=True):
            yield process, said

    def look(self, run_id: str | None = None) -> list[_Seen]:
        """Look at all, or at those of one run; return those worth a thought."""
        begin, end = (0, len(self._those)) if run_id is None else self._places.get(run_id, (0, 0))
        before, now = self._said[begin:end], self._read(begin, end)
        if now == before and not self._any_faint:
            return []
        self._said[begin:end] = now
        seen = []
        any_faint = run_id is not None and self._any_faint  # of the others nothing new is known
        places = zip(self._those[begin:end], now, map(eq, now, before), strict=True)
        for (run, process), said, same in places:
            faint = not has_memory(said)
            if faint or not same:
                any_faint |= faint
                seen.append((run, process, said is None or not same, faint))
        self._any_faint = any_faint
        return seen

    def _read(self, begin: int, end: int) -> list[bytes | None]:
        if self._descriptors is not None:
            descriptors = self._descriptors[begin:end]
            with contextlib.suppress(OSError):  # one is gone
                return [os.pread(one, _STATM_BYTES, 0) or None for one in descriptors]
        return [process.statm() for _, process in self._those[begin:end]]
