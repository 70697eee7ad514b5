"""Which schema a database has, and whether this program knows it."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.errors import StoreDamagedError, StoreVersionError

__all__ = ["HEAD", "KNOWN", "SQLITE_TABLES", "TABLE", "VERSION", "check_known", "refuse_tables"]

HEAD = "0002"
"""Newest revision in migrations/versions."""

KNOWN = ("0001", "0002")
"""Every revision that this program can read or upgrade."""

TABLE = "alembic_version"
"""The table that every database of ours has."""

SQLITE_TABLES = "SELECT name FROM sqlite_master WHERE type = 'table'"

VERSION = "SELECT version_num FROM alembic_version"


def check_known(version: str | None) -> None:
    """Raise StoreVersionError when a database was written by a newer program."""
    if version is not None and version not in KNOWN:
        raise StoreVersionError(
            f"the database has schema {version}, this memplan knows up to {HEAD}",
            hint="upgrade memplan: pip install --upgrade memplan",
        )


def refuse_tables(tables: Sequence[str]) -> None:
    """Raise StoreDamagedError for the tables of another program."""
    if tables and TABLE not in tables:
        raise StoreDamagedError(
            f"this is another program's database: it has a table {min(tables)!r}",
            hint="name another place: export MEMPLAN_DATABASE=FILE",
        )
