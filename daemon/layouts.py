"""From readings to samples: the series of each run, and which of them have something new."""

from __future__ import annotations

from collections.abc import Sequence

from memplan_daemon.collectors.base import Event, Gap, Reading, Steady

from memplan.store.batch import SMALL, Instant
from memplan.types import Series

__all__ = ["Found", "Layouts"]

Found = Sequence[Reading | Gap | Event]
"""What one collector has found."""

_MOST_SERIES = 20_000
"""Series objects kept per run; processes that come and go would make ever more."""

_MOST_RUNS = 1024
"""Runs that are remembered; one that is not begins with a tick in full."""

_MOST_LAYOUTS = 16
"""Sets of series kept per run: there is one for each pace, until a process comes or goes."""

_PROCESS = "process:"
"""So begin the names of what a large run has many of."""

_Names = tuple[str, str]
"""Entity and metric."""


class _Run:
    """What is remembered of one run."""

    __slots__ = ("last", "layouts", "series", "stored")

    def __init__(self) -> None:
        self.series: dict[_Names, Series] = {}
        self.layouts: dict[tuple[_Names, ...], tuple[Series, ...]] = {}
        self.last: list[Reading] | None = None
        """All that was read in the last tick that was not thin."""
        self.stored: dict[_Names, int] | None = None
        """The same, and what was stored since; None before the first thin tick behind it."""


class Layouts:
    """Turns what collectors found into instants.

    The same large set of series is the same tuple: that spares the store to look each of them up.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self._runs: dict[str | None, _Run] = {}

    def sort_out(
        self, run_id: str | None, t_ns: int, groups: Sequence[Found | Steady], *, thin: bool = False
    ) -> tuple[list[Instant], list[Event]]:
        """Return the samples and the events of what all collectors have found of one run.

        Args:
            run_id: the run; None = the host.
            t_ns: when.
            groups: what each collector found.
            thin: leave out of the samples what single processes have as it is stored already.
        """
        run = self._run(run_id)
        thin = thin and run.last is not None
        if thin and run.stored is None:
            run.stored = {reading[:2]: reading[2] for reading in run.last or ()}
        stored = run.stored if thin else None
        readings: list[Reading] = []
        events: list[Event] = []
        for group in groups:
            if isinstance(group, Steady):
                items = group.found if stored is None else group.news
                readings += [item for item in items if type(item) is Reading]
                continue
            there = [item for item in group if type(item) is Reading]
            if len(there) != len(group):
                events += [item for item in group if isinstance(item, Event)]
            readings += there if stored is None else _new(there, stored)
        if stored is None:
            run.last, run.stored = readings, None
        if not readings:
            return [], events
        key = tuple([reading[:2] for reading in readings])
        values = [reading[2] for reading in readings]
        if stored is not None:
            stored.update(zip(key, values, strict=True))
        return [Instant(t_ns, _series(run_id, run, key), values)], events

    def instant(self, run_id: str | None, t_ns: int, readings: Sequence[Reading]) -> Instant:
        """Return readings, at least one, as an instant."""
        key = tuple([reading[:2] for reading in readings])
        values = [reading[2] for reading in readings]
        return Instant(t_ns, _series(run_id, self._run(run_id), key), values)

    def forget(self, run_id: str) -> None:
        """Let go of a run."""
        self._runs.pop(run_id, None)

    def _run(self, run_id: str | None) -> _Run:
        run = self._runs.get(run_id)
        if run is None:
            if len(self._runs) >= _MOST_RUNS:  # of some only agents told, and nobody their end
                del self._runs[next(iter(self._runs))]
            run = self._runs[run_id] = _Run()
        return run


def _series(run_id: str | None, run: _Run, key: tuple[_Names, ...]) -> tuple[Series, ...]:
    """Return the series of these names; of many, the same tuple each time."""
    if len(key) < SMALL:
        return _made(run_id, run, key)
    series = run.layouts.get(key)
    if series is None:
        if len(run.layouts) >= _MOST_LAYOUTS:
            run.layouts.clear()
        series = run.layouts[key] = _made(run_id, run, key)
    return series


def _made(run_id: str | None, run: _Run, key: tuple[_Names, ...]) -> tuple[Series, ...]:
    """Return the one object of each series; its equals would be compared field by field."""
    known = run.series
    if len(known) > _MOST_SERIES:
        known.clear()
    for names in key:
        if names not in known:
            known[names] = Series(run_id=run_id, entity=names[0], metric=names[1])
    return tuple(map(known.__getitem__, key))


def _new(readings: Sequence[Reading], stored: dict[_Names, int]) -> list[Reading]:
    """Return the readings of single processes that are not stored already, and all others."""
    return [
        reading
        for reading in readings
        if stored.get(reading[:2]) != reading[2] or not reading[0].startswith(_PROCESS)
    ]
