"""Shipping to a fleet's database from a running daemon: a child does it, the daemon forgets.

The child reads the database and talks to PostgreSQL; the loop hears from it by a socket and lets
the one writer forget what has arrived, a short transaction. Whatever becomes of the network, of
PostgreSQL or of the child: no tick waits for it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from memplan_daemon.clock import NS, Clock
from memplan_daemon.loop import Loop

from memplan.errors import StoreError
from memplan.store.readonly import shown

if TYPE_CHECKING:
    from memplan.store.writer import LocalWriter

__all__ = ["Shipping"]

_log = logging.getLogger("memplan.daemon")

SILENT_S = 360.0
"""Seconds without a word after which a child is thrown away: more than its longest pause."""

FIRST_RETRY_S, LAST_RETRY_S = 1.0, 300.0

END_S = 0.5
"""Seconds to wait for a child that was killed: it takes some milliseconds."""

_LARGEST_LINE = 64 * 1024


class Shipping:
    """One child, started anew when it fails, or when other settings come."""

    def __init__(
        self, *, database: str, writer: LocalWriter, loop: Loop, clock: Clock, pause_s: float = 10.0
    ) -> None:
        """Prepare; nothing is shipped before `apply`.

        Args:
            database: what is copied.
            writer: forgets what has arrived.
            loop: waits for the child's words.
            clock: times pauses.
            pause_s: seconds between two looks into an empty outbox.
        """
        self._database, self._writer = database, writer
        self._loop, self._clock, self._pause_s = loop, clock, pause_s
        self._url, self._raw = "", False
        self._process: subprocess.Popen[bytes] | None = None
        self._peer: socket.socket | None = None
        self._data = bytearray()
        self._upto: int | None = None
        self._retry_s, self._retry_ns, self._heard_ns = FIRST_RETRY_S, 0, 0
        self._waiting: tuple[int, int] | None = None
        self._arrived_ns: int | None = None
        self._problem = ""
        loop.each_round(self._look)

    def apply(self, url: str, *, raw: bool, outbox_bytes: int) -> None:
        """Ship to a database from now on; "" = to none.

        Raises StoreError when our database does not take it; then all is as before.
        """
        self._writer.note_for_fleet(outbox_bytes if url else 0)
        if (url, raw) == (self._url, self._raw):
            return
        self._stop()
        self._url, self._raw = url, raw
        self._retry_s, self._retry_ns = FIRST_RETRY_S, 0
        self._problem, self._waiting, self._arrived_ns = "", None, None
        if url:
            _log.info("shipping to %s%s", shown(url), ", samples too" if raw else "")

    def describe(self) -> dict[str, Any]:
        """Return how it is, without a password; nothing where there is no fleet."""
        if not self._url:
            return {}
        notes, size = self._waiting or (None, None)
        return {
            "to": shown(self._url),
            "samples": self._raw,
            "pid": self._process.pid if self._process is not None else None,
            "problem": self._problem,
            "waiting_notes": notes,
            "waiting_bytes": size,
            "arrived_ns": self._arrived_ns,
            "lost_notes": self._writer.outbox_lost,
        }

    def close(self) -> None:
        """End the child; a batch on its way is sent again by the next one."""
        self._stop()
        self._url = ""

    def _look(self) -> None:
        """Start a child where one is due, throw a silent one away, forget what has arrived."""
        if not self._url:
            return
        now = self._clock.monotonic_ns()
        if self._process is None:
            if now >= self._retry_ns:
                self._start()
        elif self._process.poll() is not None:
            self._fail(f"the process that ships ended ({self._process.returncode})")
        elif now - self._heard_ns > SILENT_S * NS:
            self._fail("the process that ships says nothing")
        elif self._upto is not None and now >= self._retry_ns:
            self._forget()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "memplan_daemon.shipper", str(theirs.fileno())]
        try:
            self._process = subprocess.Popen(
                [*command, str(self._pause_s)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            ours.close()
            self._fail(f"cannot start the process that ships: {error.strerror}")
            return
        finally:
            theirs.close()
        ours.setblocking(False)  # noqa: FBT003 - the socket module's own signature
        self._peer, self._data = ours, bytearray()
        self._heard_ns = self._clock.monotonic_ns()
        self._loop.add(ours, self._hear)
        self._send({"database": self._database, "url": self._url, "raw": self._raw})

    def _send(self, body: dict[str, Any] | None) -> None:
        """Send a line, empty for nothing to say; it is short and goes into an empty buffer."""
        assert self._peer is not None
        try:
            self._peer.sendall((b"" if body is None else json.dumps(body).encode()) + b"\n")
        except OSError:
            self._fail("the process that ships does not listen")

    def _hear(self) -> None:
        assert self._peer is not None
        try:
            data = self._peer.recv(_LARGEST_LINE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._data += data
        if not data or len(self._data) > _LARGEST_LINE:
            self._fail("the process that ships ended")
            return
        self._heard_ns = self._clock.monotonic_ns()
        while self._peer is not None and b"\n" in self._data:
            line, _, rest = bytes(self._data).partition(b"\n")
            self._data = bytearray(rest)
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError):
                self._fail("the process that ships makes no sense")
                return

    def _take(self, said: dict[str, Any]) -> None:
        """Take one word of the child."""
        self._waiting = (int(said["notes"]), int(said["bytes"]))
        self._tell(said.get("problem", ""))
        if "problem" in said:
            return
        self._retry_s = FIRST_RETRY_S
        self._arrived_ns = self._clock.wall_ns()
        if said["upto"] is not None:
            self._upto = said["upto"]
            self._forget()

    def _forget(self) -> None:
        """Let the writer forget what has arrived, and the child go on; a full disk lets it wait."""
        assert self._upto is not None
        try:
            self._writer.shipped(self._upto)
        except StoreError:
            self._retry_ns = self._clock.monotonic_ns() + round(FIRST_RETRY_S * NS)
            return
        self._upto = None
        self._send(None)

    def _fail(self, problem: str) -> None:
        """Throw the child away; the next one starts after a pause that grows."""
        self._stop()
        self._tell(problem)
        self._retry_ns = self._clock.monotonic_ns() + round(self._retry_s * NS)
        self._retry_s = min(2 * self._retry_s, LAST_RETRY_S)

    def _tell(self, problem: str) -> None:
        """Log a change once."""
        if problem != self._problem:
            if problem:
                _log.warning("shipping waits: %s", problem)
            else:
                _log.info("shipping goes on")
        self._problem = problem

    def _stop(self) -> None:
        if self._peer is not None:
            self._loop.remove(self._peer)
            self._peer.close()
            self._peer = None
        if self._process is not None:
            self._process.kill()  # what it was about is rolled back, and sent by the next one
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)
            self._process = None
        self._upto = None
