"""Prometheus's text of one part of a moment: written once by the official client, then kept up.

The client writes every series anew each time: for the 1500 of a large host that takes ten times as
long as to write other numbers into the few lines that moved.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import compress
from operator import is_not
from typing import Any, NamedTuple

from memplan_daemon.export.families import Family, family_of, place
from memplan_daemon.snapshot import Part

from memplan.errors import MissingDependencyError

__all__ = ["Block", "Client", "Page"]


class _Metrics(NamedTuple):
    """What the client writes in one go."""

    metrics: list[Any]

    def collect(self) -> list[Any]:
        """Return it."""
        return self.metrics


class Client:
    """The official client, as far as it writes text."""

    def __init__(self) -> None:
        """Load it. Raises MissingDependencyError where it is not installed."""
        try:
            from prometheus_client import core, exposition
        except ImportError as error:
            raise MissingDependencyError(
                "the Prometheus endpoint needs prometheus-client",
                hint="pip install 'memplan[prometheus]'",
            ) from error
        self._core, self._exposition = core, exposition
        self.content_type = exposition.CONTENT_TYPE_LATEST

    def written(self, families: Iterable[Family]) -> bytes:
        """Return families with all their series; half a character in a label becomes "?"."""
        metrics = []
        for family in families:
            counter, gauge = self._core.CounterMetricFamily, self._core.GaugeMetricFamily
            kind = counter if family.counter else gauge
            metric = kind(family.name, family.help, labels=family.labels)
            for labels, value in family.series:
                whole = [label.encode(errors="replace").decode() for label in labels]
                metric.add_metric(whole, value)
            metrics.append(metric)
        return bytes(self._exposition.generate_latest(_Metrics(metrics)))


@dataclass(slots=True, eq=False)
class Block:
    """The series of one metric of a part."""

    header: bytes
    """What stands above them; the same for the same metric of another run."""
    text: bytes
    """All of them, a line each."""
    factor: float
    """Our number times this is what is shown."""

    @classmethod
    def of(cls, client: Client, family: Family, factor: float) -> Block:
        """Return a metric with its series, which have our numbers."""
        *lines, _ = client.written([family]).split(b"\n")
        n = len(family.series)
        block = cls(b"".join(b"%b\n" % line for line in lines[:-n]), b"\n".join(lines[-n:]), factor)
        block.change((row, int(value)) for row, (_, value) in enumerate(family.series))
        return block

    def change(self, values: Iterable[tuple[int, int]]) -> None:
        """Write other numbers into (row, our number)."""
        lines = self.text.split(b"\n")
        for row, value in values:
            beginning, _, _ = lines[row].rpartition(b" ")
            number = value if self.factor == 1.0 else value * self.factor
            lines[row] = b"%b %b" % (beginning, str(number).encode())
        self.text = b"\n".join(lines)


class Page:
    """The text of one part, from moment to moment."""

    def __init__(self, client: Client, part: Part) -> None:
        """Write all of it."""
        self._client = client
        self._write(part)

    def turn(self, part: Part) -> None:
        """Become the text of a later part of the same run."""
        if part.names is not self._part.names:
            self._write(part)
        elif part is not self._part:
            self._change(part)

    def _write(self, part: Part) -> None:
        self._part = part
        places = {entity: place(part.run, entity) for entity, _ in part.names}
        families: dict[tuple[str, str], tuple[Family, float] | None] = {}
        where: list[tuple[tuple[str, str], int] | None] = []  # of each series: metric, row
        for (entity, metric), value in zip(part.names, part.values, strict=True):
            where.append(None)
            if (found := places[entity]) is None:
                continue
            scope, labels, label_values = found
            key = scope, metric
            if key not in families:
                families[key] = family_of(scope, labels, metric)
            if (known := families[key]) is not None:
                where[-1] = key, len(known[0].series)
                known[0].series.append((label_values, value))
        made = {
            key: Block.of(self._client, *known)
            for key, known in families.items()
            if known is not None
        }
        self.blocks = list(made.values())
        """What it is made of."""
        self._where = [None if at is None else (made[at[0]], at[1]) for at in where]

    def _change(self, part: Part) -> None:
        before, self._part = self._part, part
        changes: dict[Block, list[tuple[int, int]]] = {}
        for i in compress(range(len(part.values)), map(is_not, part.values, before.values)):
            if (at := self._where[i]) is not None:
                changes.setdefault(at[0], []).append((at[1], part.values[i]))
        for block, values in changes.items():
            block.change(values)
