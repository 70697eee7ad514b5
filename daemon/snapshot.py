"""The newest reading of everything: what exporters and clients are shown, without a database."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import compress
from operator import is_not

from memplan_daemon.collectors.base import Event, Gap, Reading

__all__ = ["Board", "Key", "Moment", "Names", "Part", "RunInfo", "Snapshot"]

Names = tuple[str, str]
"""(entity, metric)."""

Key = tuple[str | None, str, str]
"""(run id or None for the host, entity, metric)."""

Lists = Sequence[Sequence[Reading | Gap | Event]]
"""What each collector has found of one run in one tick."""

_COMES_AND_GOES = ("process:", "gpu:", "torch:")
"""Entities that are shown only while they answered in the newest tick."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """Whose a run is."""

    pid: int | None
    """First process."""
    uid: int | None
    """Owner of that process; None when it could not be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One moment, in one mapping."""

    t_ns: int = 0
    """When, wall clock."""
    tick: int = 0
    """Number of the tick; 0 = there was none yet."""
    values: Mapping[Key, int] = field(default_factory=dict)
    """Newest number of each series that is alive."""
    gaps: Mapping[Key, str] = field(default_factory=dict)
    """Why a number is missing."""
    runs: Mapping[str, RunInfo] = field(default_factory=dict)
    """The runs that are watched."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What is alive of one run, or of the host; the same object as long as none of it changes."""

    run: str | None
    """The run; None = the host."""
    places: Mapping[Names, int]
    """Where in `values` each series stands, in that order; the same object as long as no series
    comes or goes."""
    values: Sequence[int]
    """Newest number of each."""
    gaps: Mapping[Names, str]
    """Why a number is missing."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moment:
    """One moment, run by run: who keeps the last one sees by identity what is new."""

    t_ns: int = 0
    """When, wall clock."""
    tick: int = 0
    """Number of the tick; 0 = there was none yet."""
    parts: Sequence[Part] = ()
    """What is alive."""
    runs: Mapping[str, RunInfo] = field(default_factory=dict)
    """The runs that are watched."""


Found = Sequence[tuple[str | None, Sequence[Reading | Gap | Event]]]
"""What the collectors have found in one tick, run by run."""


class _Layer:
    """One tick, looked through when somebody asks for the first time."""

    def __init__(self, found: Found) -> None:
        self._found = found

    @cached_property
    def lists(self) -> dict[str | None, Lists]:
        """What was found of each run."""
        every: dict[str | None, list[Sequence[Reading | Gap | Event]]] = {}
        for run, items in self._found:
            every.setdefault(run, []).append(items)
        return {**every}


@dataclass(frozen=True, slots=True)
class _Sources:
    """What a part is made of: the lists of three ticks; () where there are none that count."""

    rare: Lists
    medium: Lists
    fast: Lists
    """Of the newest tick."""


@dataclass(slots=True)
class _Made:
    """A part, and what it was made of."""

    sources: _Sources
    part: Part
    once: bool
    """No series was found twice in the newest tick."""


class Board:
    """Keeps the newest tick, and the newest ones with slower readings; puts them together late.

    `publish` is cheap, as it is called in every tick; all else may be called from any thread.
    """

    def __init__(self) -> None:
        """Begin empty."""
        empty = _Layer(())
        self._state = (0, 0, empty, empty, empty, dict[str, RunInfo]())
        self._lock = threading.Lock()
        self._made: dict[str | None, _Made] = {}
        self._moment = Moment()
        self._cached = Snapshot()

    def publish(
        self,
        *,
        t_ns: int,
        tick: int,
        due: Iterable[str],
        found: Found,
        runs: dict[str, RunInfo],
    ) -> None:
        """Put a tick up.

        Args:
            t_ns: when.
            tick: its number, from 1.
            due: slower paces that it contains.
            found: readings and gaps with the run they belong to; none of it changes any more.
            runs: what is watched.
        """
        layer = _Layer(found)
        _, _, _, medium, rare, _ = self._state
        medium = layer if "medium" in due else medium
        rare = layer if "rare" in due else rare
        self._state = (t_ns, tick, layer, medium, rare, runs)

    def moment(self) -> Moment:
        """Return the newest state, run by run; the same object as long as nothing is newer."""
        with self._lock:
            return self._newest()

    def snapshot(self) -> Snapshot:
        """Return the newest state in one mapping; the same object as long as nothing is newer."""
        with self._lock:
            now = self._newest()
            if self._cached.tick != now.tick:
                self._cached = Snapshot(
                    t_ns=now.t_ns,
                    tick=now.tick,
                    values={
                        (part.run, *names): value
                        for part in now.parts
                        for names, value in zip(part.places, part.values, strict=True)
                    },
                    gaps={
                        (part.run, *names): state
                        for part in now.parts
                        for names, state in part.gaps.items()
                    },
                    runs=now.runs,
                )
            return self._cached

    def _newest(self) -> Moment:
        t_ns, tick, fast, medium, rare, runs = self._state
        if self._moment.tick != tick:
            made = {}
            for run in {**rare.lists, **medium.lists, **fast.lists}:
                watched = run is None or run in runs
                sources = _Sources(
                    rare.lists.get(run, ()) if watched else (),
                    medium.lists.get(run, ()) if watched else (),
                    fast.lists.get(run, ()),
                )
                made[run] = _made(run, sources, self._made.get(run))
            self._made = made
            parts = [one.part for one in made.values() if one.part.places or one.part.gaps]
            self._moment = Moment(t_ns=t_ns, tick=tick, parts=parts, runs=runs)
        return self._moment


def _made(run: str | None, sources: _Sources, before: _Made | None) -> _Made:
    """Return a run's part: what has moved in the one before, where that is all that happened."""
    if before is None:
        return _anew(run, sources, None)
    was = before.sources
    same = sources.rare is was.rare and sources.medium is was.medium and before.once
    moved = _moved(sources.fast, was.fast) if same else None
    if moved is None:
        return _anew(run, sources, before.part)
    part = before.part
    if moved:
        values = list(part.values)
        for reading in moved:
            values[part.places[reading[:2]]] = reading[2]
        part = Part(run, part.places, values, part.gaps)
    return _Made(sources, part, once=True)


def _moved(now: Lists, then: Lists) -> list[Reading] | None:
    """Return the readings with other values; None where more than values is another.

    What did not change is mostly the same object, and needs no second look.
    """
    if len(now) != len(then):
        return None
    found = []
    for items, last in zip(now, then, strict=True):
        if items is last:
            continue
        if len(items) != len(last):
            return None
        for i in compress(range(len(items)), map(is_not, items, last)):
            item, before = items[i], last[i]
            if item == before:
                continue
            if type(item) is not Reading or type(before) is not Reading or item[:2] != before[:2]:
                return None
            found.append(item)
    return found


def _anew(run: str | None, sources: _Sources, before: Part | None) -> _Made:
    """Return a run's part, with as much of the one before as is the same."""
    readings = list(_readings(sources.fast))
    newest = {reading[:2]: reading[2] for reading in readings}
    fresh = {entity for entity, _ in newest}
    values: dict[Names, int] = {}
    missing: dict[Names, str] = {}
    for older in (sources.rare, sources.medium):
        if older is not sources.fast:
            values |= {r[:2]: r[2] for r in _readings(older) if _is_alive(r[0], fresh)}
    values |= newest
    missing = {gap[:2]: gap[2] for gap in _gaps(sources.medium) if _is_alive(gap[0], fresh)}
    missing |= {gap[:2]: gap[2] for gap in _gaps(sources.fast)}
    gaps = {names: state for names, state in missing.items() if names not in values}
    part = Part(run, dict(zip(values, range(len(values)), strict=True)), [*values.values()], gaps)
    return _Made(sources, _like(part, before), once=len(newest) == len(readings))


def _like(part: Part, before: Part | None) -> Part:
    """Return a part made of the objects of the one before, where they are equal."""
    if before is None or list(part.places) != list(before.places):
        return part
    if part.values == before.values and part.gaps == before.gaps:
        return before
    return Part(part.run, before.places, part.values, part.gaps)


def _readings(lists: Lists) -> Iterator[Reading]:
    return (item for items in lists for item in items if type(item) is Reading)


def _gaps(lists: Lists) -> Iterator[Gap]:
    return (item for items in lists for item in items if type(item) is Gap)


def _is_alive(entity: str, fresh: set[str]) -> bool:
    """Tell whether an older reading is of what is still there."""
    return entity in fresh or not entity.startswith(_COMES_AND_GOES)
