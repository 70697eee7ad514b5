"""The Prometheus endpoint: loopback only, one text a tick, in the official client's words."""

from __future__ import annotations

import logging
import socket
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from memplan_daemon.collectors.gpu import GpuCollector
from memplan_daemon.export.families import Family, others, shown
from memplan_daemon.sampler import Sampler
from memplan_daemon.snapshot import Key

from memplan.errors import DaemonError, MissingDependencyError

__all__ = ["PrometheusExporter"]

_log = logging.getLogger("memplan.daemon")

MOST_AT_ONCE = 32
"""Scrapes that are answered at once; the rest are told to come again."""

SPARE_LINES = 1000
"""Series whose text is kept after they have gone, besides as many as there are."""

SLOWEST_S = 5.0
"""Seconds that a request may take to arrive."""

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class _Line(NamedTuple):
    """One series in the exposition, but for its number."""

    header: str
    """What stands above its metric; "" for a series that is not shown."""
    beginning: str
    """Name and labels."""
    factor: float
    """Our number times this is what is shown."""


_HIDDEN = _Line("", "", 1.0)


class _Metrics(NamedTuple):
    """What the client writes in one go."""

    metrics: list[Any]

    def collect(self) -> list[Any]:
        """Return it."""
        return self.metrics


class _Renderer:
    """The text of the newest tick; made once, however many ask.

    The official client writes each series once, as it knows how to escape, and only the number
    changes from then on: to write all anew takes it ten times as long, and memory with it.
    """

    def __init__(self, sampler: Sampler, gpus: Sequence[GpuCollector]) -> None:
        try:
            from prometheus_client import core, exposition
        except ImportError as error:
            raise MissingDependencyError(
                "the Prometheus endpoint needs prometheus-client",
                hint="pip install 'memplan[prometheus]'",
            ) from error
        self._sampler = sampler
        self._gpus = gpus
        self._core, self._exposition = core, exposition
        self.content_type = exposition.CONTENT_TYPE_LATEST
        self._lock = threading.Lock()
        self._lines: dict[Key, _Line] = {}
        self._tick = -1
        self._text = b""

    def text(self) -> bytes:
        """Return the exposition of the newest tick."""
        with self._lock:
            tick = self._sampler.counts.ticks
            if tick != self._tick:
                self._text, self._tick = self._rendered(), tick
            return self._text

    def _rendered(self) -> bytes:
        snapshot = self._sampler.board.snapshot()
        if len(self._lines) > 2 * len(snapshot.values) + SPARE_LINES:  # of processes that ended
            self._lines = {}
        found: dict[str, list[str]] = {}
        for key, value in snapshot.values.items():
            line = self._lines.get(key)
            if line is None:
                line = self._lines[key] = self._line(key)
            header, beginning, factor = line
            if header:
                number = value if factor == 1.0 else value * factor
                found.setdefault(header, []).append(f"{beginning} {number}\n")
        numbers = "".join(header + "".join(lines) for header, lines in found.items())
        return (numbers + self._written(others(self._sampler, snapshot, self._gpus))).encode()

    def _line(self, key: Key) -> _Line:
        if (how := shown(key)) is None:
            return _HIDDEN
        family = how.family
        text = self._written([replace(family, series=[(how.values, 0)])])
        *header, line, _ = text.split("\n")
        header_text = sys.intern("".join(f"{one}\n" for one in header))
        return _Line(header_text, line.rpartition(" ")[0], how.factor)

    def _written(self, families: Iterable[Family]) -> str:
        """Return families in the official client's words."""
        metrics = []
        for family in families:
            counter, gauge = self._core.CounterMetricFamily, self._core.GaugeMetricFamily
            kind = counter if family.counter else gauge
            metric = kind(family.name, family.help, labels=family.labels)
            for labels, value in family.series:
                metric.add_metric(labels, value)
            metrics.append(metric)
        return self._exposition.generate_latest(_Metrics(metrics)).decode()

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
