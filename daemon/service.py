"""What a request over the socket does: names of operations, and their arguments checked."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from memplan_daemon.clock import Clock
from memplan_daemon.sampler import Sampler

from memplan import __version__
from memplan.errors import DaemonError, MemplanError
from memplan.serialize import from_dict, to_dict
from memplan.store.base import Writer
from memplan.types import Device, Event, Phase, Plan, Run, Sample, Series

__all__ = ["Kind", "Service", "Session"]

_log = logging.getLogger("memplan.daemon")

Kind = Literal["daemon", "run"]
"""Who listens: the background daemon, or a `memplan run` that holds the database meanwhile."""

Arguments = dict[str, Any]

_SMALLEST, _LARGEST = -(2**63), 2**63 - 1


class Session:
    """What one connection has open: its runs that are still going."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.running: dict[str, Run] = {}


class Service:
    """Carries requests out, each with one writer's method."""

    def __init__(
        self,
        *,
        writer: Writer,
        sampler: Sampler,
        clock: Clock,
        database: str,
        kind: Kind,
        stop: Callable[[], None],
    ) -> None:
        """Set up.

        Args:
            writer: the only one that writes to the database.
            sampler: does the watching.
            clock: time stamps.
            database: the database's place, to tell it in `status`.
            kind: who listens.
            stop: ends the daemon.
        """
        self._writer = writer
        self._sampler = sampler
        self._clock = clock
        self._database = database
        self._kind = kind
        self._stop = stop
        self._since_ns = clock.wall_ns()
        self._operations: dict[str, Callable[[Arguments, Session], Any]] = {
            "ping": self._ping,
            "status": self._status,
            "save_plan": self._save_plan,
            "save_run": self._save_run,
            "save_phases": self._save_phases,
            "save_devices": self._save_devices,
            "save_events": self._save_events,
            "write_samples": self._write_samples,
            "watch": self._watch,
            "unwatch": self._unwatch,
            "stop": self._stop_daemon,
        }

    def handle(self, body: Any, session: Session) -> Any:
        """Carry one request out and return its result.

        Raises MemplanError for a request that makes no sense and for what the store reports.
        """
        operation = body.get("op") if isinstance(body, dict) else None
        if not isinstance(operation, str) or operation not in self._operations:
            raise DaemonError(f"there is no operation {operation!r}")
        return self._operations[operation](body, session)

    def end(self, session: Session) -> None:
        """Mark the runs of a connection that broke as lost: whoever sampled them is gone."""
        for run in session.running.values():
            try:
                self._writer.save_run(replace(run, status="lost", ended_ns=self._clock.wall_ns()))
            except MemplanError as error:
                _log.warning("run %s could not be marked as lost: %s", run.id, error)
        session.running.clear()

    def _ping(self, arguments: Arguments, session: Session) -> dict[str, Any]:
        del arguments, session
        return {"pid": os.getpid(), "kind": self._kind, "version": __version__}

    def _status(self, arguments: Arguments, session: Session) -> dict[str, Any]:
        counts = self._sampler.counts
        return {
            **self._ping(arguments, session),
            "database": self._database,
            "since_ns": self._since_ns,
            "interval_s": self._sampler.interval_s,
            "ticks": counts.ticks,
            "late_ticks": counts.late_ticks,
            "samples_written": counts.samples_written,
            "samples_dropped": counts.samples_dropped,
            "watching": self._sampler.watched,
            "store_error": self._sampler.store_error,
        }

    def _save_plan(self, arguments: Arguments, session: Session) -> Any:
        del session
        return to_dict(self._writer.save_plan(from_dict(arguments.get("plan"), Plan)))

    def _save_run(self, arguments: Arguments, session: Session) -> None:
        run = from_dict(arguments.get("run"), Run)
        self._writer.save_run(run)
        if run.status == "running":
            session.running[run.id] = run
        else:
            session.running.pop(run.id, None)

    def _save_phases(self, arguments: Arguments, session: Session) -> None:
        del session
        self._writer.save_phases([from_dict(p, Phase) for p in _list(arguments, "phases")])

    def _save_devices(self, arguments: Arguments, session: Session) -> None:
        del session
        self._writer.save_devices([from_dict(d, Device) for d in _list(arguments, "devices")])

    def _save_events(self, arguments: Arguments, session: Session) -> None:
        del session
        self._writer.save_events([from_dict(e, Event) for e in _list(arguments, "events")])

    def _write_samples(self, arguments: Arguments, session: Session) -> None:
        del session
        self._writer.write_samples([_sample(row) for row in _list(arguments, "samples")])

    def _watch(self, arguments: Arguments, session: Session) -> None:
        del session
        pid, run_id = arguments.get("pid"), _text(arguments, "run_id")
        if not isinstance(pid, int) or isinstance(pid, bool) or not 0 < pid < 2**31:
            raise DaemonError(f"{pid!r} is not a process id")
        self._sampler.watch(pid, run_id)

    def _unwatch(self, arguments: Arguments, session: Session) -> None:
        del session
        self._sampler.unwatch(_text(arguments, "run_id"))

    def _stop_daemon(self, arguments: Arguments, session: Session) -> None:
        del arguments, session
        if self._kind != "daemon":
            raise DaemonError(
                f"process {os.getpid()} is no daemon but a `memplan run`",
                hint="it gives the database back when its command ends",
            )
        self._stop()


def _list(arguments: Arguments, name: str) -> list[Any]:
    value = arguments.get(name)
    if not isinstance(value, list):
        raise DaemonError(f"{name} is not a list")
    return value


def _text(arguments: Arguments, name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str) or not value:
        raise DaemonError(f"{name} is not a text")
    return value


def _sample(row: Any) -> Sample:
    """Return one sample from [run id or null, entity, metric, t_ns, value]."""
    if isinstance(row, list) and len(row) == 5:
        run_id, entity, metric, t_ns, value = row
        texts = (entity, metric) if run_id is None else (run_id, entity, metric)
        if all(isinstance(text, str) for text in texts) and _is_int64(t_ns) and _is_int64(value):
            series = Series(run_id=run_id, entity=entity, metric=metric)
            return Sample(series=series, t_ns=t_ns, value=value)
    raise DaemonError("a sample is not [run, entity, metric, time, value]")


def _is_int64(value: Any) -> bool:
    return type(value) is int and _SMALLEST <= value <= _LARGEST
