"""Prometheus's text of one part of a moment: written once by the official client, then kept up.

The client writes every series anew each time: for the 1500 of a large host that takes ten times as
long as to write other numbers into the few lines that moved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import compress
from operator import is_not
from typing import Any, NamedTuple

from memplan_daemon.export.families import Family, Place, family_of, place
from memplan_daemon.snapshot import Part

from memplan.errors import MissingDependencyError

__all__ = ["Beside", "Block", "Client", "Page"]


Labels = tuple[str, ...]
"""Values of a series' labels."""

_Metric = tuple[str, str]
"""(scope, our name)."""


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

    def written(self, family: Family) -> bytes:
        """Return a metric with all its series; half a character in a label becomes "?"."""
        kind = self._core.CounterMetricFamily if family.counter else self._core.GaugeMetricFamily
        metric = kind(family.name, family.help, labels=family.labels)
        for labels, value in family.series:
            metric.add_metric([one.encode(errors="replace").decode() for one in labels], value)
        return bytes(self._exposition.generate_latest(_Metrics([metric])))


class Block:
    """The series of one metric of a part."""

    def __init__(
        self, client: Client, family: Family, factor: float, labels: Sequence[Labels]
    ) -> None:
        """Let the client write them.

        Args:
            client: writes what stands around the numbers.
            family: the metric, without series.
            factor: our number times this is what is shown.
            labels: the values of each series' labels.
        """
        self.labels = labels
        """Of each series."""
        whole = replace(family, series=[(values, 0) for values in labels])
        *lines, _ = client.written(whole).split(b"\n")
        self.header = b"".join(b"%b\n" % line for line in lines[: -len(labels)])
        """What stands above them; the same for the same metric of another run."""
        self.text = b"\n".join(lines[-len(labels) :])
        """All of them, a line each."""
        self._factor = factor
        self._shown: list[float | None] = [None] * len(labels)

    def show(self, values: Iterable[tuple[int, float]]) -> None:
        """Write our numbers, of each (row, number), where others stand."""
        shown = self._shown
        other = [(row, value) for row, value in values if shown[row] != value]
        if not other:
            return
        lines = self.text.split(b"\n")
        for row, value in other:
            beginning, _, _ = lines[row].rpartition(b" ")
            number = value if self._factor == 1.0 else value * self._factor
            lines[row] = b"%b %b" % (beginning, str(number).encode())
            shown[row] = value
        self.text = b"\n".join(lines)


def _block(
    known: Block | None, client: Client, family: Family, factor: float, labels: Sequence[Labels]
) -> Block:
    """Return the block that is known while its series are these, otherwise another one."""
    same = known is not None and known.labels == labels
    return known if known is not None and same else Block(client, family, factor, labels)


class Beside:
    """The text of what is shown beside a moment's numbers: few series, that stay for long."""

    def __init__(self, client: Client) -> None:
        """Begin empty."""
        self._client = client
        self._blocks: dict[str, Block] = {}

    def turn(self, families: Iterable[Family]) -> Iterable[Block]:
        """Return these metrics; one without series is not shown."""
        blocks = {}
        for family in families:
            if not family.series:
                continue
            labels = [values for values, _ in family.series]
            known = self._blocks.get(family.name)
            block = blocks[family.name] = _block(known, self._client, family, 1.0, labels)
            block.show(enumerate(number for _, number in family.series))
        self._blocks = blocks
        return blocks.values()


class Page:
    """The text of one part, from moment to moment."""

    def __init__(self, client: Client, part: Part) -> None:
        """Write all of it."""
        self._client = client
        self._part = part
        self._places: dict[str, Place | None] = {}
        self._blocks: dict[_Metric, Block] = {}
        self._families: dict[_Metric, tuple[Family, float] | None] = {}
        self._write(part)

    @property
    def blocks(self) -> Iterable[Block]:
        """What it is made of."""
        return self._blocks.values()

    def turn(self, part: Part) -> None:
        """Become the text of a later part of the same run."""
        if part.names is not self._part.names:
            self._write(part)
        elif part is not self._part:
            before, self._part = self._part, part
            moved = map(is_not, part.values, before.values)
            self._show(compress(range(len(part.values)), moved))

    def _write(self, part: Part) -> None:
        """Write metrics whose series are others; the others keep their lines."""
        self._part = part
        known = self._places
        entities = {entity for entity, _ in part.names}
        self._places = {e: known[e] if e in known else place(part.run, e) for e in entities}
        found: dict[_Metric, list[Labels]] = {}
        self._where = [self._place(names, found) for names in part.names]
        blocks = {}
        for metric, labels in found.items():
            if (family := self._families[metric]) is not None:
                known_block = self._blocks.get(metric)
                blocks[metric] = _block(known_block, self._client, *family, labels)
        self._blocks = blocks
        self._show(range(len(part.values)))

    def _place(
        self, names: tuple[str, str], found: dict[_Metric, list[Labels]]
    ) -> tuple[_Metric, int] | None:
        """Return the metric and the row of a series, and note its labels; None: it is not shown."""
        where = self._places[names[0]]
        if where is None:
            return None
        metric = where[0], names[1]
        if metric not in self._families:
            self._families[metric] = family_of(where[0], where[1], names[1])
        if self._families[metric] is None:
            return None
        rows = found.setdefault(metric, [])
        rows.append(where[2])
        return metric, len(rows) - 1

    def _show(self, places: Iterable[int]) -> None:
        """Show the numbers of some of the part's series."""
        values: dict[_Metric, list[tuple[int, int]]] = {}
        for i in places:
            if (at := self._where[i]) is not None:
                values.setdefault(at[0], []).append((at[1], self._part.values[i]))
        for metric, rows in values.items():
            self._blocks[metric].show(rows)
