"""The socket for agents inside programs: packets in, samples of the sampler out."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from memplan_daemon.access import Door, Limits, Peer, bind, peer_of, remove_if_ours
from memplan_daemon.clock import Clock
from memplan_daemon.collectors.base import Event, Reading
from memplan_daemon.loop import Loop
from memplan_daemon.proc import ProcFolder
from memplan_daemon.runbook import RunBook
from memplan_daemon.sampler import Sampler

from memplan.errors import DaemonError
from memplan.wire import MAX_PACKET_BYTES, decode

__all__ = ["AgentServer"]

_log = logging.getLogger("memplan.daemon")

MOST_AGENTS = 1024
PACKETS_PER_ROUND = 64
"""Packets of one agent that are taken before the others have their turn."""

MOST_PACKETS_PER_TICK = 400
"""Packets of one agent between two ticks; what is more is dropped and counted."""

MOST_VALUES = 256
"""Numbers in one packet."""

_ABOUT: tuple[str, ...] = ("rank", "available", "python")
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_LARGEST = 2**63 - 1


@dataclass(slots=True, eq=False)
class _Agent:
    """One connection."""

    socket: socket.socket
    peer: Peer
    run_id: str | None = None
    ours: bool = False
    about: dict[str, Any] = field(default_factory=dict)
    packets: int = 0
    dropped: int = 0
    late_ns: int = 0
    tick: int = -1
    in_tick: int = 0


class AgentServer:
    """Takes packets from agents. Nothing that an agent sends can harm others or the sampling.

    An agent that names a run (it was started by `memplan run`) is put there if the run's processes
    are its owner's; for another one a run is opened, one for all ranks of a job. Who it is, the
    kernel says: the process id is ours also for an agent in a container.
    """

    def __init__(
        self,
        *,
        path: Path,
        loop: Loop,
        clock: Clock,
        sampler: Sampler,
        book: RunBook,
        gid: int | None = None,
        open_runs: bool = True,
        proc: ProcFolder | None = None,
    ) -> None:
        """Begin to listen.

        Args:
            path: where.
            loop: waits.
            clock: time stamps, where an agent's own makes no sense.
            sampler: takes the samples.
            book: opens runs for agents that have none.
            gid: group whose members may connect, besides the owner.
            open_runs: False for a `memplan run`, which has its own run only.
            proc: the /proc to read.

        Raises DaemonError when nothing can listen there.
        """
        self._path = path
        self._loop = loop
        self._clock = clock
        self._sampler = sampler
        self._book = book
        self._gid = gid
        self._open_runs = open_runs
        self._proc = proc or ProcFolder()
        self._limits = Limits(MOST_AGENTS, MOST_AGENTS)
        self._agents: set[_Agent] = set()
        self._jobs: dict[str, str] = {}
        self._speakers: dict[tuple[str, str], _Agent] = {}
        self._complained = False
        self._listener = bind(path, socket.SOCK_SEQPACKET, gid)
        self._inode = path.lstat().st_ino
        self._door = Door(self._listener, loop=loop, clock=clock, enter=self._accept)

    def close(self) -> None:
        """Close every connection, stop to listen, remove the socket."""
        for agent in list(self._agents):
            self._drop(agent)
        self._door.close()
        remove_if_ours(self._path, self._inode)

    def describe(self) -> list[dict[str, Any]]:
        """Return who is connected, and which counters each has."""
        return [
            {
                "pid": agent.peer.pid,
                "uid": agent.peer.uid,
                "run": agent.run_id,
                "packets": agent.packets,
                "dropped": agent.dropped,
                "late_ns": agent.late_ns,
                **agent.about,
            }
            for agent in sorted(self._agents, key=lambda agent: agent.peer.pid)
        ]

    def _accept(self, connection: socket.socket) -> None:
        peer = peer_of(connection)
        allowed = peer.is_owner or self._gid is not None
        if not allowed or not self._limits.enter(peer.uid):
            connection.close()
            return
        connection.setblocking(False)  # noqa: FBT003 - the socket module's own signature
        agent = _Agent(connection, peer)
        self._agents.add(agent)
        self._loop.add(connection, partial(self._read, agent))

    def _drop(self, agent: _Agent) -> None:
        self._agents.discard(agent)
        self._speakers = {key: who for key, who in self._speakers.items() if who is not agent}
        self._limits.leave(agent.peer.uid)
        self._loop.remove(agent.socket)
        agent.socket.close()
        if agent.run_id is not None:
            self._sampler.quiet.discard(agent.run_id)
        if agent.ours and not any(other.run_id == agent.run_id for other in self._agents):
            self._end(agent.run_id or "")

    def _end(self, run_id: str) -> None:
        self._jobs = {job: run for job, run in self._jobs.items() if run != run_id}
        self._sampler.unwatch(run_id)
        self._book.end(run_id)

    def _read(self, agent: _Agent) -> None:
        for _ in range(PACKETS_PER_ROUND):
            try:
                data = agent.socket.recv(MAX_PACKET_BYTES + 1)
            except BlockingIOError:
                return
            except (OSError, MemoryError):
                data = b""
            if not data:
                self._drop(agent)
                return
            try:
                self._take(agent, data)
            except DaemonError as error:
                self._complain(agent, error)
                self._drop(agent)
                return

    def _complain(self, agent: _Agent, error: DaemonError) -> None:
        """Say once what is wrong: a program in a loop must not fill the log."""
        level = logging.DEBUG if self._complained else logging.WARNING
        _log.log(level, "the agent in process %d is cut off: %s", agent.peer.pid, error)
        self._complained = True

    def _take(self, agent: _Agent, data: bytes) -> None:
        if len(data) > MAX_PACKET_BYTES:
            raise DaemonError(f"a packet is larger than {MAX_PACKET_BYTES} bytes")
        agent.packets += 1
        if not self._within_rate(agent):
            return
        body = decode(data)
        if body["kind"] == "hello":
            self._hello(agent, body)
            return
        if agent.run_id is None:
            raise DaemonError("the hello is missing")
        takes: dict[str, Callable[[_Agent, dict[str, Any]], None]] = {
            "sample": self._sample,
            "workload": self._workload,
            "event": self._event,
            "quiet": self._quiet,
        }
        takes[body["kind"]](agent, body)

    def _within_rate(self, agent: _Agent) -> bool:
        """Drop what one agent sends beyond a bound per tick: the samples would fill the memory."""
        tick = self._sampler.counts.ticks
        if agent.tick != tick:
            agent.tick, agent.in_tick = tick, 0
        agent.in_tick += 1
        agent.dropped += agent.in_tick > MOST_PACKETS_PER_TICK
        return agent.in_tick <= MOST_PACKETS_PER_TICK

    def _hello(self, agent: _Agent, body: dict[str, Any]) -> None:
        known = {key: body[key] for key in _ABOUT if key in body}
        agent.about = known if len(json.dumps(known)) < 4096 else {}
        run, job = body.get("run"), body.get("job")
        if isinstance(run, str) and run in self._sampler.watched:
            owner = self._sampler.owner(run)
            if not agent.peer.is_owner and owner != agent.peer.uid:
                raise DaemonError(f"run {run} belongs to another user")
            agent.run_id = run
        elif isinstance(run, str) and run and agent.peer.is_owner:
            agent.run_id = run  # a `memplan run` samples it and lets us store
        else:
            agent.run_id = self._own_run(agent, job)
            agent.ours = agent.run_id in self._jobs.values()
        with contextlib.suppress(OSError):
            agent.socket.send(json.dumps({"run": agent.run_id}).encode())

    def _own_run(self, agent: _Agent, job: Any) -> str:
        """Return the run of an agent that has none: its job's, its parents', or a new one."""
        key = f"{agent.peer.uid} {job}" if isinstance(job, str) else f"pid {agent.peer.pid}"
        if key in self._jobs:
            self._sampler.join(agent.peer.pid, self._jobs[key])
            return self._jobs[key]
        if not self._open_runs:
            raise DaemonError("there is no daemon that could open a run")
        known = self._sampler.run_of(agent.peer.pid)
        if known is not None and self._sampler.owner(known) == agent.peer.uid:
            return known  # a worker: in a run of its own it would be counted twice
        process = self._proc.open(agent.peer.pid)
        if process is None:
            raise DaemonError(f"process {agent.peer.pid} cannot be seen from here")
        about = {"job": job} if isinstance(job, str) else {}
        run_id = self._book.begin(process, agent="attached", **about)
        process.close()
        try:
            self._sampler.watch(agent.peer.pid, run_id)
        except DaemonError:  # it ended meanwhile
            self._book.end(run_id)
            raise
        self._jobs[key] = run_id
        return run_id

    def _sample(self, agent: _Agent, body: dict[str, Any]) -> None:
        agent.late_ns = max(agent.late_ns, _whole(body.get("late_ns", 0)))
        values = body.get("values")
        if not isinstance(values, dict):
            raise DaemonError("values is no object")
        found = []
        for place, numbers in values.items():
            entity = self._entity(agent, place)
            found += [Reading(entity, metric, value) for metric, value in _numbers(numbers)]
        if "peak_resets" in body:
            resets = _whole(body["peak_resets"])
            found.append(Reading(f"process:{agent.peer.pid}", "peak_resets_count", resets))
        self._store(agent, body, found)

    def _entity(self, agent: _Agent, place: str) -> str:
        """Return what a place is in the run: the first process on a device speaks for it."""
        if not _NAME.fullmatch(place):
            raise DaemonError("a place has no name")
        if place == "process":
            return f"process:{agent.peer.pid}"
        speaker = self._speakers.setdefault((agent.run_id or "", place), agent)
        return f"torch:{place}" if speaker is agent else f"process:{agent.peer.pid}/torch:{place}"

    def _workload(self, agent: _Agent, body: dict[str, Any]) -> None:
        numbers = _numbers(body.get("values"))
        self._store(agent, body, [Reading("workload", f"{name}_count", n) for name, n in numbers])

    def _store(self, agent: _Agent, body: dict[str, Any], readings: list[Reading]) -> None:
        if len(readings) > MOST_VALUES:
            raise DaemonError(f"a packet has more than {MOST_VALUES} numbers")
        self._sampler.add(agent.run_id, _whole(body.get("t_ns")), readings)

    def _event(self, agent: _Agent, body: dict[str, Any]) -> None:
        text, what = str(body.get("text"))[:200], str(body.get("what"))
        if not _NAME.fullmatch(what):
            raise DaemonError("an event has no name")
        event = Event(
            f"process:{agent.peer.pid}", f"agent.{what}", agent.peer.pid, text, _whole(body["t_ns"])
        )
        self._sampler.note(event, agent.run_id)

    def _quiet(self, agent: _Agent, body: dict[str, Any]) -> None:
        if agent.run_id is None:
            return
        if body.get("on") is True:
            self._sampler.quiet.add(agent.run_id)
        else:
            self._sampler.quiet.discard(agent.run_id)


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise DaemonError("a number is none, or out of range")
    return value


def _numbers(values: Any) -> Iterator[tuple[str, int]]:
    """Yield (name, number) of an object. Raises DaemonError for anything else."""
    if not isinstance(values, dict):
        raise DaemonError("values is no object")
    for name, value in values.items():
        if not _NAME.fullmatch(name):
            raise DaemonError("a number has no name")
        yield name, _whole(value)
