"""Telling the sampler: phases go to the process that holds the database, if there is one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from memplan.errors import MemplanError
from memplan.types import Phase

__all__ = ["report", "run_id"]

_TIMEOUT_S = 2.0
"""A program is never held up longer than this, and after one failure not at all."""


class _Link:
    """The connection of this process; a forked child makes its own."""

    def __init__(self) -> None:
        self._pid = 0
        self._writer: object | None = None
        self._silent = False

    def send(self, phase: Phase, path: str) -> None:
        """Send one phase; the first failure is told on standard error and is the last try."""
        if self._pid != os.getpid():
            self._pid, self._writer, self._silent = os.getpid(), None, False
        if self._silent:
            return
        from memplan.store.remote import RemoteWriter

        try:
            if not isinstance(self._writer, RemoteWriter):
                self._writer = RemoteWriter(Path(path), timeout_s=_TIMEOUT_S)
            self._writer.save_phases([phase])
        except MemplanError as error:
            self._silent = True
            print(f"memplan: phases are not recorded: {error}", file=sys.stderr)  # noqa: T201


_link = _Link()


def run_id() -> str:
    """Return the run that this process belongs to, "" outside of `memplan run`."""
    return os.environ.get("MEMPLAN_RUN", "")


def report(phase: Phase) -> None:
    """Send a phase to the sampler. Without one nothing happens; a failure never raises."""
    path = os.environ.get("MEMPLAN_SOCKET")
    if path and phase.run_id:
        _link.send(phase, path)
