"""The Prometheus endpoint: loopback only, one text a tick."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from memplan_daemon.collectors.gpu import GpuCollector
from memplan_daemon.export.exposition import CONTENT_TYPE, Page, written
from memplan_daemon.export.families import others
from memplan_daemon.export.web import Answer, Server
from memplan_daemon.sampler import Sampler
from memplan_daemon.snapshot import Moment

from memplan.errors import DaemonError

__all__ = ["PrometheusExporter"]

_log = logging.getLogger("memplan.daemon")


class _Renderer:
    """The text of the newest tick; made once, however many ask."""

    def __init__(self, sampler: Sampler, gpus: Sequence[GpuCollector]) -> None:
        self._sampler = sampler
        self._gpus = gpus
        self._lock = threading.Lock()
        self._pages: dict[str | None, Page] = {}
        self._moment: Moment | None = None
        self._text = b""

    def text(self) -> bytes:
        """Return the exposition of the newest tick."""
        with self._lock:
            moment = self._sampler.board.moment()
            if moment is not self._moment:
                self._text, self._moment = self._rendered(moment), moment
            return self._text

    def answer(self, path: str) -> Answer:
        """Return what is said to who asks for a path."""
        if path == "/metrics":
            return Answer(200, self.text(), CONTENT_TYPE)
        if path == "/-/healthy":
            return Answer(200, b"ok\n")
        if path == "/-/ready":
            return Answer(200, b"ok\n") if self._is_ready else Answer(503, b"not yet\n")
        return Answer(404, b"/metrics, /-/healthy, /-/ready\n")

    def _rendered(self, moment: Moment) -> bytes:
        pages: dict[str | None, Page] = {}
        found: dict[bytes, list[bytes]] = {}
        for part in moment.parts:
            page = pages[part.run] = self._pages.get(part.run) or Page(part)
            page.turn(part)
            for block in page.blocks:
                found.setdefault(block.header, [block.header]).append(block.text)
        self._pages = pages
        texts = [text for texts in found.values() for text in texts]
        texts += map(written, others(self._sampler, moment, self._gpus))
        return b"".join(texts)

    @property
    def _is_ready(self) -> bool:
        """True once something was sampled and the store takes it."""
        return self._sampler.counts.ticks > 0 and not self._sampler.store_error


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

        Raises DaemonError when the port is taken.
        """
        try:
            self._server = Server(address, _Renderer(sampler, gpus).answer)
        except OSError as error:
            raise DaemonError(
                f"cannot listen at {address[0]}:{address[1]}: {error.strerror}",
                hint="export MEMPLAN_PROMETHEUS=9401",
            ) from error
        self.port = self._server.port
        """Where it listens."""
        self._thread = threading.Thread(
            target=self._server.serve, name="memplan-prometheus", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError:
            self._server.close()
            raise
        _log.info("answering scrapes at http://%s:%d/metrics", address[0], self.port)

    def close(self) -> None:
        """Stop to listen."""
        self._server.close()
        self._thread.join()
