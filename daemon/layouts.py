"""From readings to samples: the series of each run, and which of them have something new."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_

from memplan_daemon.collectors.base import Event, Gap, Reading

from memplan.store.batch import SMALL, Instant
from memplan.types import Series

__all__ = ["Found", "Layouts"]

Found = Sequence[Reading | Gap | Event]
"""What one collector has found."""

_MOST_SERIES = 20_000
"""Series objects kept per run; processes that come and go would make ever more."""

_MOST_LAYOUTS = 16
"""Sets of series kept per run: there is one for each pace, until a process comes or goes."""

_PROCESS = "process:"
"""So begin the names of what a large run has many of."""

_Names = tuple[str, str]
"""Entity and metric."""


@dataclass(slots=True)
class _Known:
    """What was found for one run in the last tick, and what became of it."""

    groups: list[Found] | None
    """What each collector found; None = nothing that may be taken for found again."""
    readings: list[Reading]
    events: list[Event]
    full: tuple[tuple[Series, ...], list[int]] | None = None
    """All readings as series and values; None = not asked for yet."""
    stored: dict[_Names, Reading] | None = None
    """What is stored of each process; None = all of the readings."""
    always: list[int] | None = None
    """Where the readings stand that are stored in every tick; None = not asked for yet."""


class Layouts:
    """Turns what collectors found into instants.

    What is found again costs next to nothing, and the same large set of series is the same tuple:
    that spares the store to look each of them up.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self._series: dict[str | None, dict[_Names, Series]] = {}
        self._layouts: dict[str | None, dict[tuple[_Names, ...], tuple[Series, ...]]] = {}
        self._known: dict[str | None, _Known] = {}

    def sort_out(
        self, run_id: str | None, t_ns: int, groups: list[Found], *, thin: bool = False
    ) -> tuple[list[Instant], list[Event]]:
        """Return the samples and the events of what all collectors have found of one run.

        Args:
            run_id: the run; None = the host.
            t_ns: when.
            groups: what each collector found.
            thin: leave out of the samples what single processes have as it is stored already.
        """
        before = self._known.get(run_id)
        if before is None or before.groups != groups:
            now = self._known[run_id] = _look_through(groups)
        else:
            now = before
        if not thin or before is None:
            series, values = now.full = now.full or self._laid_out(run_id, now.readings)
            now.stored = None
        else:
            series, values = self._laid_out(run_id, _moved(before, now))
        return [Instant(t_ns, series, values)] if values else [], now.events

    def instant(self, run_id: str | None, t_ns: int, readings: Sequence[Reading]) -> Instant:
        """Return readings, at least one, as an instant."""
        return Instant(t_ns, *self._laid_out(run_id, readings))

    def forget(self, run_id: str) -> None:
        """Let go of a run."""
        for kept in (self._series, self._layouts, self._known):
            kept.pop(run_id, None)

    def _laid_out(
        self, run_id: str | None, readings: Sequence[Reading]
    ) -> tuple[tuple[Series, ...], list[int]]:
        """Return the series of readings, and their values."""
        key = tuple(reading[:2] for reading in readings)
        values = [reading[2] for reading in readings]
        if len(key) < SMALL:
            return self._made(run_id, key), values
        layouts = self._layouts.setdefault(run_id, {})
        series = layouts.get(key)
        if series is None:
            if len(layouts) >= _MOST_LAYOUTS:
                layouts.clear()
            series = layouts[key] = self._made(run_id, key)
        return series, values

    def _made(self, run_id: str | None, key: tuple[_Names, ...]) -> tuple[Series, ...]:
        """Return the one object of each series; its equals would be compared field by field."""
        known = self._series.setdefault(run_id, {})
        if len(known) > _MOST_SERIES:
            known.clear()
        for names in key:
            if names not in known:
                known[names] = Series(run_id=run_id, entity=names[0], metric=names[1])
        return tuple(map(known.__getitem__, key))


def _look_through(groups: list[Found]) -> _Known:
    items = [item for group in groups for item in group]
    readings = [item for item in items if type(item) is Reading]
    if len(readings) == len(items):
        return _Known(groups, readings, [])
    events = [item for item in items if isinstance(item, Event)]
    return _Known(None if events else groups, readings, events)


def _moved(before: _Known, now: _Known) -> list[Reading]:
    """Return what is stored in a thin tick, and note of each process what is stored by then."""
    now.stored = before.stored
    if len(now.readings) == len(before.readings):
        found = _moved_in_place(before, now)
        if found is not None:
            return found
    if now.stored is None:
        now.stored = {reading[:2]: reading for reading in before.readings}
    found = []
    for reading in now.readings:
        if now.stored.get(reading[:2]) != reading:
            now.stored[reading[:2]] = reading
            found.append(reading)
        elif not reading.entity.startswith(_PROCESS):
            found.append(reading)
    return found


def _moved_in_place(before: _Known, now: _Known) -> list[Reading] | None:
    """Return the same where each reading stands where it stood before; None where it does not.

    A reading that is still the same object needs no look-up, and most are.
    """
    readings, last = now.readings, before.readings
    others = [i for i, same in enumerate(map(is_, readings, last)) if not same]
    if any(readings[i][:2] != last[i][:2] for i in others):
        return None
    if before.always is None:
        names = enumerate(readings)
        before.always = [i for i, reading in names if not reading[0].startswith(_PROCESS)]
    now.always = before.always
    changed = [i for i in others if readings[i][2] != last[i][2]]
    if now.stored is not None:
        now.stored |= {readings[i][:2]: readings[i] for i in changed}
    return [readings[i] for i in sorted({*changed, *now.always})]
