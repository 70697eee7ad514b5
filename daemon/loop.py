"""The one thread of the daemon and of `memplan run`: waits for clients and the next tick."""

from __future__ import annotations

import logging
import selectors
import time
from collections.abc import Callable
from typing import Protocol

from memplan_daemon.sampler import Sampler

__all__ = ["HasDescriptor", "Loop"]

_log = logging.getLogger("memplan.daemon")

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE


class HasDescriptor(Protocol):
    """A socket, or anything else with a descriptor."""

    def fileno(self) -> int:
        """Return the descriptor."""
        ...


_BREATH_S = 0.05
"""Pause after a round for which there was no memory, so that it is not tried at full speed."""

Source = int | HasDescriptor
Callback = Callable[[], None]


class Loop:
    """Calls back what became ready, and ticks the sampler when it is due.

    Nothing runs beside it: a callback that takes long makes the next tick late, and is seen in
    the sampler's count of late ticks.
    """

    def __init__(self, sampler: Sampler) -> None:
        """Make a loop around a sampler."""
        self._sampler = sampler
        self._selector = selectors.DefaultSelector()
        self._idle: list[Callback] = []
        self._stopped = False
        self._starved = False

    def add(self, source: Source, callback: Callback, events: int = READ) -> None:
        """Call back whenever a descriptor is readable (or, by `events`, writable)."""
        self._selector.register(source, events, callback)

    def change(self, source: Source, callback: Callback, events: int) -> None:
        """Wait for something else on a descriptor."""
        self._selector.modify(source, events, callback)

    def remove(self, source: Source) -> None:
        """Forget a descriptor; it must still be open."""
        self._selector.unregister(source)

    def each_round(self, callback: Callback) -> None:
        """Call back once in every round: after each event, and at least at each tick."""
        self._idle.append(callback)

    def forget(self, callback: Callback) -> None:
        """Do not call back in every round any more."""
        self._idle.remove(callback)

    def stop(self) -> None:
        """End `run` after the current round."""
        self._stopped = True

    def run(self, longest_s: float = 3600.0) -> None:
        """Go round until `stop`.

        Args:
            longest_s: longest wait of one round, in seconds.
        """
        while not self._stopped:
            self.round(longest_s)

    def round(self, longest_s: float) -> None:
        """Wait once, answer what is ready, tick if it is due; without memory, as far as it goes."""
        try:
            self._round(longest_s)
        except MemoryError:
            if not self._starved:
                _log.warning("out of memory: what needs it is left out")  # once
            self._starved = True
            time.sleep(_BREATH_S)

    def _round(self, longest_s: float) -> None:
        timeout = min(self._sampler.due_in_s(), longest_s)
        for key, _ in self._selector.select(timeout):
            key.data()
        for callback in self._idle:
            callback()
        if not self._stopped and self._sampler.due_in_s() == 0:
            self._sampler.tick()

    def close(self) -> None:
        """Give the selector back."""
        self._selector.close()
