"""From readings to samples: the series of each run, kept so that a tick makes no new objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memplan_daemon.collectors.base import Event, Gap, Reading

from memplan.store.batch import Instant
from memplan.types import Series

__all__ = ["Found", "Layouts"]

Found = Sequence[Reading | Gap | Event]
"""What one collector has found."""

_MOST_SERIES = 20_000
"""Series objects kept per run; processes that come and go would make ever more."""

_MOST_LAYOUTS = 16
"""Sets of series kept per run: there is one for each pace, until a process comes or goes."""

_Names = tuple[str, str]
"""Entity and metric."""


@dataclass(slots=True)
class _Known:
    """What was found for one run in the last tick, and what became of it."""

    groups: list[Found] | None
    """What each collector found; None = nothing that may be taken for found again."""
    series: tuple[Series, ...]
    values: list[int]
    events: list[Event]


class Layouts:
    """Turns what collectors found into instants.

    What is found again costs next to nothing, and the same set of series is the same tuple: that
    spares the store to look each of them up.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self._series: dict[str | None, dict[_Names, Series]] = {}
        self._layouts: dict[str | None, dict[tuple[_Names, ...], tuple[Series, ...]]] = {}
        self._known: dict[str | None, _Known] = {}

    def sort_out(
        self, run_id: str | None, t_ns: int, groups: list[Found]
    ) -> tuple[list[Instant], list[Event]]:
        """Return the samples and the events of what all collectors have found of one run.

        Args:
            run_id: the run; None = the host.
            t_ns: when.
            groups: what each collector found.
        """
        known = self._known.get(run_id)
        if known is None or known.groups != groups:
            known = self._known[run_id] = self._look_through(run_id, groups)
        samples = [Instant(t_ns, known.series, known.values)] if known.values else []
        return samples, known.events

    def instant(self, run_id: str | None, t_ns: int, readings: Sequence[Reading]) -> Instant:
        """Return readings, at least one, as an instant."""
        values = [reading.value for reading in readings]
        return Instant(t_ns, self._layout(run_id, readings), values)

    def forget(self, run_id: str) -> None:
        """Let go of a run."""
        for kept in (self._series, self._layouts, self._known):
            kept.pop(run_id, None)

    def _look_through(self, run_id: str | None, groups: list[Found]) -> _Known:
        items = [item for group in groups for item in group]
        readings = [item for item in items if isinstance(item, Reading)]
        events = [item for item in items if isinstance(item, Event)]
        values = [reading.value for reading in readings]
        return _Known(None if events else groups, self._layout(run_id, readings), values, events)

    def _layout(self, run_id: str | None, readings: Sequence[Reading]) -> tuple[Series, ...]:
        layouts = self._layouts.setdefault(run_id, {})
        key = tuple((reading.entity, reading.metric) for reading in readings)
        series = layouts.get(key)
        if series is None:
            if len(layouts) >= _MOST_LAYOUTS:
                layouts.clear()
            series = layouts[key] = tuple(self._one(run_id, *names) for names in key)
        return series

    def _one(self, run_id: str | None, entity: str, metric: str) -> Series:
        """Return the one object of a series; its equals would be compared field by field."""
        known = self._series.setdefault(run_id, {})
        series = known.get((entity, metric))
        if series is None:
            if len(known) > _MOST_SERIES:
                known.clear()
            series = Series(run_id=run_id, entity=entity, metric=metric)
            known[entity, metric] = series
        return series
