"""The little of HTTP that scrapes need: GET, one answer a connection, this machine only.

http.server takes twice the CPU time for a request, wakes twice a second to see whether it is to
end, and its modules hold 2 MiB.
"""

from __future__ import annotations

import _thread
import contextlib
import socket
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import urlsplit

__all__ = ["Answer", "Server"]

MOST_AT_ONCE = 32
"""Scrapes that are answered at once; the rest are told to come again."""

SLOWEST_S = 5.0
"""Seconds that a request may take to arrive, and its answer to be taken."""

CLOSED_S = 1.0
"""Seconds for which nobody is let in after the kernel had no descriptor for a connection."""

LONGEST_BYTES = 65536
"""Of a request."""

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Answer(NamedTuple):
    """What is said to a request."""

    code: int
    """HTTP's: 200 ..."""
    body: bytes
    """The whole of it."""
    kind: str = "text/plain; charset=utf-8"
    """Content-Type."""


class Server:
    """Listens from the beginning, answers in `serve`; a thread for each connection."""

    def __init__(self, address: tuple[str, int], answer: Callable[[str], Answer]) -> None:
        """Listen.

        Args:
            address: a loopback address and a port; port 0 = any.
            answer: called with the path that is asked for, from any thread.

        Raises OSError when nothing can listen there.
        """
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._listener = socket.create_server(address, family=family, backlog=128)
        self._answer = answer
        self._slots = threading.BoundedSemaphore(MOST_AT_ONCE)
        self._ended = threading.Event()
        self.port = int(self._listener.getsockname()[1])
        """Where it listens."""

    def serve(self) -> None:
        """Answer until it is closed."""
        while not self._ended.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:  # it was closed, or there is no descriptor left
                self._ended.wait(CLOSED_S)
                continue
            try:
                _thread.start_new_thread(self._handle, (connection,))
            except RuntimeError:  # there is no thread left
                connection.close()

    def close(self) -> None:
        """Stop to listen, and let `serve` return."""
        self._ended.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _handle(self, connection: socket.socket) -> None:
        """Read a request and answer it; who hangs up, or takes too long, gets nothing."""
        with connection, contextlib.suppress(OSError):
            if head := _head(connection):
                connection.settimeout(SLOWEST_S)
                connection.sendall(_written(self._answered(head)))
                connection.shutdown(socket.SHUT_WR)

    def _answered(self, head: str) -> Answer:
        line, *fields = head.splitlines()
        words = line.split()
        if len(words) != 3 or not words[2].startswith("HTTP/"):
            return Answer(400, b"this is not HTTP\n")
        if words[0] != "GET":
            return Answer(501, b"GET only\n")
        if not all(_is_here(value) for value in _hosts(fields)):
            return Answer(403, b"this machine only\n")
        if not self._slots.acquire(blocking=False):
            return Answer(503, b"too many at once\n")
        try:
            return self._answer(words[1].partition("?")[0])
        finally:
            self._slots.release()


def _head(connection: socket.socket) -> str:
    """Return a request's first line and its fields; "" when it ends before, or is too long.

    Raises OSError when it does not arrive in time.
    """
    last = time.monotonic() + SLOWEST_S
    data = b""
    while b"\n\r\n" not in data and b"\n\n" not in data:
        connection.settimeout(max(last - time.monotonic(), 1e-3))
        more = connection.recv(8192)
        data += more
        if not more or len(data) > LONGEST_BYTES:
            return ""
    return data.decode("latin-1")


def _hosts(fields: list[str]) -> list[str]:
    """Return how the client calls this machine."""
    pairs = [field.partition(":") for field in fields]
    return [value.strip() for name, _, value in pairs if name.strip().lower() == "host"]


def _is_here(host: str) -> bool:
    """Tell whether a name is this machine's; with another one a browser was led here."""
    try:
        return urlsplit(f"//{host}").hostname in _LOOPBACK
    except ValueError:
        return False


def _written(answer: Answer) -> bytes:
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
    head = (
        f"HTTP/1.0 {answer.code} {HTTPStatus(answer.code).phrase}\r\nDate: {date}\r\n"
        f"Content-Type: {answer.kind}\r\nContent-Length: {len(answer.body)}\r\n\r\n"
    )
    return head.encode() + answer.body
