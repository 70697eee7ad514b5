"""Opening an SQLite file to read, and what the driver's errors mean.

Nothing here needs SQLAlchemy, whose import takes longer than all that a reader does.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from memplan.errors import (
    StoreDamagedError,
    StoreError,
    StoreFullError,
    StoreLockedError,
    StoreMissingError,
)
from memplan.store.version import HEAD, KNOWN, VERSION

__all__ = ["BUSY_S", "begin_read", "connect", "is_older", "is_url", "ours", "shown", "translated"]

BUSY_S = 5.0
"""Seconds that SQLite waits for a lock before it gives up."""

LONGEST_READ_S = 10.0
"""A query that takes longer is cut: while it reads, the log cannot begin anew."""

_CACHE_KIB = 8192
"""Pages that a reader keeps: one series in 800 blocks touches as many pages."""

_PROGRESS_STEPS = 100_000
"""Steps of SQLite's machine between two looks at the clock."""


def is_url(database: str | Path) -> bool:
    """Tell a database URL (PostgreSQL) from a file's path."""
    return isinstance(database, str) and "://" in database


_PASSWORD = re.compile(r"(://[^:/@]*:)[^@]*@|([?&]password=)[^&]*")


def shown(database: str | Path) -> str:
    """Return a database's place as it may be printed: a URL without its password."""
    text = str(database)
    return _PASSWORD.sub(lambda m: f"{m[1]}***@" if m[1] else f"{m[2]}***", text)


def connect(path: Path) -> sqlite3.Connection:
    """Return a connection that can only read, and never checkpoints.

    Raises StoreMissingError when there is no file yet.
    """
    if not path.exists():
        raise StoreMissingError(
            f"there is no database at {path} yet", hint="measure something: memplan run -- COMMAND"
        )
    mode = "mode=ro&immutable=1" if _frozen(path) else "mode=ro"
    uri = f"file:{quote(str(path.absolute()))}?{mode}"
    connection = sqlite3.connect(
        uri, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA query_only = ON")
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    return connection


def _frozen(path: Path) -> bool:
    """Tell whether nothing can change: a folder that cannot be written, and no log beside it.

    SQLite needs to make its shared-memory file even to read in WAL mode, unless it is told that
    the file never changes.
    """
    wal = path.with_name(path.name + "-wal")
    return not os.access(path.parent, os.W_OK) and not wal.exists()


def is_older(database: str | Path) -> bool:
    """Tell whether a file has an older schema, as it has until a migration is through."""
    with contextlib.suppress(sqlite3.Error, OSError, StoreError):
        if not is_url(database):
            with contextlib.closing(connect(Path(database))) as connection:
                (version,) = connection.execute(VERSION).fetchone()
                return version in KNOWN and version != HEAD
    return False


def begin_read(connection: sqlite3.Connection) -> None:
    """Begin a transaction whose queries are cut when they take too long together."""
    end = time.monotonic() + LONGEST_READ_S
    connection.set_progress_handler(lambda: time.monotonic() > end, _PROGRESS_STEPS)
    connection.execute("BEGIN")


@contextlib.contextmanager
def translated(database: str | Path) -> Iterator[None]:
    """Turn the driver's errors into ours, each with a hint."""
    try:
        yield
    except sqlite3.Error as error:
        raise ours(str(error), database) from error
    except OSError as error:
        raise ours(error.strerror or str(error), database) from error


_NO_WRITE = (
    "disk is full",
    "disk I/O error",
    "readonly database",
    "No space left on device",  # PostgreSQL, and the operating system itself
    "Read-only file system",
    "Input/output error",
    "Disk quota exceeded",
)


def ours(message: str, database: str | Path) -> StoreError:
    """Return our error for what a driver said."""
    text, database = " ".join(message.split()), shown(database)
    if any(sign in text for sign in _NO_WRITE):
        return StoreFullError(
            f"cannot write to {database}: {text}",
            hint="free some disk space; what was committed is safe",
        )
    if "not a database" in text or "malformed" in text:
        return StoreDamagedError(
            f"{database} is damaged or no memplan database: {text}",
            hint="memplan db repair; or name another place: export MEMPLAN_DATABASE=FILE",
        )
    if "interrupted" in text:
        return StoreError(
            f"reading {database} took longer than {LONGEST_READ_S:g} s and was cut",
            hint="ask for less at once, e.g. a shorter window",
        )
    if "locked" in text:
        return StoreLockedError(
            f"{database} is locked by another program",
            hint="memplan daemon status; close programs that write to the file",
        )
    return StoreError(f"cannot use {database}: {text}", hint="memplan doctor")
