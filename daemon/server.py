"""The socket: frames in, replies out, one thread, no TCP; its owner, or a group besides."""

from __future__ import annotations

import json
import logging
import socket
from functools import partial
from pathlib import Path

from memplan_daemon.access import Door, Limits, Peer, bind, peer_of, remove_if_ours
from memplan_daemon.clock import NS, Clock
from memplan_daemon.loop import READ, WRITE, Loop
from memplan_daemon.service import Service, Session

from memplan.errors import DaemonError, MemplanError
from memplan.store.remote import FrameBuffer, encode_frame, error_body

__all__ = ["Server"]

_log = logging.getLogger("memplan.daemon")

MAX_CONNECTIONS = 512
MAX_CONNECTIONS_EACH = 256
"""Of one user: the owner's runs, each with its program's own connections."""

MAX_CONNECTIONS_GUEST = 64
"""Of one user who is not the owner."""

MAX_GUEST_BYTES = 256 * 1024
"""Largest request of a user who is not the owner."""

MAX_BUFFERED_BYTES = 64 * 1024**2
"""Bytes that all unfinished requests may hold together."""

SLOWEST_REQUEST_S = 30.0
"""Seconds that one request may take to arrive."""

SLOWEST_GUEST_S = 5.0
"""The same for a user who is not the owner."""

_RECEIVE_BYTES = 1 << 18


class _Connection:
    """One client."""

    def __init__(self, peer: socket.socket, who: Peer, now_ns: int) -> None:
        self.peer = peer
        self.who = who
        self.session = Session(who)
        self.frames = FrameBuffer()
        self.out = bytearray()
        self.since_ns = now_ns
        self.last = False


class Server:
    """Listens at a path (mode 0600, with a group 0660) and answers requests with a service.

    A request that makes no sense gets an error reply; one that announces too many bytes gets one,
    too, and then the connection is closed, as what follows it has no beginning.
    """

    def __init__(
        self,
        *,
        path: Path,
        service: Service,
        loop: Loop,
        clock: Clock,
        gid: int | None = None,
    ) -> None:
        """Begin to listen. Call it only while holding the writer's lock.

        Args:
            path: where; an old socket there is replaced, as its owner must be dead.
            service: answers.
            loop: waits.
            clock: times requests that arrive slowly.
            gid: group whose members may ask, too; None = the owner only.

        Raises DaemonError when nothing can listen there.
        """
        self._path = path
        self._service = service
        self._loop = loop
        self._clock = clock
        self._connections: set[_Connection] = set()
        self._gid = gid
        self._owners = Limits(MAX_CONNECTIONS, MAX_CONNECTIONS_EACH)
        self._guests = Limits(MAX_CONNECTIONS, MAX_CONNECTIONS_GUEST)
        self._listener = bind(path, socket.SOCK_STREAM, gid)
        self._inode = path.lstat().st_ino
        self._complained = False
        self._door = Door(self._listener, loop=loop, clock=clock, enter=self._accept)
        loop.each_round(self._expire)

    def close(self) -> None:
        """Close every connection, stop to listen, remove the socket."""
        for connection in list(self._connections):
            self._drop(connection, lost=False)
        self._door.close()
        remove_if_ours(self._path, self._inode)

    def _accept(self, peer: socket.socket) -> None:
        who = peer_of(peer)
        allowed = who.is_owner or self._gid is not None
        if len(self._connections) >= MAX_CONNECTIONS or not allowed or not self._enter(who):
            peer.close()
            return
        peer.setblocking(False)  # noqa: FBT003 - the socket module's own signature
        connection = _Connection(peer, who, self._clock.monotonic_ns())
        self._connections.add(connection)
        self._loop.add(peer, partial(self._read, connection))

    def _enter(self, who: Peer) -> bool:
        return (self._owners if who.is_owner else self._guests).enter(who.uid)

    def _expire(self) -> None:
        """Close connections whose request does not arrive."""
        now = self._clock.monotonic_ns()
        for connection in list(self._connections):
            unfinished = len(connection.frames) or connection.out
            slowest_s = SLOWEST_REQUEST_S if connection.who.is_owner else SLOWEST_GUEST_S
            if unfinished and connection.since_ns < now - round(slowest_s * NS):
                self._drop(connection)

    def _drop(self, connection: _Connection, *, lost: bool = True) -> None:
        self._connections.discard(connection)
        (self._owners if connection.who.is_owner else self._guests).leave(connection.who.uid)
        self._loop.remove(connection.peer)
        connection.peer.close()
        if lost:
            self._service.end(connection.session)

    def _read(self, connection: _Connection) -> None:
        try:
            self._take(connection)
        except MemoryError:  # no room for what it sends: it may come again
            if connection in self._connections:
                self._drop(connection)

    def _take(self, connection: _Connection) -> None:
        try:
            data = connection.peer.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
            return
        if not len(connection.frames):
            connection.since_ns = self._clock.monotonic_ns()
        connection.frames.feed(data)
        too_large = not connection.who.is_owner and len(connection.frames) > MAX_GUEST_BYTES
        if too_large or sum(len(c.frames) for c in self._connections) > MAX_BUFFERED_BYTES:
            if not self._complained:  # once: whoever floods us must not fill the log, too
                _log.warning("too many bytes wait in unfinished requests: a connection is closed")
            self._complained = True
            self._drop(connection)
            return
        self._answer(connection)

    def _answer(self, connection: _Connection) -> None:
        """Answer every whole request that has arrived."""
        while not connection.last:
            try:
                frame = connection.frames.take()
            except DaemonError as error:
                connection.out += encode_frame(error_body(error))
                connection.last = True
                break
            if frame is None:
                break
            connection.out += self._reply(frame, connection.session)
        self._write(connection)

    def _reply(self, frame: bytes, session: Session) -> bytes:
        try:
            result = self._service.handle(_decode(frame), session)
            return encode_frame({"ok": True, "result": result})
        except MemplanError as error:
            return encode_frame(error_body(error))
        except Exception as error:  # noqa: BLE001 - no request may end the sampling
            _log.exception("a request failed")
            return encode_frame(error_body(DaemonError(f"the daemon failed: {error!r}")))

    def _write(self, connection: _Connection) -> None:
        try:
            sent = connection.peer.send(connection.out) if connection.out else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(connection)
            return
        del connection.out[:sent]
        if connection.out:  # nothing more is read until the client takes its answer
            self._loop.change(connection.peer, partial(self._write, connection), WRITE)
        elif connection.last:
            self._drop(connection)
        else:
            self._loop.change(connection.peer, partial(self._read, connection), READ)


def _decode(frame: bytes) -> object:
    try:
        return json.loads(frame)
    except (ValueError, RecursionError) as error:
        raise DaemonError(f"the request is not JSON: {error}") from error
