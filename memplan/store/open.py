"""Opening a database for writing, whoever holds it at the moment."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from memplan import config
from memplan.errors import DaemonError, StoreLockedError, UsageError
from memplan.store.base import Writer
from memplan.store.remote import RemoteWriter, socket_path
from memplan.units import parse_bytes

if TYPE_CHECKING:
    from memplan.store.writer import LocalWriter

__all__ = ["PATIENCE_S", "local_writer", "open_writer", "seconds"]

PATIENCE_S = 3.0
"""Seconds to wait for a holder that does not listen: a short command that is about to end."""

_PAUSE_S = 0.05


_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def seconds(text: str) -> float:
    """Return the seconds of a stretch of time: "90", "10m", "2h", "7d". Raises UsageError."""
    number, factor = (text[:-1], _SECONDS[text[-1]]) if text[-1:] in _SECONDS else (text, 1)
    try:
        found = float(number) * factor
    except ValueError:
        found = -1.0
    if not 0 <= found < 100 * 365 * 86_400:
        raise UsageError(f"{text!r} is no stretch of time", hint="e.g. 90s, 10m, 2h, 7d")
    return found


def local_writer(database: str | Path, *, fleet: str | None = None) -> LocalWriter:
    """Return the writer that this process has for itself, as the settings want it.

    Args:
        database: the database's file, or a PostgreSQL URL.
        fleet: URL of a fleet's database; None = as set.

    Raises UsageError for a setting that makes no sense, else as `LocalWriter`.
    """
    from memplan.store.retention import Policy
    from memplan.store.writer import LocalWriter

    values = {value.setting.name: value.value for value in config.load()}
    policy = Policy(
        raw_ns=round(seconds(values["keep_raw"]) * 1e9),
        minute_ns=round(seconds(values["keep_1m"]) * 1e9),
        hour_ns=round(seconds(values["keep_1h"]) * 1e9),
        cap_bytes=parse_bytes(values["database_cap"]),
    )
    shipped = values["fleet"] if fleet is None else fleet
    return LocalWriter(
        database,
        flush_s=seconds(values["flush"]),
        policy=policy,
        outbox_bytes=parse_bytes(values["fleet_outbox"]) if shipped else 0,
    )


def open_writer(database: str | Path, *, patience_s: float = PATIENCE_S) -> Writer:
    """Return a writer: our own when the lock is free, else one through its holder's socket.

    Args:
        database: the database's file, or a PostgreSQL URL.
        patience_s: seconds to go on trying while the holder does not answer.

    Raises StoreLockedError when the lock is held by a process that does not answer, and the
    other StoreErrors when the database cannot be used.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return local_writer(database)
        except StoreLockedError as locked:
            try:
                return RemoteWriter(socket_path(database))
            except DaemonError:
                if time.monotonic() >= deadline:
                    raise locked from None
        time.sleep(_PAUSE_S)
