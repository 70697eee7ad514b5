"""The two ways to the daemon: phases with an answer, samples without."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from memplan.errors import MemplanError
from memplan.types import Phase
from memplan.wire import agent_path

if TYPE_CHECKING:
    from memplan.store.remote import RemoteWriter

__all__ = ["PacketLink", "PhaseLink"]

_TIMEOUT_S = 2.0
"""Seconds to wait for an answer to a phase; who is silent so long is asked again later."""

_REFUSED_S, _SILENT_S = 0.5, 5.0
"""Seconds before the next try after a refusal, and after a time-out."""

_WAITING_PHASES = 200
_WAITING_PACKETS = 600
"""What is kept while nobody answers (a minute at 10 Hz); the oldest go first."""


class PhaseLink:
    """Sends phases, and keeps them while nobody answers. Only the agent's thread calls it."""

    def __init__(self, path: str) -> None:
        """Remember where the daemon, or `memplan run`, listens."""
        self._path = Path(path)
        self._writer: RemoteWriter | None = None
        self._waiting: deque[Phase] = deque(maxlen=_WAITING_PHASES)
        self._warned = False
        self._retry_at = 0.0

    def send(self, phases: list[Phase], *, last: bool = False) -> bool:
        """Send phases and those that wait; tell whether all have arrived.

        Args:
            phases: new ones.
            last: try also when the last try is no second ago: there will be no other.

        The first failure is told on standard error. None is raised.
        """
        self._waiting += phases
        if not self._waiting or (time.monotonic() < self._retry_at and not last):
            return not self._waiting
        error = self._try()
        silent = error is not None and isinstance(error.__cause__, TimeoutError)
        if error is None:
            return True
        if not silent:  # the connection may have broken since the last phase
            error = self._try()
        self._retry_at = time.monotonic() + (_SILENT_S if silent else _REFUSED_S)
        if error is not None and not self._warned:
            self._warned = True
            print(f"memplan: phases are not recorded: {error}", file=sys.stderr)  # noqa: T201
        return error is None

    def _try(self) -> MemplanError | None:
        from memplan.store.remote import RemoteWriter

        try:
            if self._writer is None:
                self._writer = RemoteWriter(self._path, timeout_s=_TIMEOUT_S)
            self._writer.save_phases(tuple(self._waiting))
        except MemplanError as error:
            self._writer = None
            return error
        self._waiting.clear()
        return None


class PacketLink:
    """Sends packets, never waits, and drops the oldest when too many wait.

    A daemon that ended is looked for again at every `flush`; the hello goes first each time.
    """

    def __init__(self, path: str, hello: bytes) -> None:
        """Prepare.

        Args:
            path: where the daemon listens for commands.
            hello: first packet of every connection.
        """
        self.dropped = 0
        """Packets given up."""
        self.run_id: str | None = None
        """The run that the daemon has put this process into."""
        self._path = agent_path(path)
        self._hello = hello
        self._socket: socket.socket | None = None
        self._waiting: deque[bytes] = deque()

    def put(self, packet: bytes) -> None:
        """Keep a packet for the next `flush`."""
        if len(self._waiting) >= _WAITING_PACKETS:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append(packet)

    def flush(self) -> bool:
        """Send what waits as far as it goes; tell whether nothing waits any more."""
        try:
            connection = self._connect()
            while self._waiting:
                connection.send(self._waiting[0])
                self._waiting.popleft()
            self._listen(connection)
        except BlockingIOError:  # the daemon is busy: later
            return False
        except OSError:  # it is gone, or not there yet
            self.close()
            return False
        return True

    def _connect(self) -> socket.socket:
        if self._socket is None:
            made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            made.setblocking(False)  # noqa: FBT003 - the socket module's own signature
            try:
                made.connect(str(self._path))
                made.send(self._hello)
            except OSError:
                made.close()
                raise
            self._socket = made
        return self._socket

    def _listen(self, connection: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            data = connection.recv(4096)
            if not data:
                raise ConnectionResetError
            with contextlib.suppress(ValueError, TypeError, KeyError):
                self.run_id = str(json.loads(data)["run"])

    def close(self) -> None:
        """Let go of the connection; the next `flush` makes another one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
