"""Bringing a database to this program's schema, wholly or not at all.

All revisions run in one transaction that is begun before the first statement: a process that is
killed in the middle leaves the database as it was. Alembic takes 0.4 s to import, so a database
that is at HEAD already is recognised without it.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy

from memplan.errors import StoreDamagedError, StoreVersionError
from memplan.store.engine import translated

__all__ = ["HEAD", "current_version", "migrate"]

HEAD = "0001"
"""Newest revision in migrations/versions."""

_KNOWN = ("0001",)
"""Every revision that this program can read or upgrade."""


def current_version(connection: sqlalchemy.Connection) -> str | None:
    """Return the database's revision, None for an empty database.

    Raises StoreDamagedError when it holds another program's tables.
    """
    tables = sqlalchemy.inspect(connection).get_table_names()
    if "alembic_version" not in tables:
        if tables:
            raise StoreDamagedError(
                f"this is another program's database: it has a table {min(tables)!r}",
                hint="name another place: export MEMPLAN_DATABASE=FILE",
            )
        return None
    rows = connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).all()
    return str(rows[0][0]) if rows else None


def check_known(version: str | None) -> None:
    """Raise StoreVersionError when a database was written by a newer program."""
    if version is not None and version not in _KNOWN:
        raise StoreVersionError(
            f"the database has schema {version}, this memplan knows up to {HEAD}",
            hint="upgrade memplan: pip install --upgrade memplan",
        )


def migrate(connection: sqlalchemy.Connection, database: str | Path) -> None:
    """Bring the database of an open connection to HEAD, in one transaction.

    Raises StoreVersionError when it is newer, StoreDamagedError when it is none of ours.
    """
    with translated(database), connection.begin():
        version = current_version(connection)
        if version == HEAD:
            return
        check_known(version)
        _upgrade(connection)


def _upgrade(connection: sqlalchemy.Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "memplan_migrations:")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
