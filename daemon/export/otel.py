"""OpenTelemetry: gauges that are pushed to a collector by the SDK.

Names of GPU memory by the semantic conventions for hardware (status: development); there is none
for the memory of runs and processes, so those are memplan's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from memplan_daemon.export.families import place
from memplan_daemon.sampler import Sampler
from memplan_daemon.snapshot import Key

from memplan import __version__
from memplan.errors import MissingDependencyError

__all__ = ["OtelExporter"]

PUSH_S = 15.0
"""Seconds between two pushes."""

CLOSE_S = 0.5
"""Seconds that the last push may take: the daemon ends within two."""

_GPU = {
    "hw.gpu.memory.usage": ("used_bytes", "By"),
    "hw.gpu.memory.limit": ("total_bytes", "By"),
    "hw.gpu.utilization": ("utilization_percent", "1"),
}
_OWN = {
    "memplan.host.memory.usage": (None, "host", "used_bytes"),
    "memplan.run.memory.usage": ("run", "tree", "rss_bytes"),
    "memplan.run.memory.peak": ("run", "tree", "hwm_bytes"),
    "memplan.run.gpu.memory.usage": ("run", "gpu", "used_bytes"),
    "memplan.run.torch.allocated": ("run", "torch", "allocated_bytes"),
    "memplan.run.torch.reserved": ("run", "torch", "reserved_bytes"),
}
"""Instrument -> (needs a run, kind of entity, metric)."""


class OtelExporter:
    """Pushes until it is closed."""

    def __init__(self, url: str, sampler: Sampler, reader: Any | None = None) -> None:
        """Begin to push.

        Args:
            url: of an OTLP/HTTP receiver: http://localhost:4318/v1/metrics.
            sampler: has the newest readings.
            reader: takes the metrics instead of pushing them; for tests.

        Raises MissingDependencyError without the SDK.
        """
        try:
            from opentelemetry.sdk.metrics import MeterProvider
            from opentelemetry.sdk.resources import Resource
        except ImportError as error:
            raise MissingDependencyError(
                "OpenTelemetry needs its SDK", hint="pip install 'memplan[otel]'"
            ) from error
        self._sampler = sampler
        resource = Resource.create({"service.name": "memplan", "service.version": __version__})
        self._provider = MeterProvider(
            metric_readers=[reader or _push(url)], resource=resource, shutdown_on_exit=False
        )
        meter = self._provider.get_meter("memplan", __version__)
        for name, (metric, unit) in _GPU.items():
            self._gauge(meter, name, unit, partial(self._gpu, metric))
        for name, (run, kind, metric) in _OWN.items():
            self._gauge(meter, name, "By", partial(self._own, run, kind, metric))

    def close(self) -> None:
        """Push what is left, for CLOSE_S at most, and end."""
        self._provider.shutdown(timeout_millis=CLOSE_S * 1000)

    @staticmethod
    def _gauge(
        meter: Any, name: str, unit: str, read: Callable[[], Iterable[tuple[float, dict[str, str]]]]
    ) -> None:
        from opentelemetry.metrics import Observation

        def observe(options: Any) -> list[Observation]:
            del options
            return [Observation(value, labels) for value, labels in read()]

        meter.create_observable_gauge(name, callbacks=[observe], unit=unit)

    def _values(self) -> Iterable[tuple[Key, int]]:
        return self._sampler.board.snapshot().values.items()

    def _gpu(self, metric: str) -> Iterable[tuple[float, dict[str, str]]]:
        for (run, entity, name), value in self._values():
            if run is None and name == metric and entity.startswith("gpu:"):
                number = value / 100 if metric.endswith("_percent") else value
                yield number, {"hw.id": entity[4:], "hw.type": "gpu"}

    def _own(
        self, scope: str | None, kind: str, metric: str
    ) -> Iterable[tuple[float, dict[str, str]]]:
        for key, value in self._values():
            if (key[0] is None) != (scope is None) or key[2] != metric:
                continue
            where = place(key[0], key[1])
            scopes = {"tree": "run", "gpu": "run_gpu"}
            if where is not None and where[0] == scopes.get(kind, kind):
                labels = dict(zip(where[1], where[2], strict=True))
                yield value, {f"memplan.{k}": v for k, v in labels.items() if v}


def _push(url: str) -> Any:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    exporter = OTLPMetricExporter(endpoint=url, timeout=2)
    return PeriodicExportingMetricReader(
        exporter, export_interval_millis=PUSH_S * 1000, export_timeout_millis=2000
    )
