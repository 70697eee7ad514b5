"""Telling the sampler: phases go to the process that holds the database, if there is one."""

from __future__ import annotations

import os
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from memplan.errors import MemplanError
from memplan.types import Phase

if TYPE_CHECKING:
    from memplan.store.remote import RemoteWriter

__all__ = ["report", "run_id"]

_TIMEOUT_S = 2.0
"""Seconds that a program waits for an answer; who is silent so long is not asked again."""

_WAITING = 200
"""Phases that are kept while nobody answers; the oldest go first."""


class _Link:
    """The connection of this process; a forked child makes its own."""

    def __init__(self) -> None:
        self._pid = 0
        self._start()

    def _start(self) -> None:
        self._writer: RemoteWriter | None = None
        self._waiting: deque[Phase] = deque(maxlen=_WAITING)
        self._warned = self._given_up = False

    def send(self, phase: Phase, path: str) -> None:
        """Send a phase and those that wait; a sampler that changed hands is looked for again.

        The first failure is told on standard error. None is raised.
        """
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._start()
        if self._given_up:
            return
        self._waiting.append(phase)
        error = self._try(path)
        if error is not None:  # the connection may have broken since the last phase
            error = self._try(path)
        if error is None:
            return
        self._given_up = isinstance(error.__cause__, TimeoutError)
        if not self._warned:
            self._warned = True
            print(f"memplan: phases are not recorded: {error}", file=sys.stderr)  # noqa: T201

    def _try(self, path: str) -> MemplanError | None:
        from memplan.store.remote import RemoteWriter

        try:
            if self._writer is None:
                self._writer = RemoteWriter(Path(path), timeout_s=_TIMEOUT_S)
            self._writer.save_phases(tuple(self._waiting))
        except MemplanError as error:
            self._writer = None
            return error
        self._waiting.clear()
        return None


_link = _Link()


def run_id() -> str:
    """Return the run that this process belongs to, "" outside of `memplan run`."""
    return os.environ.get("MEMPLAN_RUN", "")


def report(phase: Phase) -> None:
    """Send a phase to the sampler. Without one nothing happens; a failure never raises."""
    path = os.environ.get("MEMPLAN_SOCKET")
    if path and phase.run_id:
        _link.send(phase, path)
