"""The Prometheus endpoint: loopback only, rendered once per tick by the official client."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from memplan_daemon.collectors.gpu import GpuCollector
from memplan_daemon.export.families import families
from memplan_daemon.sampler import Sampler

from memplan.errors import DaemonError, MissingDependencyError

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
        try:
            from prometheus_client import CollectorRegistry, exposition
        except ImportError as error:
            raise MissingDependencyError(
                "the Prometheus endpoint needs prometheus-client",
                hint="pip install 'memplan[prometheus]'",
            ) from error
        self._sampler = sampler
        self._gpus = gpus
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        self._generate = exposition.generate_latest
        self.content_type = exposition.CONTENT_TYPE_LATEST
        self._lock = threading.Lock()
        self._tick = -1
        self._text = b""

    def collect(self) -> Iterator[Any]:
        """Yield the client's own objects: it knows how to escape."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for family in families(self._sampler, self._gpus):
            kind = CounterMetricFamily if family.counter else GaugeMetricFamily
            metric = kind(family.name, family.help, labels=family.labels)
            for labels, value in family.series:
                metric.add_metric(labels, value)
            yield metric

    def describe(self) -> list[Any]:
        """Say nothing: what there is changes from tick to tick."""
        return []

    def text(self) -> bytes:
        """Return the exposition of the newest tick."""
        with self._lock:
            tick = self._sampler.counts.ticks
            if tick != self._tick:
                self._text, self._tick = self._generate(self._registry), tick
            return self._text

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
