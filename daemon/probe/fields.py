"""What both backends share: a reading or the reason why there is none, and what of it is new.

A GPU may hold hundreds of processes of which one moves in a second, so an answer says what is new
since the last one: the child's `Told` makes it out of devices, the daemon's `Heard` makes devices
of it again. Of a device the fields that changed since the last answer to the same question go over
the socket, and "moved": {METRIC: NUMBER, ...} of values that are the same metrics as before. Of its
processes go, whatever was asked, "processes": [[PID, BYTES or null], ..., GONE, ...] with a bare
number for each that is gone, or null where there is no list any more.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Device", "Entry", "Heard", "Processes", "Told", "reply"]

Entry = Mapping[str, Any]
"""A device as the daemon knows it: the names of `Device`'s fields with their values."""

Processes = Mapping[int, int | None]
"""Process id -> bytes, None where the driver has no number. Never changed: a new list is another
object."""

_FIELDS = ("uuid", "name", "parent", "state", "values", "missing")
"""Those of a device that are told as they are."""

_NEVER = object()


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
    processes: Processes | None = None
    """None = no list."""

    def take(self, metric: str, value: int | None) -> None:
        """Keep a number, or note that this device has none."""
        if value is None:
            self.missing[metric] = "not-supported"
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
        self._processes: Mapping[str, Processes | None] = {}

    def news(self, question: Hashable, devices: Sequence[Device]) -> list[dict[str, Any]]:
        """Return of each device what is new; all fields where the devices are others.

        Args:
            question: what was asked; answers to different questions have different metrics.
            devices: as they are now.
        """
        before, self._last[question] = self._last.get(question, ()), devices
        known = self._processes
        self._processes = {device.uuid: device.processes for device in devices}
        if list(map(_identity, before)) == list(map(_identity, devices)):
            told = list(map(_changes, before, devices))
        else:
            told = [{name: getattr(device, name) for name in _FIELDS} for device in devices]
        for device, entry in zip(devices, told, strict=True):
            was, now = known.get(device.uuid), device.processes
            if now is not was and now != was:
                entry["processes"] = None if now is None else _difference(was or {}, now)
        return told


def _identity(device: Device) -> tuple[str, str, str | None]:
    return device.uuid, device.name, device.parent


def _changes(before: Device, now: Device) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if now.values.keys() != before.values.keys():
        found["values"] = now.values
    elif moved := now.values.items() - before.values.items():
        found["moved"] = dict(moved)
    if now.missing != before.missing:
        found["missing"] = now.missing
    if now.state != before.state:
        found["state"] = now.state
    return found


def _difference(before: Processes, now: Processes) -> list[Any]:
    """Return [pid, bytes] of what is new or changed, and the bare pid of what is gone."""
    was = before.get
    found: list[Any] = [[pid, used] for pid, used in now.items() if was(pid, _NEVER) != used]
    if not before.keys() <= now.keys():
        found += before.keys() - now.keys()
    return found


class Heard:
    """The daemon's memory of what a child said."""

    def __init__(self) -> None:
        """Begin with nothing heard."""
        self._last: dict[Hashable, Sequence[Entry]] = {}
        self._processes: Mapping[str, Processes | None] = {}

    def whole(self, question: Hashable, news: Sequence[Mapping[str, Any]]) -> Sequence[Entry]:
        """Return the devices of which `Told.news` has made `news`.

        Processes are a mapping {pid: bytes or None}, or None where there is no list: another
        object whenever something in it changed, and only then. An entry without news is the same
        object as in the last answer to that question.

        Raises KeyError, TypeError or ValueError for what `Told` cannot have made.
        """
        before: Sequence[Entry]
        if news and "uuid" not in news[0]:
            before = self._last[question]
        else:
            before = [{name: entry[name] for name in _FIELDS} for entry in news]
        entries: list[Entry] = []
        for old, entry in zip(before, news, strict=True):
            processes = self._processes.get(old["uuid"])
            if "processes" in entry:
                processes = _patched(processes or {}, entry["processes"])
            if not entry and processes is old["processes"]:
                entries.append(old)
                continue
            now = {**old, **entry, "processes": processes}
            if moved := now.pop("moved", None):
                now["values"] = {**now["values"], **moved}
            entries.append(now)
        self._last[question] = entries
        self._processes = {entry["uuid"]: entry["processes"] for entry in entries}
        return entries


def _patched(before: Processes, difference: Sequence[Any] | None) -> Processes | None:
    if difference is None:
        return None
    now = dict(before)
    for item in difference:
        if isinstance(item, int):
            del now[item]
        else:
            pid, used = item
            now[pid] = used
    return now
