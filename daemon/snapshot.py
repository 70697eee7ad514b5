"""The newest reading of everything: what exporters and clients are shown, without a database."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import compress
from operator import is_not
from typing import TypeVar

from memplan_daemon.collectors.base import Event, Gap, Reading

__all__ = ["Board", "Key", "Moment", "Names", "Part", "RunInfo", "Snapshot"]

Names = tuple[str, str]
"""(entity, metric)."""

Key = tuple[str | None, str, str]
"""(run id or None for the host, entity, metric)."""

_Value = TypeVar("_Value", int, str)

Lists = Sequence[Sequence[Reading | Gap | Event]]
"""What each collector has found of one run in one tick."""

_COMES_AND_GOES = ("process:", "gpu:", "torch:")
"""Entities that are shown only while they answered in the newest tick."""

_MOST_LOOKS = 4
"""Looks kept per run."""


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
    names: Sequence[Names]
    """Of each series; the same object as long as none comes or goes."""
    values: Sequence[int]
    """Newest number of each; the same object where a reading is."""
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


@dataclass(frozen=True, slots=True, eq=False)
class _Look:
    """What all collectors have found of one run in one tick."""

    lists: Lists
    """As they have found it."""
    values: dict[Names, int]
    gaps: dict[Names, str]
    fresh: AbstractSet[str]
    """Entities that have a number."""
    fleeting: AbstractSet[str]
    """Entities that are shown only while they are fresh."""
    once: bool
    """No number was found twice."""


_NOTHING = _Look((), {}, {}, frozenset(), frozenset(), once=True)


@dataclass(slots=True)
class _Run:
    """One run, or the host, from moment to moment."""

    part: Part
    lists: Lists = ()
    """What the newest tick had found when the part was made."""
    looks: Sequence[_Look] = (_NOTHING, _NOTHING, _NOTHING)
    """What it was made of: a rare tick, a medium one, and one with the names of the newest."""
    places: dict[Names, int] = field(default_factory=dict)
    """Where in the part each series stands."""
    known: dict[tuple[int, ...], _Look] = field(default_factory=dict)
    """The last look at lists of these lengths: there are some for each pace, until a process comes
    or goes."""

    def update(self, rare: Lists, medium: Lists, fast: Lists) -> None:
        """Make the part of what three ticks have found, the newest one last."""
        last, self.lists = self.lists, fast
        of_rare, of_medium, newest = self.looks
        if of_rare.lists is rare and of_medium.lists is medium and newest.once:
            moved = _moved(fast, last)
            if moved is not None:
                self._step(moved)
                return
        self.looks = [
            look if look.lists is lists else self._look(lists)
            for look, lists in zip(self.looks, (rare, medium, fast), strict=True)
        ]
        self._merge()

    def _step(self, moved: Iterable[Reading]) -> None:
        """Let some numbers be others."""
        values = list(self.part.values)
        for reading in moved:
            values[self.places[reading[:2]]] = reading[2]
        if moved:
            self.part = Part(self.part.run, self.part.names, values, self.part.gaps)

    def _merge(self) -> None:
        """Put the part together of the looks, with as much of the one before as is the same."""
        rare, medium, fast = self.looks
        values = _alive(rare, rare.values, fast)
        if medium is not fast:
            values |= _alive(medium, medium.values, fast)
        for names in fast.gaps.keys() & values.keys():
            del values[names]  # what it was in an older tick is not what it is
        values |= fast.values
        missing = _alive(medium, medium.gaps, fast) | fast.gaps
        gaps = {names: state for names, state in missing.items() if names not in values}
        part, before = Part(self.part.run, [*values], [*values.values()], gaps), self.part
        if part.names != before.names:
            self.part, self.places = part, {names: i for i, names in enumerate(values)}
        elif part.values != before.values or part.gaps != before.gaps:
            self.part = Part(part.run, before.names, part.values, part.gaps)

    def _look(self, lists: Lists) -> _Look:
        """Look through what was found; what has not moved since the last time needs no look."""
        if not lists:
            return _NOTHING
        lengths = tuple(map(len, lists))
        before = self.known.get(lengths)
        if before is not None and before.lists is lists:
            return before
        moved = _moved(lists, before.lists) if before is not None and before.once else None
        if before is None or moved is None:
            if len(self.known) >= _MOST_LOOKS:
                self.known.clear()
            names = {names: names for look in self.known.values() for names in look.values}
            now = _looked(lists, names)
        else:
            values = {**before.values}
            values.update((reading[:2], reading[2]) for reading in moved)
            now = replace(before, lists=lists, values=values)
        self.known[lengths] = now
        return now


class Board:
    """Keeps the newest tick, and the newest ones with slower readings; puts them together late.

    `publish` is cheap, as it is called in every tick; all else may be called from any thread.
    """

    def __init__(self) -> None:
        """Begin empty."""
        empty = _Layer(())
        self._state = (0, 0, empty, empty, empty, dict[str, RunInfo]())
        self._lock = threading.Lock()
        self._runs: dict[str | None, _Run] = {}
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
                        for names, value in zip(part.names, part.values, strict=True)
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
            now = {}
            for run in {**rare.lists, **medium.lists, **fast.lists}:
                one = now[run] = self._runs.get(run) or _Run(Part(run, (), (), {}))
                lists = [layer.lists.get(run, ()) for layer in (rare, medium, fast)]
                is_watched = run is None or run in runs
                one.update(*(lists if is_watched else ((), (), lists[2])))
            self._runs = now
            parts = [one.part for one in now.values() if one.part.names or one.part.gaps]
            self._moment = Moment(t_ns=t_ns, tick=tick, parts=parts, runs=runs)
        return self._moment


def _moved(now: Lists, last: Lists) -> list[Reading] | None:
    """Return the readings with other values; None where more than values is another.

    What did not change is mostly the same object, list or reading, and needs no second look.
    """
    if list(map(len, now)) != list(map(len, last)):
        return None
    found = []
    for items, before in zip(now, last, strict=True):
        if items is before:
            continue
        for i in compress(range(len(items)), map(is_not, items, before)):
            item, was = items[i], before[i]
            if item == was:
                continue
            if type(item) is not Reading or type(was) is not Reading or item[:2] != was[:2]:
                return None
            found.append(item)
    return found


def _looked(lists: Lists, known: dict[Names, Names]) -> _Look:
    """Look through all; names that are known become the same objects, which compare at once."""
    items = [item for found in lists for item in found]
    readings = [item for item in items if type(item) is Reading]
    values = {known.get(names := r[:2], names): r[2] for r in readings}
    gaps: dict[Names, str] = {item[:2]: item[2] for item in items if type(item) is Gap}
    fleeting = {entity for entity, _ in (*values, *gaps) if entity.startswith(_COMES_AND_GOES)}
    fresh = {entity for entity, _ in values}
    return _Look(lists, values, gaps, fresh, fleeting, once=len(values) == len(readings))


def _alive(look: _Look, items: Mapping[Names, _Value], newest: _Look) -> dict[Names, _Value]:
    """Return older readings of what is still there."""
    ended = look.fleeting - newest.fresh
    if not ended:
        return {**items}
    return {names: value for names, value in items.items() if names[0] not in ended}
