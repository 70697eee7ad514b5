"""The daemon's side of a probe: asks, never waits long, and throws a late child away."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

from memplan_daemon.clock import NS, Clock
from memplan_daemon.probe.fields import Heard

__all__ = ["DEADLINE_S", "Probe", "cpu_ns"]

DEADLINE_S = 1.9
"""Seconds that an answer may take; then the child is killed and another one started. A little less
than two, so that with a tick a second the second tick after the question sees it."""

LATE_S = 0.75
"""Seconds after which an answer is late from a driver that is quick; one that takes its time has
four times its usual, up to the deadline."""

START_S = 20.0
"""Seconds for a child's first answer: without persistence mode a driver wakes every GPU up."""

FIRST_RETRY_S = 0.5
LAST_RETRY_S = 60.0

MOST_ABANDONED = 3
"""Killed children that have not died (stuck in the driver) before no new one is started."""

_decode = json.JSONDecoder().raw_decode
_LARGEST_ANSWER = 8 * 1024**2
_CHUNK = 2**16
"""Bytes taken at once; the C library maps and unmaps memory for each piece twice as large."""


@dataclass(slots=True)
class _Child:
    """A running probe."""

    process: subprocess.Popen[bytes]
    peer: socket.socket
    poll: select.poll
    """Waits for `peer`; select() cannot take a descriptor above 1023."""
    data: bytearray = field(default_factory=bytearray)
    asked_ns: int | None = None
    groups: tuple[str, ...] = ()
    answered: bool = False
    heard: Heard = field(default_factory=Heard)


class Probe:
    """One backend's child, started when it is asked first, and anew when it fails.

    After a failure the next child starts at once, after the next one half a second later, then
    1 s, ... at most 60 s; an answer begins that anew. A child that does not die of SIGKILL is
    left alone: it is reaped when the driver lets go of it.
    """

    def __init__(self, backend: str, clock: Clock) -> None:
        """Remember what to start.

        Args:
            backend: "nvml" or "amd".
            clock: times the answers.
        """
        self.restarts = 0
        """Children that were thrown away."""
        self.late = False
        """True from an answer that is late until the next one."""
        self._backend = backend
        self._clock = clock
        self._child: _Child | None = None
        self._abandoned: list[subprocess.Popen[bytes]] = []
        self._retry_ns = 0
        self._pause_s = 0.0
        self._number = 0
        self._usual_s = 0.0
        self._owed: set[str] = set()

    @property
    def pid(self) -> int | None:
        """Process id of the child; None while there is none."""
        return self._child.process.pid if self._child is not None else None

    @property
    def abandoned(self) -> int:
        """Killed children that still exist."""
        return len(self._abandoned)

    def exchange(self, groups: list[str], wait_s: float) -> dict[str, Any] | None:
        """Ask, if no question is open, and return the answer if it comes in time.

        A driver that is too slow for that is asked ahead: what it says is a tick old then.

        Args:
            groups: what is to be read; what could not be asked yet is asked with the next question.
            wait_s: longest wait; with a question that has been open for a tick there is none.

        Returns None when there is no answer yet. Raises nothing.
        """
        self._reap()
        self._owed.update(groups)
        open_before = self._child is not None and self._child.asked_ns is not None
        if not open_before:
            self._ask()
        answer = self._answer(0.0 if open_before else wait_s)
        if answer is None:
            if self._missed_deadline():
                self._ask()  # a new child is to begin at once
        elif open_before and self._usual_s >= wait_s:
            self._ask()
        return answer

    def stop(self, *, pause_s: float | None = None) -> None:
        """Throw the child away.

        Args:
            pause_s: seconds before another one is started; None = by the usual back-off.
        """
        if self._child is not None:
            child, self._child = self._child, None
            child.peer.close()
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(signal.SIGKILL)
            self._abandoned.append(child.process)
            self.restarts += 1
            self._reap()
        if pause_s is None:
            pause_s = self._pause_s
            self._pause_s = min(max(2 * self._pause_s, FIRST_RETRY_S), LAST_RETRY_S)
        self._retry_ns = self._clock.monotonic_ns() + round(pause_s * NS)

    def close(self) -> None:
        """End for good; wait a moment for a child that dies as it should."""
        self.stop()
        for process in self._abandoned:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
            process.returncode = process.returncode or 0  # a stuck one is init's to reap
        self._abandoned = []

    def _ask(self) -> None:
        if self._child is None and not self._start():
            return
        assert self._child is not None
        self._number += 1
        groups = sorted(self._owed)
        line = json.dumps({"id": self._number, "groups": groups}).encode() + b"\n"
        try:
            self._child.peer.sendall(line)  # some bytes into an empty buffer: does not block
        except OSError:
            self.stop()
            return
        self._child.asked_ns, self._child.groups = self._clock.monotonic_ns(), tuple(groups)
        self._owed.clear()

    def _start(self) -> bool:
        if self._clock.monotonic_ns() < self._retry_ns or self.abandoned >= MOST_ABANDONED:
            return False
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "memplan_daemon.probe", self._backend]
        try:
            process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except OSError:  # out of processes or memory: the host goes on without
            ours.close()
            self.stop()
            return False
        finally:
            theirs.close()
        ours.setblocking(False)  # noqa: FBT003 - the socket module's own signature
        poll = select.poll()
        poll.register(ours, select.POLLIN)
        self._child = _Child(process, ours, poll)
        return True

    def _answer(self, wait_s: float) -> dict[str, Any] | None:
        child = self._child
        if child is None or child.asked_ns is None:
            return None
        end = self._clock.monotonic_ns() + round(wait_s * NS)
        while b"\n" not in child.data:
            if not child.poll.poll(max(end - self._clock.monotonic_ns(), 0) / NS * 1000):
                return None
            try:
                data = child.peer.recv(_CHUNK)
            except OSError:
                data = b""
            child.data += data
            if not data or len(child.data) > _LARGEST_ANSWER:
                self.stop()
                return None
        return self._parse(child)

    def _parse(self, child: _Child) -> dict[str, Any] | None:
        line, _, child.data = child.data.partition(b"\n")
        child.asked_ns = None
        answer: dict[str, Any]
        try:
            answer, _ = _decode(line.decode())
            usable = answer["id"] == self._number and isinstance(answer["gpus"], list)
            answer["gpus"] = child.heard.whole(child.groups, answer["gpus"])
            took_s = answer["took_ns"] / NS
        except (ValueError, KeyError, TypeError, RecursionError):
            usable, took_s = False, 0.0
        if not usable:
            self.stop()
            return None
        if child.answered:  # the first answer has the driver's own start in it
            self._usual_s = max(took_s, self._usual_s * 0.9)
        self.late, self._pause_s, child.answered = False, 0.0, True
        return answer

    def _missed_deadline(self) -> bool:
        child = self._child
        if child is None or child.asked_ns is None:
            self.late = True
            return False
        open_s = (self._clock.monotonic_ns() - child.asked_ns) / NS
        deadline_s = DEADLINE_S if child.answered else START_S
        if child.answered and open_s >= max(LATE_S, 4 * self._usual_s):
            self.late = True
        if open_s < deadline_s:
            return False
        self.late = True
        self.stop()
        return True

    def _reap(self) -> None:
        self._abandoned = [process for process in self._abandoned if process.poll() is None]


def cpu_ns(pid: int) -> int | None:
    """Return the CPU time of a process so far, in nanoseconds; None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - a hot path
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    ticks = int(fields[11]) + int(fields[12])
    return ticks * NS // os.sysconf("SC_CLK_TCK")
