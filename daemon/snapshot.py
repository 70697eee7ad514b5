"""The newest reading of everything: what exporters and clients are shown, without a database."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from memplan_daemon.collectors.base import Event, Gap, Reading

__all__ = ["Board", "Key", "RunInfo", "Snapshot"]

Key = tuple[str | None, str, str]
"""(run id or None for the host, entity, metric)."""

_Item = TypeVar("_Item", Reading, Gap)
_Value = TypeVar("_Value", int, str)

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
    """One moment."""

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


Found = Sequence[tuple[str | None, Sequence[Reading | Gap | Event]]]
"""What the collectors have found in one tick, run by run."""


class _Layer:
    """One tick, looked through when somebody asks for the first time."""

    def __init__(self, found: Found) -> None:
        self._found = found

    @cached_property
    def values(self) -> dict[Key, int]:
        """Its numbers."""
        return {(run, r.entity, r.metric): r.value for run, r in self._items(Reading)}

    @cached_property
    def gaps(self) -> dict[Key, str]:
        """Its gaps."""
        return {(run, gap.entity, gap.metric): gap.state for run, gap in self._items(Gap)}

    def _items(self, kind: type[_Item]) -> Iterator[tuple[str | None, _Item]]:
        for run, items in self._found:
            for item in items:
                if isinstance(item, kind):
                    yield run, item


class Board:
    """Keeps the newest tick, and the newest ones with slower readings; puts them together late.

    `publish` is cheap, as it is called in every tick; `snapshot` may be called from any thread.
    """

    def __init__(self) -> None:
        """Begin empty."""
        empty = _Layer(())
        self._state = (0, 0, empty, empty, empty, dict[str, RunInfo]())
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

    def snapshot(self) -> Snapshot:
        """Return the newest state; the same object as long as nothing is newer."""
        t_ns, tick, fast, medium, rare, runs = self._state
        if self._cached.tick != tick:
            fresh = {key[:2] for key in fast.values}
            values = _alive(rare.values, fresh, runs)
            values |= _alive(medium.values, fresh, runs)
            values |= fast.values
            missing = _alive(medium.gaps, fresh, runs) | fast.gaps
            self._cached = Snapshot(
                t_ns=t_ns,
                tick=tick,
                values=values,
                gaps={key: state for key, state in missing.items() if key not in values},
                runs=runs,
            )
        return self._cached


def _alive(
    items: Mapping[Key, _Value], fresh: set[tuple[str | None, str]], runs: Mapping[str, RunInfo]
) -> dict[Key, _Value]:
    """Return older readings of what is still there."""
    there = {
        thing
        for thing in {key[:2] for key in items}
        if (thing[0] is None or thing[0] in runs)
        and (thing in fresh or not thing[1].startswith(_COMES_AND_GOES))
    }
    return {key: value for key, value in items.items() if key[:2] in there}
