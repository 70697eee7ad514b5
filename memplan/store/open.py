"""Opening a database for writing, whoever holds it at the moment."""

from __future__ import annotations

import time
from pathlib import Path

from memplan.errors import DaemonError, StoreLockedError
from memplan.store.base import Writer
from memplan.store.remote import RemoteWriter, socket_path

__all__ = ["PATIENCE_S", "open_writer"]

PATIENCE_S = 3.0
"""Seconds to wait for a holder that does not listen: a short command that is about to end."""

_PAUSE_S = 0.05


def open_writer(database: str | Path, *, patience_s: float = PATIENCE_S) -> Writer:
    """Return a writer: our own when the lock is free, else one through its holder's socket.

    Args:
        database: the database's file, or a PostgreSQL URL.
        patience_s: seconds to go on trying while the holder does not answer.

    Raises StoreLockedError when the lock is held by a process that does not answer, and the
    other StoreErrors when the database cannot be used.
    """
    from memplan.store.writer import LocalWriter

    deadline = time.monotonic() + patience_s
    while True:
        try:
            return LocalWriter(database)
        except StoreLockedError as locked:
            try:
                return RemoteWriter(socket_path(database))
            except DaemonError:
                if time.monotonic() >= deadline:
                    raise locked from None
        time.sleep(_PAUSE_S)
