"""Inserting rows that may be there already, on SQLite and PostgreSQL alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy
from sqlalchemy import case
from sqlalchemy.dialects import postgresql, sqlite

__all__ = ["Rows", "add_peaks", "add_rollups", "insert_new", "replace_rows"]

Rows = Sequence[dict[str, Any]]


def _insert(connection: sqlalchemy.Connection, table: sqlalchemy.Table) -> Any:
    dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
    return dialect.insert(table)


def _keys(table: sqlalchemy.Table) -> list[str]:
    return [column.name for column in table.primary_key]


def replace_rows(connection: sqlalchemy.Connection, table: sqlalchemy.Table, rows: Rows) -> None:
    """Insert rows, replacing those with the same primary key."""
    if not rows:
        return
    statement, keys = _insert(connection, table), _keys(table)
    values = {c.name: statement.excluded[c.name] for c in table.c if c.name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=values), rows)


def insert_new(connection: sqlalchemy.Connection, table: sqlalchemy.Table, rows: Rows) -> None:
    """Insert rows, leaving alone those that are there."""
    if rows:
        connection.execute(_insert(connection, table).on_conflict_do_nothing(), rows)


def add_rollups(connection: sqlalchemy.Connection, table: sqlalchemy.Table, rows: Rows) -> None:
    """Insert summaries, merging each into the one of the same period and series."""
    statement = _insert(connection, table)
    new, old = statement.excluded, table.c
    _merge(connection, statement, table, rows, total=old.total + new.total, last=new.last)


def add_peaks(connection: sqlalchemy.Connection, table: sqlalchemy.Table, rows: Rows) -> None:
    """Insert peaks, merging each into the one of the same series."""
    statement = _insert(connection, table)
    new, old = statement.excluded, table.c
    _merge(
        connection,
        statement,
        table,
        rows,
        first_t_ns=case((new.first_t_ns < old.first_t_ns, new.first_t_ns), else_=old.first_t_ns),
        last_t_ns=case((new.last_t_ns > old.last_t_ns, new.last_t_ns), else_=old.last_t_ns),
    )


def _merge(
    connection: sqlalchemy.Connection,
    statement: Any,
    table: sqlalchemy.Table,
    rows: Rows,
    **others: Any,
) -> None:
    """Insert rows; where there is one, add the counts and keep the lowest and the highest."""
    new, old = statement.excluded, table.c
    merged = {
        "n": old.n + new.n,
        "low": case((new.low < old.low, new.low), else_=old.low),
        "high": case((new.high > old.high, new.high), else_=old.high),
        "high_t_ns": case((new.high > old.high, new.high_t_ns), else_=old.high_t_ns),
        **others,
    }
    connection.execute(
        statement.on_conflict_do_update(index_elements=_keys(table), set_=merged), rows
    )
