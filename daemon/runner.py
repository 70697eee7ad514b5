"""Running a command as a child and sampling its process tree until it ends.

Whatever happens to the store, the child is left alone: what cannot be stored ends as a warning.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from memplan_daemon.agents import AgentServer
from memplan_daemon.clock import NS, SystemClock
from memplan_daemon.collectors import default_collectors
from memplan_daemon.loop import Loop
from memplan_daemon.redact import redacted
from memplan_daemon.runbook import RunBook
from memplan_daemon.sampler import Paces, Sampler
from memplan_daemon.server import Server
from memplan_daemon.service import Service
from memplan_daemon.spawn import Child, Ended, SpawnError, held_signals

import memplan
from memplan import __version__
from memplan.errors import DaemonError, MemplanError, StoreError
from memplan.store.base import Writer
from memplan.store.open import open_writer
from memplan.store.remote import RemoteWriter, socket_path
from memplan.types import FrozenMap, Plan, Run, Sample, Series
from memplan.wire import agent_path

__all__ = ["Outcome", "run_command"]

_INJECT = Path(memplan.__file__).parent / "measure" / "inject"
"""A folder for PYTHONPATH whose sitecustomize attaches the agent."""

LONGEST_WAIT_S = 0.05
"""A signal waits no longer than this until it is passed on."""

RETRY_S = 1.0
"""Seconds between tries to open the database again after its holder has gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a command."""

    run: Run
    """The run, ended."""
    warnings: tuple[str, ...]
    """What could not be stored, in sentences."""


def run_command(
    command: Sequence[str],
    *,
    database: str,
    interval_s: float,
    host_interval_s: float = 1.0,
    plan: Plan | None = None,
    save_plan: bool = False,
    agent_interval_s: float | None = None,
) -> Outcome:
    """Run a command, sample its tree, store the run.

    The command gets our standard streams, and MEMPLAN_DATABASE, MEMPLAN_RUN and MEMPLAN_SOCKET in
    its environment, so that `memplan.measure` inside it can report phases. Where a daemon runs,
    samples go through it; otherwise this process holds the database and listens meanwhile.

    Args:
        command: program and arguments.
        database: the database's file, or a PostgreSQL URL.
        interval_s: seconds between samples of the tree.
        host_interval_s: seconds between samples of the host, where no daemon takes them.
        plan: what the run is held against.
        save_plan: store the plan first (it came from a file).
        agent_interval_s: attach the agent to the command's Python programs, with so many seconds
            between two readings; None = they attach it themselves, or not.

    Raises SpawnError when the command cannot be started, StoreError when the database cannot be
    opened at the start, and UsageError for an interval that makes no sense.
    """
    from memplan.store.writer import new_id

    if "://" not in database:
        database = str(Path(database).expanduser().absolute())
    with open_writer(database) as writer:
        if plan is not None and save_plan:
            plan = writer.save_plan(plan)
        run = Run(
            id=new_id("r"),
            plan_id=plan.id if plan is not None else None,
            command=redacted(command),
            host=platform.node(),
            pid=None,
            started_ns=SystemClock().wall_ns(),
            versions=FrozenMap({"memplan": __version__, "linux": platform.release()}),
        )
        watched = _Watched(
            run=run,
            command=tuple(command),
            writer=writer,
            database=database,
            interval_s=interval_s,
            host_interval_s=host_interval_s,
        )
        watched.agent_interval_s = agent_interval_s
        try:
            return watched.carry_out()
        finally:
            watched.close()


class _Watched:
    """One run on its way."""

    def __init__(
        self,
        *,
        run: Run,
        command: tuple[str, ...],
        writer: Writer,
        database: str,
        interval_s: float,
        host_interval_s: float,
    ) -> None:
        self.agent_interval_s: float | None = None
        self._run = run
        self._command = command
        self._database = database
        self._clock = SystemClock()
        self._collectors = default_collectors(self._clock)
        remote = isinstance(writer, RemoteWriter)
        self._sampler = Sampler(
            clock=self._clock,
            collectors=self._collectors.all,
            writer=writer,
            interval_s=interval_s,
            host_interval_s=None if remote else host_interval_s,
            paces=Paces(medium_s=1.0, still_s=1.0),
        )
        self._loop = Loop(self._sampler)
        self._opened: Writer | None = None
        self._server: Server | None = None
        self._agents: AgentServer | None = None
        self._warnings: list[str] = []
        self._retry_ns = 0
        if not remote:
            self._listen()

    def carry_out(self) -> Outcome:
        """Start the command, sample until it ends, store how it ended."""
        self._sampler.writer.save_run(self._run)
        with held_signals() as mask:
            try:
                child = Child(self._command, environment=self._environment(), mask=mask)
            except SpawnError as error:
                self._finish(Ended(exit_code=error.exit_code, hwm_bytes=None))
                raise
            try:
                ended = self._wait(child)
            finally:
                child.close()
        self._finish(ended)
        return Outcome(run=self._run, warnings=tuple(self._warnings))

    def close(self) -> None:
        """Give everything back."""
        for server in (self._server, self._agents):
            if server is not None:
                server.close()
        self._loop.close()
        self._collectors.close()
        if self._opened is not None:
            self._opened.close()

    def _environment(self) -> dict[str, str]:
        agent = {}
        if self.agent_interval_s is not None:
            places = [str(_INJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
            agent = {
                "PYTHONPATH": os.pathsep.join(places),
                "MEMPLAN_AGENT": str(self.agent_interval_s),
            }
        return {
            **os.environ,
            **agent,
            "MEMPLAN_DATABASE": self._database,
            "MEMPLAN_RUN": self._run.id,
            "MEMPLAN_SOCKET": str(socket_path(self._database)),
        }

    def _wait(self, child: Child) -> Ended:
        self._run = replace(self._run, pid=child.pid)
        self._save("the run's process id")
        try:
            self._sampler.watch(child.pid, self._run.id)
        except DaemonError:  # it has ended already
            return _await_end(child)
        if child.exited is not None:
            self._loop.add(child.exited, self._loop.stop)
        while (ended := child.poll()) is None:
            self._loop.round(LONGEST_WAIT_S)
            child.pass_signals()
            if self._sampler.store_gone:
                self._reopen()
        return ended

    def _finish(self, ended: Ended) -> None:
        """Store the last samples and how it ended; collect what went wrong."""
        self._sampler.offer(self._last_mark(ended))
        if self._sampler.store_gone:
            self._retry_ns = 0
            self._reopen()
            self._sampler.offer([])
        problem = self._sampler.store_error
        self._sampler.close()
        self._run = replace(
            self._run,
            ended_ns=max(self._clock.wall_ns(), self._run.started_ns),
            exit_code=ended.exit_code,
            status="finished" if ended.exit_code == 0 else "failed",
        )
        self._save("how the run ended")
        dropped = self._sampler.counts.samples_dropped
        if dropped:
            self._warnings.append(f"{dropped} samples could not be stored: {problem}")

    def _last_mark(self, ended: Ended) -> list[Sample]:
        """Return the kernel's own mark of the child, where it is above all that was sampled."""
        sampled = self._collectors.process.tree_hwm(self._run.id)
        if ended.hwm_bytes is None or ended.hwm_bytes <= sampled:
            return []
        series = Series(run_id=self._run.id, entity="tree", metric="hwm_bytes")
        return [Sample(series=series, t_ns=self._clock.wall_ns(), value=ended.hwm_bytes)]

    def _save(self, what: str) -> None:
        try:
            self._sampler.writer.save_run(self._run)
        except (StoreError, DaemonError) as error:
            self._warnings.append(f"{what} could not be stored: {error}")

    def _listen(self) -> None:
        """Answer for the database while we hold it: the command's own reports, other runs."""
        service = Service(
            writer=self._sampler.writer,
            sampler=self._sampler,
            clock=self._clock,
            database=self._database,
            kind="run",
            stop=self._loop.stop,
        )
        try:
            self._server = Server(
                path=socket_path(self._database),
                service=service,
                loop=self._loop,
                clock=self._clock,
            )
            self._agents = AgentServer(
                path=agent_path(socket_path(self._database)),
                loop=self._loop,
                clock=self._clock,
                sampler=self._sampler,
                book=RunBook(self._sampler.writer, self._clock),
                open_runs=False,
            )
        except DaemonError as error:
            self._warnings.append(f"the command cannot report phases: {error}")

    def _reopen(self) -> None:
        """Take the database over, or find its new holder, after the old one has gone."""
        now = self._clock.monotonic_ns()
        if now < self._retry_ns:
            return
        self._retry_ns = now + round(RETRY_S * NS)
        try:
            writer = open_writer(self._database, patience_s=0)
            writer.save_run(self._run)  # a new holder takes a run without its sampler for lost
        except MemplanError:
            return
        if self._opened is not None:
            self._opened.close()
        self._opened = self._sampler.writer = writer
        if not isinstance(writer, RemoteWriter) and self._server is None:
            self._listen()


def _await_end(child: Child) -> Ended:
    while (ended := child.poll()) is None:
        if child.exited is not None:
            os.waitid(os.P_PIDFD, child.exited, os.WEXITED | os.WNOWAIT)
    return ended
