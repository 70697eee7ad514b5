"""What both backends share: a reading or the reason why there is none, and what of it is new.

A GPU may hold hundreds of processes of which one moves in a second, so an answer says what is new
since the last one: the child's `Told` makes it out of devices, the daemon's `Heard` makes devices
of it again. Over the socket go, of a device, the fields that changed since the last answer to the
same question; "moved": {METRIC: NUMBER, ...} where it has the same metrics as before; and, whatever
was asked, of its processes "changes": [[PID, BYTES or null], ..., PID, ...] with a bare number for
each that is gone, or "processes": [[PID, BYTES or null], ...] that replaces the list, null = none.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

__all__ = ["Device", "Entry", "Heard", "Listing", "Processes", "Told", "reply"]

Entry = Mapping[str, Any]
"""A device as the daemon knows it: the names of `Device`'s fields with their values."""

Processes = Mapping[int, int | None]
"""Process id -> bytes, None where the driver has no number."""

_FIELDS = ("uuid", "name", "parent", "state", "values", "missing")
"""Those of a device that are told as they are."""

_NEVER = object()
_versions = count(1)


class Listing:
    """A device's processes as they are, and what of them changed last."""

    def __init__(self) -> None:
        """Begin with an empty list."""
        self.pairs: dict[int, int | None] = {}
        """Process id -> bytes, None where the driver has no number."""
        self.changes: list[Any] = []
        """[pid, bytes] of what came or changed last, and the bare pid of what went."""
        self.version = next(_versions)
        """Another number for each state of each list."""
        self.before = 0
        """Its version without `changes`."""

    def replace(self, pairs: dict[int, int | None]) -> None:
        """Take a whole list."""
        was = self.pairs.get
        changes: list[Any] = [[p, used] for p, used in pairs.items() if was(p, _NEVER) != used]
        changes += self.pairs.keys() - pairs.keys()
        self.pairs = pairs
        self._note(changes)

    def update(self, pairs: Processes) -> None:
        """Take what some of the processes have; all others stay."""
        was = self.pairs.get
        changes = [[pid, used] for pid, used in pairs.items() if was(pid, _NEVER) != used]
        self.pairs.update(pairs)
        self._note(changes)

    def _note(self, changes: list[Any]) -> None:
        if changes:
            self.changes, self.before, self.version = changes, self.version, next(_versions)


@dataclass(slots=True, kw_only=True)
class Device:
    """One GPU, or one partition of it, as it answered."""

    uuid: str
    """Its own name, which no restart changes."""
    name: str
    """Product name."""
    parent: str | None = None
    """The GPU that a MIG device is a part of."""
    state: str = "ok"
    """"lost" when it does not answer at all."""
    values: dict[str, int] = field(default_factory=dict)
    """Metric -> number."""
    missing: dict[str, str] = field(default_factory=dict)
    """Metric -> "not-supported", "no-permission", "lost" or "failed"."""
    processes: Listing | None = None
    """None = no list."""

    def take(self, metric: str, value: int | None) -> None:
        """Keep a number, or note that this device has none, or nonsense (beyond 64 bits)."""
        if value is None:
            self.missing[metric] = "not-supported"
        elif not -(2**63) <= value < 2**63:
            self.missing[metric] = "failed"
        else:
            self.values[metric] = int(value)

    def attempt(
        self, metric: str, reason: Callable[..., str], read: Callable[..., Any], *arguments: Any
    ) -> None:
        """Read one metric; an error is noted for this metric and harms no other.

        Args:
            metric: its name.
            reason: turns an exception into a state, or raises it when everything must start anew.
            read: returns the number, None where there is none.
            arguments: what `read` is called with.
        """
        try:
            value = read(*arguments)
        except Exception as error:  # noqa: BLE001 - `reason` raises what it does not know
            self.missing[metric] = reason(error)
        else:
            self.take(metric, value)


def reply(
    state: str,
    *,
    reason: str = "",
    driver: str = "",
    devices: Sequence[Device] = (),
    events: Sequence[Any] = (),
) -> dict[str, Any]:
    """Return an answer's body.

    Args:
        state: "ok", "absent" (no library, no driver: nothing is wrong) or "failed".
        reason: why, in words.
        driver: the driver's version.
        devices: what was read; `Told` says what of it is new.
        events: (UUID, kind, code, wall clock ns) of what happened.
    """
    return {"state": state, "reason": reason, "driver": driver, "gpus": devices, "events": events}


class Told:
    """The child's memory of what it said."""

    def __init__(self) -> None:
        """Begin with nothing said."""
        self._last: dict[Hashable, Sequence[Device]] = {}
        self._versions: dict[str, int] = {}
        """UUID -> version of the list of processes that was told last; 0 = that there is none."""

    def news(self, question: Hashable, devices: Sequence[Device]) -> list[dict[str, Any]]:
        """Return of each device what is new; all fields where the devices are others.

        Args:
            question: what was asked; answers to different questions have different metrics.
            devices: as they are now.
        """
        told = _changes(self._last.get(question, ()), devices)
        self._last[question] = devices
        versions = self._versions
        if told is None or not devices:
            told = [{name: getattr(device, name) for name in _FIELDS} for device in devices]
            versions = {device.uuid: self._versions.get(device.uuid, 0) for device in devices}
            self._versions = versions
        for device, entry in zip(devices, told, strict=True):
            listing = device.processes
            was = versions.get(device.uuid, 0)
            version = versions[device.uuid] = listing.version if listing is not None else 0
            if version == was:
                continue
            if listing is None:
                entry["processes"] = None
            elif listing.before == was != 0:
                entry["changes"] = listing.changes
            else:
                entry["processes"] = list(listing.pairs.items())
        return told


def _changes(before: Sequence[Device], devices: Sequence[Device]) -> list[dict[str, Any]] | None:
    """Return what changed of each device but its processes; None where they are others."""
    if len(before) != len(devices):
        return None
    told = []
    for was, now in zip(before, devices, strict=True):
        if was.uuid != now.uuid or was.name != now.name or was.parent != now.parent:
            return None
        entry: dict[str, Any] = {}
        old, values = was.values, now.values
        if old.keys() != values.keys():
            entry["values"] = values
        elif moved := {metric: n for metric, n in values.items() if old[metric] != n}:
            entry["moved"] = moved
        if was.missing != now.missing:
            entry["missing"] = now.missing
        if was.state != now.state:
            entry["state"] = now.state
        told.append(entry)
    return told


class Heard:
    """The daemon's memory of what a child said."""

    def __init__(self) -> None:
        """Begin with nothing heard."""
        self._last: dict[Hashable, list[Entry]] = {}
        self._processes: dict[str, Processes | None] = {}

    def whole(self, question: Hashable, news: Sequence[dict[str, Any]]) -> Sequence[Entry]:
        """Return the devices of which `Told.news` has made `news`.

        Processes are a dict {pid: bytes or None}, or None where there is no list: another object
        whenever something in it changed, and only then. An entry without news is the same object
        as in the last answer to that question.

        Args:
            question: what was asked.
            news: what came; it belongs to the devices from now on.

        Raises KeyError, TypeError or ValueError for what `Told` cannot have made.
        """
        before: list[Entry]
        if news and "uuid" not in news[0]:
            before = self._last[question]
        else:
            before = [{name: entry[name] for name in _FIELDS} for entry in news]
            known = self._processes
            self._processes = {old["uuid"]: known.get(old["uuid"]) for old in before}
        self._last[question] = entries = list(map(self._one, before, news))
        if len(entries) != len(before) or len(entries) != len(news):
            raise ValueError(f"{len(before)} devices were known, {len(news)} were told")
        return entries

    def _one(self, old: Entry, news: dict[str, Any]) -> Entry:
        uuid = old["uuid"]
        processes = self._processes.get(uuid)
        if "changes" in news:
            processes = self._processes[uuid] = _patched(processes, news.pop("changes"))
        elif "processes" in news:
            told = news["processes"] if news["processes"] is None else dict(news["processes"])
            if told != processes:
                processes = self._processes[uuid] = told
        elif not news and processes is old["processes"]:
            return old
        if "moved" in news:
            news["values"] = {**old["values"], **news.pop("moved")}
        return {**old, **news, "processes": processes}


def _patched(before: Processes | None, changes: Sequence[Any]) -> Processes:
    if before is None:
        raise ValueError("changes of a list that is not known")
    now = dict(before)
    for item in changes:
        if isinstance(item, int):
            del now[item]
        else:
            pid, used = item
            now[pid] = used
    return now
