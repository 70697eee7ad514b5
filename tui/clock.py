"""The clock of a replay: play, pause, speed, step, jump. Pure: time goes on when it is told so."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass, replace

__all__ = ["SPEEDS", "Replay", "parse_time"]

SPEEDS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
"""How much faster than the wall clock."""

STEPS = 50
"""Steps from the beginning of a stored window to its end, never shorter than a tenth second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Where in a stored window the screens stand."""

    start_ns: int
    """Begin of the window."""
    end_ns: int
    """End of the window."""
    at_ns: int
    """Position."""
    speed: float = 1.0
    """Seconds of the window in one second."""
    playing: bool = True
    """Does it go on by itself."""

    def advanced(self, elapsed_ns: int) -> Replay:
        """Return the clock some time later; at the end it stops."""
        if not self.playing:
            return self
        moved = self.jumped(self.at_ns + round(elapsed_ns * self.speed))
        return replace(moved, playing=moved.at_ns < self.end_ns)

    def jumped(self, at_ns: int) -> Replay:
        """Return the clock at another time, inside the window."""
        return replace(self, at_ns=min(max(at_ns, self.start_ns), self.end_ns))

    def stepped(self, steps: int) -> Replay:
        """Return the clock some steps further, paused."""
        step = max((self.end_ns - self.start_ns) // STEPS, 10**8)
        return replace(self.jumped(self.at_ns + steps * step), playing=False)

    def faster(self, steps: int) -> Replay:
        """Return the clock at the next higher (or lower) speed."""
        place = min(range(len(SPEEDS)), key=lambda i: abs(SPEEDS[i] - self.speed))
        return replace(self, speed=SPEEDS[min(max(place + steps, 0), len(SPEEDS) - 1)])

    def toggled(self) -> Replay:
        """Return the clock paused, or playing; at the end it begins anew."""
        if not self.playing and self.at_ns >= self.end_ns:
            return replace(self, at_ns=self.start_ns, playing=True)
        return replace(self, playing=not self.playing)

    @property
    def share(self) -> float:
        """Position from 0 to 1."""
        return (self.at_ns - self.start_ns) / max(self.end_ns - self.start_ns, 1)


_OFFSET = re.compile(r"([+-]?)(\d+(?:\.\d+)?)\s*(s|min|m|h|%)")
_DAYTIME = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?")
_FACTOR = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_time(words: str, clock: Replay) -> int | None:
    """Return the time that was typed; None when it is none.

    "14:03" or "14:03:22" is a local time of day at or after the window's begin; "90s", "5min",
    "1h" count from the begin, with a sign from the position; "50%" is a share of the window.
    """
    typed = words.strip().lower()
    if match := _OFFSET.fullmatch(typed):
        amount = float(match[2])
        if match[3] == "%":
            return clock.start_ns + round((clock.end_ns - clock.start_ns) * amount / 100)
        ns = round(amount * _FACTOR[match[3]] * 1e9)
        if match[1]:
            return clock.at_ns + (ns if match[1] == "+" else -ns)
        return clock.start_ns + ns
    match = _DAYTIME.fullmatch(typed)
    if match is None or int(match[1]) > 23 or int(match[2]) > 59 or int(match[3] or 0) > 59:
        return None
    begin = dt.datetime.fromtimestamp(clock.start_ns / 1e9).astimezone()
    wanted = begin.replace(
        hour=int(match[1]), minute=int(match[2]), second=int(match[3] or 0), microsecond=0
    )
    if wanted < begin.replace(microsecond=0):
        wanted += dt.timedelta(days=1)
    return round(wanted.timestamp()) * 10**9
