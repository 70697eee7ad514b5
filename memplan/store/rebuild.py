"""Roll-ups made anew of samples: a page of them that was lost hides no peak.

Only for SQLite, and only in a salvaged database. Where a minute or an hour of a series is still
there it is left alone: it also holds what samples are gone by now.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

from memplan.errors import StoreDamagedError
from memplan.store import codec
from memplan.store.frame import HOUR_NS, MINUTE_NS, Column, Frame, Summary, by_period

__all__ = ["rebuild"]

_PERIODS = {"rollup_1m": MINUTE_NS, "rollup_1h": HOUR_NS}

_KEYS = "SELECT period, series_id FROM {} WHERE host_id = ? AND period BETWEEN ? AND ?"
_COLUMNS = "host_id, period, series_id, n, low, high, high_t_ns, total, last"
_MERGE = f"""
    INSERT INTO temp.missing ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (host_id, period, series_id) DO UPDATE SET n = n + excluded.n,
    low = min(low, excluded.low),
    high_t_ns = CASE WHEN excluded.high > high THEN excluded.high_t_ns ELSE high_t_ns END,
    high = max(high, excluded.high), total = total + excluded.total, last = excluded.last"""  # noqa: S608
_BLOCKS = "SELECT host_id, id, day, t0_ns, t1_ns, codec, data FROM block ORDER BY host_id, id"
_CHUNKS = "SELECT series_id, n, codec, data FROM chunk WHERE host_id = ? AND day = ?"


def rebuild(database: sqlite3.Connection) -> dict[str, int]:
    """Insert the roll-ups that samples say there must be; return how many of each table.

    Args:
        database: in a transaction; every packed row in it has a right checksum.
    """
    counts = {}
    for table, period_ns in _PERIODS.items():
        database.execute("DROP TABLE IF EXISTS temp.missing")
        database.execute(
            f"CREATE TEMP TABLE missing ({_COLUMNS}, PRIMARY KEY (host_id, period, series_id))"
        )
        for block in database.execute(_BLOCKS).fetchall():
            database.executemany(_MERGE, list(_missing(database, table, period_ns, block)))
        counts[table] = database.execute(
            f"INSERT INTO {table} ({_COLUMNS}) SELECT {_COLUMNS} FROM temp.missing"  # noqa: S608
        ).rowcount
        database.execute("DROP TABLE temp.missing")
    return counts


def _missing(
    database: sqlite3.Connection,
    table: str,
    period_ns: int,
    block: tuple[int, int, int, int, int, int, bytes],
) -> Iterator[tuple[object, ...]]:
    """Yield the rows that a block's samples call for and that are not there."""
    host, number, day, t0_ns, t1_ns, version, data = block
    first, last = t0_ns // period_ns, t1_ns // period_ns
    there = set(database.execute(_KEYS.format(table), (host, first, last)).fetchall())
    times: list[int] = []
    with contextlib.suppress(StoreDamagedError):
        times, _ = codec.unpack_times(codec.unpack(version, data))
    periods = {t_ns // period_ns for t_ns in times}
    chunks = database.execute(_CHUNKS + " AND block_id = ?", (host, day, number)).fetchall()
    for series, n, packing, values in chunks:
        if all((period, series) in there for period in periods):
            continue
        for period, found in _summaries(times, n, packing, values, period_ns):
            if (period, series) not in there:
                numbers = (found.n, found.low, found.high, found.high_t_ns, found.total, found.last)
                yield (host, period, series, *numbers)


def _summaries(
    times: list[int], n: int, packing: int, data: bytes, period_ns: int
) -> Iterator[tuple[int, Summary]]:
    """Yield period and summary of one chunk's values; nothing where they do not fit the times."""
    with contextlib.suppress(StoreDamagedError, IndexError):
        values, index = codec.unpack_column(packing, data, n)
        if index is None and len(values) != len(times):
            return
        frame = Frame(times=times, columns={0: Column(values=values, index=index)})
        for (period, _), found in by_period(
            frame.stretches(period_ns), period_ns, period_ns
        ).items():
            yield period, found
