"""Bringing a database to this program's schema, wholly or not at all.

All revisions run in one transaction that is begun before the first statement: a process that is
killed in the middle leaves the database as it was. Alembic takes 0.4 s and 8 MiB to import, so a
database that is at HEAD already is recognised without it, and a new SQLite file is made without
it: a test holds what is made against what the revisions make.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import sqlalchemy

from memplan.store import tables
from memplan.store.engine import driver, is_url, translated
from memplan.store.version import HEAD, SQLITE_TABLES, TABLE, VERSION, check_known, refuse_tables

__all__ = ["APPLICATION_ID", "HEAD", "copy_path", "current_version", "migrate"]

_REVISION = sqlalchemy.Table(
    TABLE,
    sqlalchemy.MetaData(),
    sqlalchemy.Column("version_num", sqlalchemy.String(32), nullable=False),
    sqlalchemy.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
"""Alembic's own table."""

APPLICATION_ID = 0x6D706C6E
"""What SQLite's header says about whose file it is: "mpln"."""

_LOCK_KEY = 0x6D706D67
"""PostgreSQL's advisory lock of whoever migrates."""


def current_version(connection: sqlalchemy.Connection) -> str | None:
    """Return the database's revision, None for an empty database.

    Raises StoreDamagedError when it holds another program's tables.
    """
    tables = sqlalchemy.inspect(connection).get_table_names()
    refuse_tables(tables)
    if not tables:
        return None
    rows = connection.execute(sqlalchemy.text(VERSION)).all()
    return str(rows[0][0]) if rows else None


def refuse_stranger(database: Path) -> None:
    """Raise StoreDamagedError for another program's database, before anything is written to it.

    Opening a file for writing turns its log on. What cannot be read at all is left to that.
    """
    if not database.exists() or not database.stat().st_size:
        return
    uri = f"file:{quote(str(database.absolute()))}?mode=ro"
    with contextlib.suppress(sqlite3.Error), closing(sqlite3.connect(uri, uri=True)) as connection:
        refuse_tables([name for (name,) in connection.execute(SQLITE_TABLES)])


def migrate(connection: sqlalchemy.Connection, database: str | Path) -> None:
    """Bring the database of an open connection to HEAD, in one transaction.

    An older SQLite file is first copied to "<database>.before-<HEAD>", and packed anew after it.
    Raises StoreVersionError when it is newer, StoreDamagedError when it is none of ours.
    """
    with translated(database), connection.begin():
        version = current_version(connection)
    if version == HEAD:
        return
    check_known(version)
    older = version is not None and not is_url(database)
    if older:
        with translated(database):
            _keep_copy(connection, Path(database))
    with translated(database), connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(sqlalchemy.text(f"SELECT pg_advisory_xact_lock({_LOCK_KEY})"))
        version = current_version(connection)
        if version is None and connection.dialect.name == "sqlite":
            _create(connection)
        elif version != HEAD:
            _upgrade(connection)
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
    if older:
        with translated(database), contextlib.suppress(sqlite3.OperationalError):
            driver(connection).execute("PRAGMA auto_vacuum = INCREMENTAL")
            driver(connection).execute("VACUUM")  # a full disk only leaves the file larger


def copy_path(database: Path) -> Path:
    """Return where the copy of a database lies that was made before it was migrated."""
    return database.with_name(f"{database.name}.before-{HEAD}")


def _keep_copy(connection: sqlalchemy.Connection, database: Path) -> None:
    """Copy an older database; a copy that was not finished leaves nothing behind.

    That of an attempt that failed goes first: the database is still what it is a copy of, and both
    may not find room.
    """
    target = copy_path(database)
    half = target.with_name(target.name + ".part")
    try:
        half.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
        os.close(os.open(half, os.O_WRONLY | os.O_CREAT, 0o600))
        with closing(sqlite3.connect(half)) as copy:
            driver(connection).backup(copy, pages=4096)
        half.replace(target)
    except BaseException:
        half.unlink(missing_ok=True)
        raise


def _create(connection: sqlalchemy.Connection) -> None:
    """Make every table as it is at HEAD, and note that, as Alembic would."""
    tables.metadata.create_all(connection)
    _REVISION.create(connection)
    connection.execute(_REVISION.insert(), {"version_num": HEAD})


def _upgrade(connection: sqlalchemy.Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "memplan_migrations:")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
