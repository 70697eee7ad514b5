"""The Prometheus endpoint: loopback only, one text a tick, in the official client's words."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from memplan_daemon.collectors.gpu import GpuCollector
from memplan_daemon.export.exposition import Beside, Client, Page
from memplan_daemon.export.families import others
from memplan_daemon.sampler import Sampler
from memplan_daemon.snapshot import Moment

from memplan.errors import DaemonError

__all__ = ["PrometheusExporter"]

_log = logging.getLogger("memplan.daemon")

MOST_AT_ONCE = 32
"""Scrapes that are answered at once; the rest are told to come again."""

SLOWEST_S = 5.0
"""Seconds that a request may take to arrive."""

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class _Renderer:
    """The text of the newest tick; made once, however many ask."""

    def __init__(self, sampler: Sampler, gpus: Sequence[GpuCollector]) -> None:
        self._sampler = sampler
        self._gpus = gpus
        self._client = Client()
        self.content_type = self._client.content_type
        self._lock = threading.Lock()
        self._pages: dict[str | None, Page] = {}
        self._beside = Beside(self._client)
        self._moment: Moment | None = None
        self._text = b""

    def text(self) -> bytes:
        """Return the exposition of the newest tick."""
        with self._lock:
            moment = self._sampler.board.moment()
            if moment is not self._moment:
                self._text, self._moment = self._rendered(moment), moment
            return self._text

    def _rendered(self, moment: Moment) -> bytes:
        pages: dict[str | None, Page] = {}
        found: dict[bytes, list[bytes]] = {}
        for part in moment.parts:
            page = pages[part.run] = self._pages.get(part.run) or Page(self._client, part)
            page.turn(part)
            for block in page.blocks:
                found.setdefault(block.header, []).append(block.text)
        self._pages = pages
        for block in self._beside.turn(others(self._sampler, moment, self._gpus)):
            found[block.header] = [block.text]
        return b"".join(b"%b%b\n" % (header, b"\n".join(texts)) for header, texts in found.items())

    @property
    def is_ready(self) -> bool:
        """True once something was sampled and the store takes it."""
        return self._sampler.counts.ticks > 0 and not self._sampler.store_error


class _Handler(BaseHTTPRequestHandler):
    """Answers GET of /metrics, /-/healthy and /-/ready."""

    server: _Server
    timeout = SLOWEST_S
    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        """Answer; a name that is not this machine's is refused (a browser was led here)."""
        if urlsplit(f"//{self.headers.get('Host', 'localhost')}").hostname not in _LOOPBACK:
            self._say(403, b"this machine only\n")
            return
        if not self.server.slots.acquire(blocking=False):
            self._say(503, b"too many at once\n")
            return
        try:
            self._answer()
        finally:
            self.server.slots.release()

    def _answer(self) -> None:
        renderer = self.server.renderer
        path = urlsplit(self.path).path
        if path == "/metrics":
            self._say(200, renderer.text(), renderer.content_type)
        elif path == "/-/healthy":
            self._say(200, b"ok\n")
        elif path == "/-/ready":
            self._say(*((200, b"ok\n") if renderer.is_ready else (503, b"not yet\n")))
        else:
            self._say(404, b"/metrics, /-/healthy, /-/ready\n")

    def _say(self, code: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the parent's name
        """Say nothing: a scrape a second would fill the log."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], renderer: _Renderer) -> None:
        self.renderer = renderer
        self.slots = threading.BoundedSemaphore(MOST_AT_ONCE)
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a scraper that hangs up harms nobody."""


class PrometheusExporter:
    """Listens until it is closed."""

    def __init__(
        self, address: tuple[str, int], sampler: Sampler, gpus: Sequence[GpuCollector]
    ) -> None:
        """Begin to listen.

        Args:
            address: a loopback address and a port; port 0 = any.
            sampler: has the newest readings.
            gpus: know the names and states of devices.

        Raises MissingDependencyError without the client, DaemonError when the port is taken.
        """
        try:
            self._server = _Server(address, _Renderer(sampler, gpus))
        except OSError as error:
            raise DaemonError(
                f"cannot listen at {address[0]}:{address[1]}: {error.strerror}",
                hint="export MEMPLAN_PROMETHEUS=9401",
            ) from error
        self.port = int(self._server.server_address[1])
        """Where it listens."""
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="memplan-prometheus", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError:
            self._server.server_close()
            raise
        _log.info("answering scrapes at http://%s:%d/metrics", address[0], self.port)

    def close(self) -> None:
        """Stop to listen."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
