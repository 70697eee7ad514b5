"""Connections: one that writes, and any number that only read.

SQLite 3.7.0 to 3.51.2 can corrupt a database when two connections write and checkpoint at once
(the WAL-reset race, fixed in 3.44.6, 3.50.7 and 3.51.3). Interpreters in use link such versions,
so exactly one process writes and checkpoints, and every reader is opened read-only.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.pool import NullPool, StaticPool

from memplan.errors import (
    StoreDamagedError,
    StoreError,
    StoreLockedError,
    StoreMissingError,
)

__all__ = ["is_url", "reader_engine", "sqlite_affected", "translated", "writer_engine"]

_BUSY_S = 5.0
"""Seconds that SQLite waits for a lock before it gives up."""


def sqlite_affected(version: str) -> bool:
    """Tell whether an SQLite of this version has the WAL-reset race."""
    number = tuple(int(part) for part in version.split("."))
    if number < (3, 7, 0) or number >= (3, 51, 3):
        return False
    return not ((3, 44, 6) <= number < (3, 45, 0) or (3, 50, 7) <= number < (3, 51, 0))


def is_url(database: str | Path) -> bool:
    """Tell a database URL (PostgreSQL) from a file's path."""
    return isinstance(database, str) and "://" in database


def writer_engine(database: str | Path) -> sqlalchemy.Engine:
    """Return the engine of the one process that writes: WAL, BEGIN IMMEDIATE, one connection.

    Creates the file, readable by its owner only. Raises StoreError when it cannot.
    """
    if is_url(database):
        return _url_engine(str(database))
    path = Path(database)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}",
            hint="name another place: export MEMPLAN_DATABASE=FILE",
        ) from error
    engine = _sqlite_engine(f"sqlite:///file:{quote(str(path.absolute()))}?uri=true", StaticPool)
    event.listen(engine, "connect", _set_up_writer)
    event.listen(engine, "begin", _begin_immediate)
    return engine


def reader_engine(database: str | Path) -> sqlalchemy.Engine:
    """Return an engine that can only read, and never checkpoints.

    Raises StoreMissingError when there is no database yet.
    """
    if is_url(database):
        return _url_engine(str(database))
    path = Path(database)
    if not path.exists():
        raise StoreMissingError(
            f"there is no database at {path} yet", hint="measure something: memplan run -- COMMAND"
        )
    mode = "mode=ro"
    if _frozen(path):
        mode += "&immutable=1"
    url = f"sqlite:///file:{quote(str(path.absolute()))}?{mode}&uri=true"
    engine = _sqlite_engine(url, NullPool)
    event.listen(engine, "connect", _set_up_reader)
    event.listen(engine, "begin", _begin)
    return engine


def _frozen(path: Path) -> bool:
    """Tell whether nothing can change: a folder that cannot be written, and no log beside it.

    SQLite needs to make its shared-memory file even to read in WAL mode, unless it is told that
    the file never changes.
    """
    wal = path.with_name(path.name + "-wal")
    return not os.access(path.parent, os.W_OK) and not wal.exists()


def _sqlite_engine(url: str, pool: type[sqlalchemy.pool.Pool]) -> sqlalchemy.Engine:
    arguments = {"timeout": _BUSY_S, "check_same_thread": False}
    return sqlalchemy.create_engine(url, poolclass=pool, connect_args=arguments)


def _url_engine(url: str) -> sqlalchemy.Engine:
    try:
        return sqlalchemy.create_engine(url, pool_pre_ping=True)
    except (sqlalchemy.exc.ArgumentError, ImportError) as error:
        raise StoreError(
            f"cannot use the database URL: {error}",
            hint="pip install 'memplan[postgres]', then postgresql+psycopg://HOST/NAME",
        ) from error


def _set_up_writer(connection: Any, record: Any) -> None:
    del record
    connection.isolation_level = None  # transactions are begun by us, never by the driver
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _set_up_reader(connection: Any, record: Any) -> None:
    del record
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA query_only = ON")
    cursor.close()


def _begin_immediate(connection: sqlalchemy.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _begin(connection: sqlalchemy.Connection) -> None:
    connection.exec_driver_sql("BEGIN")


@contextlib.contextmanager
def translated(database: str | Path) -> Iterator[None]:
    """Turn the driver's errors into ours, each with a hint."""
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, sqlite3.Error) as error:
        raise _ours(str(getattr(error, "orig", None) or error), database) from error


def _ours(message: str, database: str | Path) -> StoreError:
    text = " ".join(message.split())
    if "disk is full" in text or "disk I/O error" in text:
        return StoreError(
            f"cannot write to {database}: {text}",
            hint="free some disk space; what was committed is safe",
        )
    if "not a database" in text or "malformed" in text:
        return StoreDamagedError(
            f"{database} is damaged or no memplan database: {text}",
            hint="move it away, or name another place: export MEMPLAN_DATABASE=FILE",
        )
    if "locked" in text:
        return StoreLockedError(
            f"{database} is locked by another program",
            hint="memplan daemon status; close programs that write to the file",
        )
    return StoreError(f"cannot use {database}: {text}", hint="memplan doctor")
