"""A part of a database as a file of its own, to be looked at elsewhere or later."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from memplan.errors import StoreVersionError, UsageError
from memplan.store.frame import HOUR_NS, MINUTE_NS
from memplan.store.migrate import HEAD
from memplan.store.upkeep import backup, local_path, new_file, open_read_only

__all__ = ["Recorded", "record"]

_WHOLE = ("alembic_version", "host", "device", "meta")

_TOUCHES = "t1_ns >= :since AND t0_ns <= :until AND run_id IN (SELECT id FROM wanted)"
_SERIES = "SELECT host_id, id FROM main.series"

_PARTS = {
    "run": "id IN (SELECT id FROM wanted)",
    "plan": "id IN (SELECT plan_id FROM main.run)",
    "phase": "run_id IN (SELECT id FROM wanted)",
    "event": "t_ns BETWEEN :since AND :until AND run_id IN (SELECT id FROM wanted)",
    "series": "run_id IN (SELECT id FROM wanted)",
    "entity": "(host_id, id) IN (SELECT host_id, entity_id FROM main.series)",
    "tick": _TOUCHES,
    "block": _TOUCHES,
    "chunk": "(host_id, block_id) IN (SELECT host_id, id FROM main.block)",
    "rollup_1m": f"period BETWEEN :since / {MINUTE_NS} AND :until / {MINUTE_NS}"
    f" AND (host_id, series_id) IN ({_SERIES})",
    "rollup_1h": f"period BETWEEN :since / {HOUR_NS} AND :until / {HOUR_NS}"
    f" AND (host_id, series_id) IN ({_SERIES})",
    "peak": f"(host_id, series_id) IN ({_SERIES})",
}
"""Table -> which of its rows are copied, in an order in which each finds what it asks for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What was written."""

    bytes: int
    """Size of the file."""
    runs: int
    """Runs in it."""
    samples: int
    """Samples in it."""


def record(
    database: str | Path,
    target: Path,
    *,
    run_id: str | None = None,
    since_ns: int | None = None,
    until_ns: int | None = None,
) -> Recorded:
    """Write a run, or all that happened in a window, into a new SQLite file.

    The host's own samples in that time go with it. The writer of the database goes on meanwhile.

    Args:
        database: where it is.
        target: the new file.
        run_id: only this run, from its begin to its end.
        since_ns: begin of the window; with run_id None and no window, everything is copied.
        until_ns: its end, inclusive.

    Raises UsageError when the target exists, StoreMissingError without a database, and
    StoreVersionError when it is older than this program.
    """
    path = local_path(database)
    if target.exists():
        raise UsageError(f"{target} exists already", hint="name a new file, or remove that one")
    if run_id is None and since_ns is None and until_ns is None:
        backup(path, target)
    else:
        _copy_part(path, target, run_id, since_ns, until_ns)
    with open_read_only(target) as connection:

        def count(query: str) -> int:
            return int(connection.execute(query).fetchone()[0] or 0)

        samples = count("SELECT sum(n) FROM chunk") + count("SELECT sum(n) FROM tick")
        runs = count("SELECT count(*) FROM run")
    return Recorded(bytes=target.stat().st_size, runs=runs, samples=samples)


def _copy_part(
    path: Path, target: Path, run_id: str | None, since_ns: int | None, until_ns: int | None
) -> None:
    with new_file(target) as half, contextlib.closing(sqlite3.connect(half, uri=True)) as copy:
        copy.isolation_level = None
        copy.execute("ATTACH ? AS src", (f"file:{quote(str(path.absolute()))}?mode=ro",))
        copy.execute("BEGIN")
        (version,) = copy.execute("SELECT version_num FROM src.alembic_version").fetchone()
        if version != HEAD:
            raise StoreVersionError(
                f"the database has schema {version}, this memplan records {HEAD}",
                hint="memplan db migrate",
            )
        statements = copy.execute(
            "SELECT sql FROM src.sqlite_master WHERE sql IS NOT NULL ORDER BY type DESC, rowid"
        ).fetchall()
        for (statement,) in statements:
            copy.execute(statement)
        window = _window(copy.execute, run_id, since_ns, until_ns)
        for table in _WHOLE:
            copy.execute(f"INSERT INTO main.{table} SELECT * FROM src.{table}")  # noqa: S608
        for table, which in _PARTS.items():
            statement = f"INSERT INTO main.{table} SELECT * FROM src.{table} WHERE {which}"  # noqa: S608
            copy.execute(statement, window)
        copy.execute("COMMIT")


def _window(
    execute: Callable[..., sqlite3.Cursor],
    run_id: str | None,
    since_ns: int | None,
    until_ns: int | None,
) -> dict[str, int]:
    """Make the table of wanted runs (the host itself among them) and return the window."""
    execute("CREATE TEMP TABLE wanted (id TEXT PRIMARY KEY)")
    execute("INSERT INTO wanted VALUES ('')")
    latest = 2**62
    if run_id is not None:
        started, ended = execute(
            "SELECT started_ns, ended_ns FROM src.run WHERE id = ?", (run_id,)
        ).fetchone()
        execute("INSERT INTO wanted VALUES (?)", (run_id,))
        return {"since": started, "until": latest if ended is None else ended}
    window = {
        "since": 0 if since_ns is None else since_ns,
        "until": latest if until_ns is None else until_ns,
    }
    execute(
        "INSERT INTO wanted SELECT id FROM src.run WHERE started_ns <= :until"
        " AND (ended_ns IS NULL OR ended_ns >= :since)",
        window,
    )
    return window
