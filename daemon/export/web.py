"""The little of HTTP that scrapes need: GET, one answer a connection, this machine only.

http.server would take half a millisecond of CPU for each request, and 2 MiB for its modules.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit

__all__ = ["Answer", "Server"]

MOST_AT_ONCE = 32
"""Scrapes that are answered at once; the rest are told to come again."""

SLOWEST_S = 5.0
"""Seconds that a request may take to arrive, and its answer to be taken."""

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


class _Handler(BaseRequestHandler):
    """Reads one request and answers it."""

    server: Server
    request: socket.socket

    def handle(self) -> None:
        """Answer; who hangs up, or takes too long, gets nothing."""
        with contextlib.suppress(OSError):
            head = _head(self.request)
            if head:
                self.request.settimeout(SLOWEST_S)
                self.request.sendall(_written(self._answer(head)))

    def _answer(self, head: str) -> Answer:
        line, *fields = head.splitlines()
        words = line.split()
        if len(words) != 3 or not words[2].startswith("HTTP/"):
            return Answer(400, b"this is not HTTP\n")
        if words[0] != "GET":
            return Answer(501, b"GET only\n")
        if not all(_is_here(value) for value in _hosts(fields)):
            return Answer(403, b"this machine only\n")
        if not self.server.slots.acquire(blocking=False):
            return Answer(503, b"too many at once\n")
        try:
            return self.server.answer(words[1].partition("?")[0])
        finally:
            self.server.slots.release()


class Server(ThreadingTCPServer):
    """Listens from the beginning, answers in `serve_forever`; a thread for each connection."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], answer: Callable[[str], Answer]) -> None:
        """Listen.

        Args:
            address: a loopback address and a port; port 0 = any.
            answer: called with the path that is asked for, from any thread.

        Raises OSError when nothing can listen there.
        """
        self.answer = answer
        self.slots = threading.BoundedSemaphore(MOST_AT_ONCE)
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a scraper that hangs up harms nobody."""


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
