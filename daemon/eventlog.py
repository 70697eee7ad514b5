"""What happened: logged at once, kept for `status`, stored once."""

from __future__ import annotations

import logging
from collections import deque

from memplan_daemon.collectors.base import Event

from memplan.store.base import Writer
from memplan.types import Event as StoredEvent
from memplan.types import FrozenMap

__all__ = ["EventLog"]

_log = logging.getLogger("memplan.daemon")

MOST = 200
"""Newest events that are kept, and that wait for a store that refuses them."""


class EventLog:
    """Events of collectors and agents on their way."""

    def __init__(self) -> None:
        """Begin empty."""
        self.recent: deque[tuple[int, str | None, Event]] = deque(maxlen=MOST)
        """(wall clock, run, event), oldest first."""
        self.count = 0
        """Events so far."""
        self._unsaved: deque[StoredEvent] = deque(maxlen=MOST)

    def keep(self, event: Event, run_id: str | None, now_ns: int) -> None:
        """Log an event and keep it.

        Args:
            event: what happened.
            run_id: in which run; None = on the host.
            now_ns: when, if the event itself does not say.
        """
        t_ns = now_ns if event.t_ns is None else event.t_ns
        self.count += 1
        self.recent.append((t_ns, run_id, event))
        _log.warning("%s", event.text)
        self._unsaved.append(
            StoredEvent(
                kind=event.kind,
                t_ns=t_ns,
                message=event.text,
                severity="warning",
                run_id=run_id,
                entity=event.entity,
                data=FrozenMap({"code": str(event.code)}),
            )
        )

    def save(self, writer: Writer) -> None:
        """Store what is not stored yet. Raises what the writer raises; nothing is lost then."""
        if self._unsaved:
            writer.save_events(tuple(self._unsaved))
            self._unsaved.clear()
