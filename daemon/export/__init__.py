"""Where the newest readings go besides the store: Prometheus, OpenTelemetry. Both off by default.

Both render what the sampler has read last; neither makes it read anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from memplan_daemon.collectors.gpu import GpuCollector
from memplan_daemon.sampler import Sampler

from memplan.errors import DaemonError

__all__ = ["Exporter", "Exporters"]


class Exporter(Protocol):
    """Something that runs until it is closed."""

    def close(self) -> None:
        """End it."""
        ...


class Exporters:
    """Starts and ends exporters as the settings say."""

    def __init__(self, sampler: Sampler, gpus: Sequence[GpuCollector]) -> None:
        """Begin with none.

        Args:
            sampler: has the newest readings.
            gpus: know the names and states of devices.
        """
        self._sampler = sampler
        self._gpus = gpus
        self._running: dict[object, Exporter] = {}

    def apply(self, prometheus: tuple[str, int] | None, otlp: str) -> None:
        """Let exactly these run; one that runs already and stays is left alone.

        Args:
            prometheus: loopback address and port; None = off.
            otlp: URL to push to; "" = off.

        Raises MissingDependencyError without the package, DaemonError when the port is taken or no
        thread can be started; then everything is as before.
        """
        wanted: list[object] = [key for key in (prometheus, otlp) if key]
        started: dict[object, Exporter] = {}
        try:
            for key in wanted:
                if key not in self._running:
                    started[key] = self._start(key)
        except BaseException:
            for exporter in started.values():
                exporter.close()
            raise
        for key in [key for key in self._running if key not in wanted]:
            self._running.pop(key).close()
        self._running |= started

    def close(self) -> None:
        """End all."""
        for exporter in self._running.values():
            exporter.close()
        self._running = {}

    def _start(self, key: object) -> Exporter:
        try:
            return self._make(key)
        except RuntimeError as error:  # Python's own word for a limit of threads that is reached
            raise DaemonError(
                f"cannot start what answers or pushes for {key}: {error}",
                hint="raise the limit of processes (TasksMax=), then memplan daemon reload",
            ) from error

    def _make(self, key: object) -> Exporter:
        if isinstance(key, tuple):
            from memplan_daemon.export.prometheus import PrometheusExporter

            return PrometheusExporter(key, self._sampler, self._gpus)
        from memplan_daemon.export.otel import OtelExporter

        return OtelExporter(str(key), self._sampler)
