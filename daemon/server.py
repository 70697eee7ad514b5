"""The socket: frames in, replies out, one thread, no TCP, nobody but the same user."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import stat
import struct
from functools import partial
from pathlib import Path

from memplan_daemon.clock import NS, Clock
from memplan_daemon.loop import READ, WRITE, Loop
from memplan_daemon.service import Service, Session

from memplan.errors import DaemonError, MemplanError
from memplan.store.remote import FrameBuffer, encode_frame, error_body

__all__ = ["Server"]

_log = logging.getLogger("memplan.daemon")

MAX_CONNECTIONS = 512
MAX_BUFFERED_BYTES = 64 * 1024**2
"""Bytes that all unfinished requests may hold together."""

SLOWEST_REQUEST_S = 30.0
"""Seconds that one request may take to arrive."""

_RECEIVE_BYTES = 1 << 18
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class _Connection:
    """One client."""

    def __init__(self, peer: socket.socket, now_ns: int) -> None:
        self.peer = peer
        self.session = Session()
        self.frames = FrameBuffer()
        self.out = bytearray()
        self.since_ns = now_ns
        self.last = False


class Server:
    """Listens at a path (mode 0600) and answers requests with a service.

    A request that makes no sense gets an error reply; one that announces too many bytes gets one,
    too, and then the connection is closed, as what follows it has no beginning.
    """

    def __init__(self, *, path: Path, service: Service, loop: Loop, clock: Clock) -> None:
        """Begin to listen. Call it only while holding the writer's lock.

        Args:
            path: where; an old socket there is replaced, as its owner must be dead.
            service: answers.
            loop: waits.
            clock: times requests that arrive slowly.

        Raises DaemonError when nothing can listen there.
        """
        self._path = path
        self._service = service
        self._loop = loop
        self._clock = clock
        self._connections: set[_Connection] = set()
        self._listener = _listen(path)
        self._inode = path.lstat().st_ino
        self._accepting = True
        loop.add(self._listener, self._accept)
        loop.each_round(self._expire)

    def close(self) -> None:
        """Close every connection, stop to listen, remove the socket."""
        for connection in list(self._connections):
            self._drop(connection, lost=False)
        if self._accepting:
            self._loop.remove(self._listener)
        self._listener.close()
        with contextlib.suppress(OSError):
            if self._path.lstat().st_ino == self._inode:
                self._path.unlink()

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # out of descriptors: go on when a client has left
            _log.warning("cannot accept a connection: %s", error)
            self._loop.remove(self._listener)
            self._accepting = False
            return
        if len(self._connections) >= MAX_CONNECTIONS or not _is_same_user(peer):
            peer.close()
            return
        peer.setblocking(False)  # noqa: FBT003 - the socket module's own signature
        connection = _Connection(peer, self._clock.monotonic_ns())
        self._connections.add(connection)
        self._loop.add(peer, partial(self._read, connection))

    def _expire(self) -> None:
        """Close connections whose request does not arrive, and accept again after a pause."""
        oldest = self._clock.monotonic_ns() - round(SLOWEST_REQUEST_S * NS)
        for connection in list(self._connections):
            unfinished = len(connection.frames) or connection.out
            if unfinished and connection.since_ns < oldest:
                self._drop(connection)
        if not self._accepting:
            self._loop.add(self._listener, self._accept)
            self._accepting = True

    def _drop(self, connection: _Connection, *, lost: bool = True) -> None:
        self._connections.discard(connection)
        self._loop.remove(connection.peer)
        connection.peer.close()
        if lost:
            self._service.end(connection.session)

    def _read(self, connection: _Connection) -> None:
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
        if sum(len(c.frames) for c in self._connections) > MAX_BUFFERED_BYTES:
            _log.warning("too many bytes wait in unfinished requests: a connection is closed")
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


def _is_same_user(peer: socket.socket) -> bool:
    data = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(data)
    return uid in (os.geteuid(), 0)


def _listen(path: Path) -> socket.socket:
    _prepare(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise DaemonError(f"cannot listen at {path}: {error.strerror}") from error
    finally:
        os.umask(before)
    listener.setblocking(False)  # noqa: FBT003 - the socket module's own signature
    return listener


def _prepare(path: Path) -> None:
    """Make the folder and remove a dead socket. Raises DaemonError for anything else there."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = path.parent.stat()
        if path.parent.name == f"memplan-{os.geteuid()}" and (  # the one in the shared /tmp
            folder.st_uid != os.geteuid() or folder.st_mode & 0o022
        ):
            raise DaemonError(
                f"{path.parent} is not ours alone", hint="set XDG_RUNTIME_DIR to a private folder"
            )
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()
            return
    except FileNotFoundError:
        return
    except OSError as error:
        raise DaemonError(f"cannot listen at {path}: {error.strerror}") from error
    raise DaemonError(f"{path} is in the way: it is no socket", hint="move it elsewhere")
