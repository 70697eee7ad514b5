"""What both backends share: a reading or the reason why there is none, and what of it is new."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Device", "Entry", "news", "reply", "whole"]

Entry = Mapping[str, Any]
"""A device as it goes over the socket: the names of `Device`'s fields with their values."""


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
    processes: list[tuple[int, int | None]] | None = None
    """(process id, bytes or None where the driver has no number); None = no list."""

    def entry(self) -> Entry:
        """Return its fields; they are not copied."""
        return {name: getattr(self, name) for name in self.__slots__}

    def take(self, metric: str, value: int | None) -> None:
        """Keep a number, or note that this device has none."""
        if value is None:
            self.missing[metric] = "not-supported"
        else:
            self.values[metric] = int(value)

    def attempt(self, metric: str, read: Callable[[], Any], reason: Callable[..., str]) -> None:
        """Read one metric; an error is noted for this metric and harms no other.

        Args:
            metric: its name.
            read: returns the number, None where there is none.
            reason: turns an exception into a state, or raises it when everything must start anew.
        """
        try:
            value = read()
        except Exception as error:  # noqa: BLE001 - `reason` raises what it does not know
            self.missing[metric] = reason(error)
        else:
            self.take(metric, value)


def reply(
    state: str, *, reason: str = "", driver: str = "", devices: tuple[Device, ...] = (), **more: Any
) -> dict[str, Any]:
    """Return an answer's body.

    Args:
        state: "ok", "absent" (no library, no driver: nothing is wrong) or "failed".
        reason: why, in words.
        driver: the driver's version.
        devices: what was read.
        more: further keys.
    """
    return {
        "state": state,
        "reason": reason,
        "driver": driver,
        "gpus": [device.entry() for device in devices],
        **more,
    }


def news(before: Sequence[Entry], now: Sequence[Entry]) -> Sequence[Entry]:
    """Return of each device the fields that changed; all of them when the devices are others.

    Args:
        before: the devices as they were at the last answer to the same question.
        now: as they are.
    """
    if [entry["uuid"] for entry in before] != [entry["uuid"] for entry in now]:
        return now
    return [
        {name: value for name, value in entry.items() if value != old[name]}
        for old, entry in zip(before, now, strict=True)
    ]


def whole(before: Sequence[Entry], changed: Sequence[Entry]) -> Sequence[Entry]:
    """Return the devices of which `news` has made `changed`; one without news stays the object.

    Raises ValueError or TypeError for what `news` cannot have made.
    """
    if not changed or any("uuid" in entry for entry in changed):
        return changed
    pairs = zip(before, changed, strict=True)
    return [{**old, **entry} if entry else old for old, entry in pairs]
