"""Runs that the daemon opens by itself, for what it watches and for agents that come to it."""

from __future__ import annotations

import logging
import platform
from dataclasses import replace

from memplan_daemon.clock import Clock
from memplan_daemon.proc import Process
from memplan_daemon.redact import redacted

from memplan import __version__
from memplan.errors import MemplanError
from memplan.store.base import Writer
from memplan.types import FrozenMap, Run

__all__ = ["RunBook"]

_log = logging.getLogger("memplan.daemon")


class RunBook:
    """Opens and closes runs; one that the store refuses is offered again until it takes it."""

    def __init__(self, writer: Writer, clock: Clock, *, store_commands: bool = False) -> None:
        """Begin empty.

        Args:
            writer: where runs go.
            clock: time stamps.
            store_commands: keep whole command lines (without what looks like a secret); otherwise
                only the program's name.
        """
        self.store_commands = store_commands
        """Keep whole command lines."""
        self._writer = writer
        self._clock = clock
        self._open: dict[str, Run] = {}
        self._unsaved: dict[str, Run] = {}

    @property
    def open(self) -> tuple[str, ...]:
        """Ids of the runs that are going on."""
        return tuple(self._open)

    def begin(self, process: Process, **about: str) -> str:
        """Open a run and return its id.

        Args:
            process: its first process.
            about: kept with the run's versions: watch="name:python*", job="slurm:4711.0" ...
        """
        from memplan.store.writer import new_id

        run = Run(
            id=new_id("r"),
            plan_id=None,
            command=self._command(process),
            host=platform.node(),
            pid=process.pid,
            started_ns=self._clock.wall_ns(),
            versions=FrozenMap({"memplan": __version__, **about}),
        )
        self._open[run.id] = run
        self._save(run)
        return run.id

    def end(self, run_id: str, *, status: str = "finished") -> None:
        """Close a run; harmless when it is not open."""
        run = self._open.pop(run_id, None)
        if run is not None:
            ended = max(self._clock.wall_ns(), run.started_ns)
            self._save(replace(run, ended_ns=ended, status=status))  # type: ignore[arg-type]

    def retry(self) -> None:
        """Offer the store once more what it refused."""
        for run in list(self._unsaved.values()):
            self._save(run)

    def close(self) -> None:
        """Close every run: whoever sampled it ends before it does."""
        for run_id in list(self._open):
            self.end(run_id, status="lost")

    def _save(self, run: Run) -> None:
        try:
            self._writer.save_run(run)
        except MemplanError as error:
            if run.id not in self._unsaved:
                _log.warning("run %s could not be stored yet: %s", run.id, error)
            self._unsaved[run.id] = run
        else:
            self._unsaved.pop(run.id, None)

    def _command(self, process: Process) -> tuple[str, ...]:
        if self.store_commands and (data := process.read("cmdline")):
            words = data.decode("utf-8", "replace").rstrip("\0").split("\0")
            return redacted(words)
        name = (process.read("comm") or b"?").decode("utf-8", "replace").strip()
        return (name or "?",)
