"""Inserting rows, many at once or where they may be already, on SQLite and PostgreSQL alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import sqlalchemy
from sqlalchemy import bindparam, case, delete
from sqlalchemy.dialects import postgresql, sqlite

__all__ = [
    "Rows",
    "add_peaks",
    "add_rollups",
    "delete_many",
    "insert_many",
    "insert_new",
    "replace_rows",
]

Rows = Sequence[dict[str, Any]]
"""A few rows."""

Columns = tuple[str, ...]
Tuples = Sequence[tuple[Any, ...]]
"""Thousands of rows: values in the order of their columns."""


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


def insert_many(
    connection: sqlalchemy.Connection, table: sqlalchemy.Table, columns: Columns, rows: Tuples
) -> None:
    """Insert many rows."""
    _run_many(connection, "insert", table, columns, rows, lambda: _insert(connection, table))


def delete_many(
    connection: sqlalchemy.Connection, table: sqlalchemy.Table, columns: Columns, rows: Tuples
) -> None:
    """Delete many rows, each by its values in the columns of the table's key."""
    named = [table.c[name] == bindparam(name) for name in columns]
    _run_many(connection, "delete", table, columns, rows, lambda: delete(table).where(*named))


def add_rollups(
    connection: sqlalchemy.Connection, table: sqlalchemy.Table, columns: Columns, rows: Tuples
) -> None:
    """Insert summaries, merging each into the one of the same period and series."""

    def statement() -> Any:
        new = _insert(connection, table)
        total = table.c.total + new.excluded.total
        return _merging(new, table, total=total, last=new.excluded.last)

    _run_many(connection, "add", table, columns, rows, statement)


def add_peaks(
    connection: sqlalchemy.Connection, table: sqlalchemy.Table, columns: Columns, rows: Tuples
) -> None:
    """Insert peaks, merging each into the one of the same series."""

    def statement() -> Any:
        insertion = _insert(connection, table)
        new, old = insertion.excluded, table.c
        first = case((new.first_t_ns < old.first_t_ns, new.first_t_ns), else_=old.first_t_ns)
        last = case((new.last_t_ns > old.last_t_ns, new.last_t_ns), else_=old.last_t_ns)
        return _merging(insertion, table, first_t_ns=first, last_t_ns=last)

    _run_many(connection, "add", table, columns, rows, statement)


def _merging(statement: Any, table: sqlalchemy.Table, **others: Any) -> Any:
    """Return an insertion that, where there is a row, adds counts and keeps lowest and highest."""
    new, old = statement.excluded, table.c
    merged = {
        "n": old.n + new.n,
        "low": case((new.low < old.low, new.low), else_=old.low),
        "high": case((new.high > old.high, new.high), else_=old.high),
        "high_t_ns": case((new.high > old.high, new.high_t_ns), else_=old.high_t_ns),
        **others,
    }
    return statement.on_conflict_do_update(index_elements=_keys(table), set_=merged)


_AT_ONCE = 16
"""Rows of one statement where there are as many: to begin and end one takes SQLite a third of the
time that a row takes."""

_TEXTS: dict[tuple[str, str, str, Columns], tuple[str, Columns | None]] = {}
"""(what is done, dialect, table, columns) -> statement, and the order of its parameters where they
have no names."""


def _run_many(  # noqa: PLR0917 - what is done, to what, with what
    connection: sqlalchemy.Connection,
    what: str,
    table: sqlalchemy.Table,
    columns: Columns,
    rows: Tuples,
    statement: Callable[[], Any],
) -> None:
    """Run what is done with a table's rows for many of them, by the driver itself.

    To prepare a row's parameters takes SQLAlchemy longer than it takes SQLite to insert them.
    """
    if not rows:
        return
    dialect = connection.dialect
    key = (what, f"{dialect.name}+{dialect.driver}", table.name, columns)
    if key not in _TEXTS:
        compiled = statement().compile(dialect=dialect, column_keys=list(columns))
        positional = tuple(compiled.positiontup or ()) if compiled.positional else None
        _TEXTS[key] = (str(compiled), positional)
    text, order = _TEXTS[key]
    if order is None:
        named = [dict(zip(columns, row, strict=True)) for row in rows]
        connection.exec_driver_sql(text, named)
        return
    if order != columns:
        rows = list(map(itemgetter(*map(columns.index, order)), rows))
    one = f"({', '.join('?' * len(columns))})"
    whole = len(rows) - len(rows) % _AT_ONCE if f"VALUES {one}" in text else 0
    if whole:
        several = text.replace(f"VALUES {one}", f"VALUES {', '.join([one] * _AT_ONCE)}")
        parts = (rows[at : at + _AT_ONCE] for at in range(0, whole, _AT_ONCE))
        connection.exec_driver_sql(several, [tuple(chain.from_iterable(part)) for part in parts])
    if rest := list(rows[whole:]):
        connection.exec_driver_sql(text, rest)
