"""Databases of the first layout; with millions of samples at the speed of SQLite itself."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

SERIES = 200
T0, NS = 10**18, 10**9


MAKE_OLD = """
import sys
import sqlalchemy
from alembic import command
from alembic.config import Config
from memplan.store.engine import writer_engine

engine = writer_engine(sys.argv[1])
with engine.connect() as connection, connection.begin():
    config = Config()
    config.set_main_option("script_location", "memplan_migrations:")
    config.attributes["connection"] = connection
    command.upgrade(config, sys.argv[2])
engine.dispose()
"""


def make(database: str | Path, revision: str = "0001") -> None:
    """Make the tables as they were at a revision."""
    subprocess.run([sys.executable, "-c", MAKE_OLD, str(database), revision], check=True)


def values(ticks: int) -> Iterator[tuple[int, int, int]]:
    """Yield (tick, series, value): bytes in whole pages that move now and then."""
    for seq in range(1, ticks + 1):
        for number in range(1, SERIES + 1):
            yield seq, number, ((seq * number) // 29 % 4096 + number * 7) * 4096


def fill(database: Path, ticks: int) -> None:
    """Add ticks of 200 series to a database of the first layout, as its version wrote them."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        with connection:
            connection.executemany(
                "INSERT INTO series VALUES (?, '', ?, 'rss_bytes', 1)",
                ((i, f"process:{1000 + i}") for i in range(1, SERIES + 1)),
            )
            connection.executemany(
                "INSERT INTO tick VALUES (?, ?)",
                ((seq, T0 + seq * NS) for seq in range(1, ticks + 1)),
            )
            connection.executemany("INSERT INTO sample VALUES (?, ?, ?)", values(ticks))
