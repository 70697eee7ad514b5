"""What a request over the socket does: names of operations, and their arguments checked."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from memplan_daemon.access import Peer, visible
from memplan_daemon.agents import AgentServer
from memplan_daemon.clock import Clock
from memplan_daemon.collectors.gpu import GpuCollector
from memplan_daemon.proc import ProcFolder
from memplan_daemon.sampler import Sampler
from memplan_daemon.shipping import Shipping
from memplan_daemon.watching import Watches, parse_rule

from memplan import __version__
from memplan.errors import DaemonError, MemplanError
from memplan.serialize import from_dict, to_dict
from memplan.store.base import Writer
from memplan.types import Device, Event, Phase, Plan, Run, Sample, Series

__all__ = ["Kind", "Parts", "Service", "Session"]

_log = logging.getLogger("memplan.daemon")

Kind = Literal["daemon", "run"]
"""Who listens: the background daemon, or a `memplan run` that holds the database meanwhile."""

Arguments = dict[str, Any]

_SMALLEST, _LARGEST = -(2**63), 2**63 - 1

_START = "memplan daemon start"

_FOR_ALL = ("ping", "status", "snapshot")
"""Operations for members of the socket's group; all others are the owner's, and root's."""


class Session:
    """What one connection has open: its runs that are still going."""

    def __init__(self, peer: Peer | None = None) -> None:
        """Begin with nothing.

        Args:
            peer: who is at the other end; the daemon's own user, if not said.
        """
        self.peer = peer or Peer(pid=os.getpid(), uid=os.geteuid())
        """Who is at the other end."""
        self.running: dict[str, Run] = {}


@dataclass(slots=True, kw_only=True)
class Parts:
    """What a daemon has and a `memplan run` has not."""

    watches: Watches | None = None
    """The rules."""
    agents: AgentServer | None = None
    """The agents' socket."""
    gpus: tuple[GpuCollector, ...] = ()
    """The GPUs."""
    reload: Callable[[], None] | None = None
    """Reads the settings again."""
    shipping: Shipping | None = None
    """Copies to a fleet's database."""


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
        parts: Parts | None = None,
        proc: ProcFolder | None = None,
    ) -> None:
        """Set up.

        Args:
            writer: the only one that writes to the database.
            sampler: does the watching.
            clock: time stamps.
            database: the database's place, to tell it in `status`.
            kind: who listens.
            stop: ends the daemon.
            parts: what only a daemon has; may be filled later.
            proc: the /proc to read.
        """
        self.parts = parts or Parts()
        """What only a daemon has."""
        self._proc = proc or ProcFolder()
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
            "delete_run": self._delete_run,
            "save_phases": self._save_phases,
            "save_devices": self._save_devices,
            "save_events": self._save_events,
            "write_samples": self._write_samples,
            "watch": self._watch,
            "unwatch": self._unwatch,
            "stop": self._stop_daemon,
            "snapshot": self._snapshot,
            "watch_add": self._watch_add,
            "watch_list": self._watch_list,
            "watch_remove": self._watch_remove,
            "reload": self._reload,
        }

    def handle(self, body: Any, session: Session) -> Any:
        """Carry one request out and return its result.

        Raises MemplanError for a request that makes no sense and for what the store reports.
        """
        operation = body.get("op") if isinstance(body, dict) else None
        if not isinstance(operation, str) or operation not in self._operations:
            raise DaemonError(f"there is no operation {operation!r}")
        if operation not in _FOR_ALL and not session.peer.is_owner:
            raise DaemonError(f"{operation} is for the owner of this daemon only")
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
        sampler, counts, parts = self._sampler, self._sampler.counts, self.parts
        sampler.update_counts()
        budget = sampler.budget
        found = {
            **self._ping(arguments, session),
            "since_ns": self._since_ns,
            "interval_s": sampler.interval_s,
            "ticks": counts.ticks,
            "late_ticks": counts.late_ticks,
            "lateness_ns": counts.lateness_ns,
            "samples_written": counts.samples_written,
            "samples_waiting": counts.samples_waiting,
            "samples_dropped": sampler.dropped,
            "cpu_share": budget.share if budget is not None else None,
            "stretch": budget.stretch if budget is not None else 1.0,
            "store_error": sampler.store_error,
            "gpus": {uuid: state for gpu in parts.gpus for uuid, state in gpu.states.items()},
            "gpu_problem": next((gpu.problem for gpu in parts.gpus if gpu.problem), ""),
            "probe_restarts": sum(gpu.probe.restarts for gpu in parts.gpus),
        }
        if not session.peer.is_owner:
            return {**found, "database": "", "watching": {}}
        return {
            **found,
            "database": self._database,
            "watching": sampler.watched,
            "watches": parts.watches.rules if parts.watches is not None else {},
            "agents": parts.agents.describe() if parts.agents is not None else [],
            "fleet": parts.shipping.describe() if parts.shipping is not None else {},
            "events": [
                {
                    "t_ns": t,
                    "run": run,
                    "entity": e.entity,
                    "kind": e.kind,
                    "code": e.code,
                    "text": e.text,
                }
                for t, run, e in sampler.events.recent
            ],
        }

    def _snapshot(self, arguments: Arguments, session: Session) -> dict[str, Any]:
        del arguments
        return visible(self._sampler.board.snapshot(), session.peer)

    def _watch_add(self, arguments: Arguments, session: Session) -> list[str]:
        del session
        rule = parse_rule(_text(arguments, "rule"))
        watches = self._watches()
        watches.add(rule)
        return list(watches.rules)

    def _watch_list(self, arguments: Arguments, session: Session) -> dict[str, list[str]]:
        del arguments, session
        return self._watches().rules

    def _watch_remove(self, arguments: Arguments, session: Session) -> None:
        del session
        self._watches().remove(_text(arguments, "rule"))

    def _watches(self) -> Watches:
        if self.parts.watches is None:
            raise DaemonError("a `memplan run` watches its own command only", hint=_START)
        return self.parts.watches

    def _reload(self, arguments: Arguments, session: Session) -> None:
        del arguments, session
        if self.parts.reload is None:
            raise DaemonError("a `memplan run` has nothing to reload", hint=_START)
        self.parts.reload()

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

    def _delete_run(self, arguments: Arguments, session: Session) -> bool:
        """Delete one part of a run, some 30 ms long: whoever asked comes again for the rest."""
        del session
        return self._writer.delete_run(_text(arguments, "run_id"))

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
        pid, run_id = arguments.get("pid"), _text(arguments, "run_id")
        if not isinstance(pid, int) or isinstance(pid, bool) or not 0 < pid < 2**31:
            raise DaemonError(f"{pid!r} is not a process id")
        self._check_owner(pid, session.peer)
        self._sampler.watch(pid, run_id)

    def _check_owner(self, pid: int, peer: Peer) -> None:
        """Refuse to watch a process for somebody else than its owner."""
        process = self._proc.open(pid)
        if process is None or peer.uid == 0:
            return  # `watch` itself says that there is none; root may watch all
        try:
            process.identify()
            if process.uid != peer.uid:
                raise DaemonError(f"process {pid} belongs to another user")
        finally:
            process.close()

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
