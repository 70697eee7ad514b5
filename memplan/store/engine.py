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
from sqlalchemy.pool import QueuePool, StaticPool

from memplan.errors import StoreError
from memplan.store import readonly
from memplan.store.readonly import BUSY_S, begin_read, connect, is_url, ours

__all__ = [
    "check_encoding",
    "driver",
    "is_url",
    "reader_engine",
    "sqlite_affected",
    "sqlite_problem",
    "translated",
    "writer_engine",
]

JOURNAL_LIMIT_BYTES = 4 * 1024**2
"""The write-ahead log is cut to this size when it begins anew."""

_ONE_MOMENT = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}

CONNECT_S = 10
"""Seconds to wait for a server that does not answer, where the URL does not say."""

_NETWORK = {
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "fuse.glusterfs",
    "fuse.sshfs",
    "lustre",
    "nfs",
    "nfs4",
    "smb3",
    "smbfs",
}
"""File systems on which several hosts can hold one lock, and shared memory is none."""


def sqlite_affected(version: str) -> bool:
    """Tell whether an SQLite of this version has the WAL-reset race."""
    number = tuple(int(part) for part in version.split("."))
    if number < (3, 7, 0) or number >= (3, 51, 3):
        return False
    return not ((3, 44, 6) <= number < (3, 45, 0) or (3, 50, 7) <= number < (3, 51, 0))


def sqlite_problem(version: str = sqlite3.sqlite_version) -> str | None:
    """Return what is wrong with the SQLite that Python links, in a sentence; None when nothing."""
    if not sqlite_affected(version):
        return None
    return (
        f"SQLite {version} has the WAL-reset bug; memplan's single writer keeps clear of it, so "
        "let no other program write to the database"
    )


def writer_engine(database: str | Path) -> sqlalchemy.Engine:
    """Return the engine of the one process that writes: WAL, BEGIN IMMEDIATE, one connection.

    Creates the file, readable by its owner only. Raises StoreError when it cannot.
    """
    if is_url(database):
        return _url_engine(str(database))
    path = Path(database)
    _refuse_network(path)
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


def _refuse_network(path: Path, mounts: Path = Path("/proc/self/mounts")) -> None:
    """Raise StoreError for a place where a write-ahead log does not work."""
    folder = str(path.absolute().parent.resolve())
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    found = ("", "")
    for words in map(str.split, lines):
        place = words[1].replace("\\040", " ").rstrip("/")
        inside = folder == place or folder.startswith(place + "/")
        if inside and len(place) >= len(found[0]):
            found = (place, words[2])
    if found[1] in _NETWORK:
        raise StoreError(
            f"{path} is on a network file system ({found[1]}), where SQLite's log is not safe",
            hint="name a local place: export MEMPLAN_DATABASE=/var/tmp/memplan.db",
        )


def check_encoding(connection: sqlalchemy.Connection) -> None:
    """Raise StoreError when a PostgreSQL database cannot hold every text."""
    if connection.dialect.name != "postgresql":
        return
    found = connection.execute(sqlalchemy.text("SHOW server_encoding")).scalar()
    if found != "UTF8":
        raise StoreError(
            f"the database's encoding is {found}, memplan needs UTF8",
            hint="createdb -E UTF8 -T template0 NAME",
        )


def driver(connection: sqlalchemy.Connection) -> Any:
    """Return the driver's own connection: for pragmas, which belong to no transaction."""
    return connection.connection.driver_connection


def reader_engine(database: str | Path) -> sqlalchemy.Engine:
    """Return an engine that can only read, and never checkpoints.

    All queries of one transaction see the database at the same moment, on a server, too: names
    that were asked for first would else miss what is written before the samples are asked for.

    Raises StoreMissingError when there is no database yet.
    """
    if is_url(database):
        engine = _url_engine(str(database))
        of_one_moment = _ONE_MOMENT if engine.dialect.name == "postgresql" else {}
        return engine.execution_options(**of_one_moment)
    path = Path(database)
    connect(path).close()
    engine = sqlalchemy.create_engine(
        "sqlite://", creator=lambda: connect(path), poolclass=QueuePool
    )
    event.listen(engine, "begin", _begin)
    return engine


def _sqlite_engine(url: str, pool: type[sqlalchemy.pool.Pool]) -> sqlalchemy.Engine:
    arguments = {"timeout": BUSY_S, "check_same_thread": False}
    return sqlalchemy.create_engine(url, poolclass=pool, connect_args=arguments)


def _url_engine(url: str) -> sqlalchemy.Engine:
    try:
        options: dict[str, Any] = {}
        if url.startswith("postgresql"):
            options = {"client_encoding": "utf8"}
            if "connect_timeout" not in sqlalchemy.make_url(url).query:
                options["connect_timeout"] = CONNECT_S
        return sqlalchemy.create_engine(url, pool_pre_ping=True, connect_args=options)
    except (sqlalchemy.exc.ArgumentError, ImportError, ValueError) as error:
        # a port that is no number is quoted, and may be a piece of the password
        what = "its port is no number" if isinstance(error, ValueError) else error
        raise StoreError(
            f"cannot use the database URL: {what}",
            hint="pip install 'memplan[postgres]', then postgresql+psycopg://HOST/NAME",
        ) from error


def _set_up_writer(connection: Any, record: Any) -> None:
    del record
    connection.isolation_level = None  # transactions are begun by us, never by the driver
    cursor = connection.cursor()
    cursor.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before the first table, or never
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute(f"PRAGMA journal_size_limit = {JOURNAL_LIMIT_BYTES}")
    cursor.close()


def _begin_immediate(connection: sqlalchemy.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _begin(connection: sqlalchemy.Connection) -> None:
    begin_read(driver(connection))


@contextlib.contextmanager
def translated(database: str | Path) -> Iterator[None]:
    """Turn the driver's errors into ours, each with a hint."""
    with readonly.translated(database):
        try:
            yield
        except sqlalchemy.exc.SQLAlchemyError as error:
            raise ours(str(getattr(error, "orig", None) or error), database) from error
