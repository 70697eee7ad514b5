"""The agent: a thread inside the program that tells the sampler what only the program knows.

`attach` starts it; `track` hands its phases over to it. The program itself never waits: what the
thread cannot send it keeps for a while, then drops the oldest and counts that. Threads of Python
take turns, and the program gets its turn back after 5 ms at the latest: so phases that follow each
other quickly are sent together, ten times a second. After a fork the child begins without a thread,
and its first phase or `attach` starts one of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from memplan.errors import MemplanError
from memplan.measure.allocator import Allocators, available
from memplan.measure.link import PacketLink, PhaseLink
from memplan.measure.oom import watch_oom
from memplan.types import Phase
from memplan.wire import encode, job_of

__all__ = ["attach", "detach", "quiet", "report", "run_id", "workload"]

LONGEST_EXIT_S = 2.0
"""Seconds that the end of a program may wait for its last phases."""

_IDLE_S = 1.0

_PACE_S = 0.1
"""Seconds from one sending of phases to the next. The first one after a while goes at once."""

_MOST_PHASES = 200
"""Phases that wait for the thread; the oldest go first."""

_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID")


class _Agent:
    """The thread of this process, its queue and its links."""

    def __init__(self, path: str) -> None:
        self.interval_s: float | None = None
        self._path = path
        self._phases: deque[Phase] = deque(maxlen=_MOST_PHASES)
        self._packets: deque[bytes] = deque(maxlen=600)
        self._wake = threading.Event()
        self._ending = False
        self._paced = False
        self._said = ""
        self._thread: threading.Thread | None = None
        self._phase_link = PhaseLink(path)
        self._packet_link: PacketLink | None = None
        self._allocators: Allocators | None = None

    def start(self) -> None:
        """Start the thread, unless it runs."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="memplan-agent", daemon=True)
            self._thread.start()

    def put_phase(self, phase: Phase) -> None:
        self._phases.append(phase)
        self.start()
        if not self._paced or len(self._phases) > _MOST_PHASES // 2:
            self._wake.set()

    def put(self, kind: str, **body: Any) -> None:
        self._packets.append(encode(kind, **body))
        if kind != "workload" or self.interval_s is None:  # it goes with the next sample: each
            self._wake.set()  # waking takes the interpreter from the program for a moment

    def end(self) -> None:
        """Send what is left, as far as that goes in a moment."""
        self._ending = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(LONGEST_EXIT_S)
        if self._allocators is not None:
            self._allocators.close()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._ending:
            wait_s = _PACE_S if self._paced else _IDLE_S
            if self.interval_s is not None:
                wait_s = min(wait_s, max(due - time.monotonic(), 0.0))
            self._wake.wait(wait_s)
            self._wake.clear()
            self._paced = False  # before the queue is looked through: what comes later wakes us
            late_s = time.monotonic() - due
            if self.interval_s is not None and late_s >= 0:
                self._sample(late_s)
                due += self.interval_s * (1 + late_s // self.interval_s)
            self._paced = self._send()
        self._send()

    def _sample(self, late_s: float) -> None:
        """Read the counters once; a bug in them must not end the thread."""
        with contextlib.suppress(Exception):
            self._allocators = self._allocators or Allocators()
            values = self._allocators.read()
            resets = self._allocators.peak_resets
            more = {"peak_resets": resets} if resets else {}
            late_ns = round(late_s * 1e9)
            self._packets.append(
                encode("sample", t_ns=time.time_ns(), late_ns=late_ns, values=values, **more)
            )

    def _send(self) -> bool:
        """Send what there is; tell whether there were phases."""
        if self.interval_s is not None or self._packets:
            self._send_packets()
        phases = [self._phases.popleft() for _ in range(len(self._phases))]
        known = self._packet_link.run_id if self._packet_link is not None else None
        if known is None and phases and not all(phase.run_id for phase in phases):
            self._phases.extendleft(reversed(phases))  # the daemon has not named the run yet
            return True
        # Of a phase that ended meanwhile the end is enough: it has the begin in it.
        newest = {(p.run_id, p.pid, p.name, p.started_ns): p for p in phases}
        named = [p if p.run_id else replace(p, run_id=known or "") for p in newest.values()]
        self._phase_link.send(named, last=self._ending)
        return bool(phases)

    def _send_packets(self) -> None:
        if self._packet_link is None:
            self._packet_link = PacketLink(self._path, self._hello())
        link = self._packet_link
        for _ in range(len(self._packets)):
            link.put(self._packets.popleft())
        link.flush()

    def _hello(self) -> bytes:
        return encode(
            "hello",
            run=run_id(),
            job=job_of(os.environ),
            pid=os.getpid(),
            rank={name: os.environ[name] for name in _RANKS if name in os.environ},
            available=available(sys.modules.get("torch")),
            python=".".join(map(str, sys.version_info[:3])),
        )


_agent: _Agent | None = None


def _path() -> str:
    """Return where the sampler listens: `memplan run` says it, else the daemon's place."""
    path = os.environ.get("MEMPLAN_SOCKET")
    if path:
        return path
    from memplan import config
    from memplan.store.remote import socket_path

    return str(socket_path(config.setting("database").value))


def _current() -> _Agent:
    global _agent  # noqa: PLW0603 - one agent in a process
    if _agent is None:
        _agent = _Agent(_path())
        atexit.register(_agent.end)
    return _agent


def _after_fork() -> None:
    """Forget the parent's agent: its thread is not here, its connection is the parent's."""
    global _agent  # noqa: PLW0603 - one agent in a process
    if _agent is not None:
        atexit.unregister(_agent.end)
        _agent = None


os.register_at_fork(after_in_child=_after_fork)


def run_id() -> str:
    """Return the run that this process belongs to, "" outside of `memplan run`."""
    return os.environ.get("MEMPLAN_RUN", "")


def attach(interval_s: float = 0.1) -> None:
    """Send this process's allocator counters to the daemon, ten times a second if not said else.

    One line is enough, before or after torch is imported:

        from memplan import measure; measure.attach()

    Without a daemon nothing happens until there is one. Nothing is raised, nothing waits, and no
    counter of torch is reset. Under `memplan run` the numbers belong to its run; elsewhere the
    daemon makes a run of this process, and of all ranks of its job together. When the GPU's
    allocator runs out of memory, one bounded description is written (see `memplan.measure.oom`).

    Args:
        interval_s: seconds between two readings.

    Raises UsageError for an interval below a millisecond.
    """
    from memplan.errors import UsageError

    if not 0.001 <= interval_s <= 3600:
        raise UsageError(f"an interval of {interval_s} s makes no sense", hint="use 0.001 to 3600")
    agent = _current()
    agent.interval_s = interval_s
    watch_oom(_tell_oom, folder=os.path.join(os.path.dirname(_path()), "oom"))  # noqa: PTH118, PTH120
    agent.start()


def detach() -> None:
    """End the agent; what it has is sent. Harmless when there is none."""
    global _agent  # noqa: PLW0603 - one agent in a process
    if _agent is not None:
        atexit.unregister(_agent.end)
        _agent.end()
        _agent = None


def report(phase: Phase) -> None:
    """Hand a phase to the agent's thread. Without a sampler nothing happens; nothing is raised."""
    attached = _agent is not None and _agent.interval_s is not None
    if (os.environ.get("MEMPLAN_SOCKET") and phase.run_id) or attached:
        _current().put_phase(phase)


def workload(**sizes: int) -> None:
    """Tell what the program really works on: batch=8, tokens=4096, step=17 ...

    Stored beside the memory, so that a plan can be held against what was run, not what was meant.
    """
    if _agent is not None and _agent.interval_s is not None:
        with contextlib.suppress(MemplanError):
            _agent.put("workload", t_ns=time.time_ns(), values=sizes)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ask the daemon not to read what could stall this process (PSS) for the time of the block."""
    agent = _agent
    if agent is not None:
        agent.put("quiet", on=True)
    try:
        yield
    finally:
        if agent is not None:
            agent.put("quiet", on=False)


def _tell_oom(text: str, file: str) -> None:
    if _agent is not None:
        with contextlib.suppress(MemplanError):
            _agent.put("event", t_ns=time.time_ns(), what="oom", text=text, file=file)
