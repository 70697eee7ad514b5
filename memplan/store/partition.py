"""PostgreSQL's partitions by day; dropping one is what retention costs there.

SQLite has none: every function does nothing on it.
"""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy
from sqlalchemy import text

__all__ = ["DAY_NS", "Partitions"]

DAY_NS = 86_400 * 10**9

_PER_DAY = {"chunk": 1, "rollup_1m": 1440}
"""Partitioned table -> how many of its key's steps make a day."""

_LOCK_KEY = 0x6D706172
"""Advisory lock under which partitions are made and dropped."""


class Partitions:
    """The days that have partitions already, so that each is asked for once."""

    def __init__(self) -> None:
        self._known: set[int] = set()

    def ensure(self, connection: sqlalchemy.Connection, times_ns: Iterable[int]) -> None:
        """Make the partitions for the days of some times.

        To be called in a transaction of its own: it locks the tables for a moment, which two
        transactions that have written to them already would wait for in a circle.
        """
        if connection.dialect.name != "postgresql":
            return
        new = {t_ns // DAY_NS for t_ns in times_ns} - self._known
        if not new:
            return
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK_KEY})"))
        for day in sorted(new):
            for table, each in _PER_DAY.items():
                connection.execute(
                    text(
                        f"CREATE TABLE IF NOT EXISTS {table}_d{day} PARTITION OF {table}"
                        f" FOR VALUES FROM ({day * each}) TO ({(day + 1) * each})"
                    )
                )
        self._known |= new

    def drop(self, connection: sqlalchemy.Connection, table: str, before_ns: int) -> int:
        """Drop the partitions of whole days before a time; return how many."""
        if connection.dialect.name != "postgresql":
            return 0
        rows = connection.execute(
            text(
                "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
                " WHERE i.inhparent = to_regclass(:table)"
            ),
            {"table": table},
        ).scalars()
        names = {int(name.rpartition("_d")[2]): name for name in rows}
        old = [day for day in names if day < before_ns // DAY_NS]
        for day in old:
            connection.execute(text(f"DROP TABLE {names[day]}"))
            self._known.discard(day)
        return len(old)
