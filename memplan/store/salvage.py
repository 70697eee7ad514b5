"""Reading what can still be read of a damaged database.

SQLite's own `.recover` gave nothing in four of four cases that were tried, so rows are asked for
in ranges: where a page is damaged the range is halved, until only what lies on that page is left
out. A row counts when its checksum is right (samples) or its document is JSON (all else). Roll-ups
and peaks that were lost are made anew of the samples that are there.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from typing import Any

from memplan.store import codec, tables
from memplan.store.rebuild import rebuild

__all__ = ["mend_header", "salvage", "schema_pages"]

_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_ROWS = 200
_MOST_PROBES = 20_000

_BY_ROWID = (
    tables.host,
    tables.entity,
    tables.series,
    tables.plan,
    tables.run,
    tables.device,
    tables.phase,
    tables.event,
    tables.block,
    tables.tick,
    tables.peak,
)
_BY_KEY = (tables.rollup_1m, tables.rollup_1h)

_KEPT = "key = 'database' OR key LIKE 'erased:%'"
"""Rows of `meta` that are true of the new database, too."""

_MISSING_PEAKS = """
    INSERT OR IGNORE INTO peak (host_id, series_id, n, low, high, high_t_ns, first_t_ns, last_t_ns)
    SELECT h, s, n, low, high, high_t_ns, first, last FROM (
        SELECT c.host_id h, c.series_id s, sum(c.n) n, min(c.low) low, min(b.t0_ns) first,
        max(b.t1_ns) last FROM chunk c
        JOIN block b ON b.host_id = c.host_id AND b.id = c.block_id GROUP BY 1, 2
    ) JOIN (
        SELECT host_id h2, series_id s2, max(high) high, high_t_ns FROM chunk GROUP BY 1, 2
    ) ON h2 = h AND s2 = s
"""


def mend_header(page: bytes, template: bytes, file_bytes: int) -> bytes:
    """Return a first page that SQLite can read.

    Args:
        page: the damaged database's first page.
        template: the first page of a sound database with the same schema.
        file_bytes: size of the damaged file.

    Where the header is gone, the template's takes its place; where the list of tables behind it
    is gone, too, the whole page does, as a new database has its tables at the same pages.
    """
    if page[_HEADER_BYTES : _HEADER_BYTES + 1] not in (b"\x05", b"\x0d"):
        page = template
    elif not page.startswith(_MAGIC):
        page = template[:_HEADER_BYTES] + page[_HEADER_BYTES:]
    size = int.from_bytes(page[16:18], "big") or 4096
    pages = (file_bytes // (65536 if size == 1 else size)).to_bytes(4, "big")
    no_free_list = bytes(8)
    return page[:28] + pages + no_free_list + page[40:92] + page[24:28] + page[96:]


def schema_pages(first: bytes) -> list[int]:
    """Return the numbers of the pages that hold the list of tables, besides the first page."""
    if first[_HEADER_BYTES] != 5:
        return []
    at = _HEADER_BYTES
    count = int.from_bytes(first[at + 3 : at + 5], "big")
    found = [int.from_bytes(first[at + 8 : at + 12], "big")]
    for i in range(count):
        cell = int.from_bytes(first[at + 12 + 2 * i : at + 14 + 2 * i], "big")
        found.append(int.from_bytes(first[cell : cell + 4], "big"))
    return found


def salvage(source: sqlite3.Connection, target: sqlite3.Connection) -> dict[str, int]:
    """Copy every sound row into a new database and return how many of each table.

    Args:
        source: the damaged database.
        target: a new one, outside of a transaction.
    """
    counts: dict[str, int] = {}
    target.execute("BEGIN IMMEDIATE")
    for table in (*_BY_ROWID, tables.chunk, *_BY_KEY):
        with contextlib.suppress(sqlite3.DatabaseError):
            counts[table.name] = _copy(source, target, table)
    with contextlib.suppress(sqlite3.DatabaseError):
        rows = source.execute(f"SELECT key, value FROM meta WHERE {_KEPT}")  # noqa: S608
        target.executemany("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", rows)
    target.execute(_MISSING_PEAKS)
    for name, count in rebuild(target).items():
        counts[name] = counts.get(name, 0) + count
    target.execute("COMMIT")
    return counts


def _copy(source: sqlite3.Connection, target: sqlite3.Connection, table: Any) -> int:
    there = {row[1] for row in source.execute(f"PRAGMA table_info({table.name})")}
    names = [column.name for column in table.c if column.name in there]
    if not names:
        return 0
    columns = ", ".join(names)
    marks = ", ".join("?" * len(names))
    into, values = f"({columns})", f"({marks})"
    if "host_id" not in names and "host_id" in table.c:  # a database of schema 0001
        into, values = f"(host_id, {columns})", f"(1, {marks})"
    statement = f"INSERT OR IGNORE INTO {table.name} {into} VALUES {values}"  # noqa: S608
    if table is tables.chunk:
        rows = _by_block(source, target, columns)
    elif table in _BY_KEY:
        rows = _keyed(source, table, columns)
    else:
        rows = _ranged(source, table, columns)
    count = 0
    for row in rows:
        if _sound(table, dict(zip(names, row, strict=True))):
            with contextlib.suppress(sqlite3.IntegrityError):
                count += target.execute(statement, row).rowcount
    return count


def _sound(table: Any, row: dict[str, Any]) -> bool:
    """Tell whether a row is what was written once."""
    try:
        if table is tables.chunk:
            numbers = (row["n"], row["low"], row["high"], row["last"])
            return codec.checksum(row["data"], *numbers) == int(row["crc"])
        if table in (tables.block, tables.tick):
            return codec.checksum(row["data"], row["seq0"], row["n"]) == int(row["crc"])
        if "document" in row:
            json.loads(row["document"])
    except Exception:  # noqa: BLE001 - any kind of nonsense may stand there
        return False
    return all(row.get(c.name, 0) is not None for c in table.c if not c.nullable)


def _ranged(source: sqlite3.Connection, table: Any, columns: str) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a table by halving the ranges of row ids that cannot be read."""
    name = table.name
    forward = f"SELECT rowid, {columns} FROM {name} NOT INDEXED WHERE rowid > ? LIMIT {_ROWS}"  # noqa: S608
    last = 0
    with contextlib.suppress(sqlite3.DatabaseError):
        while rows := source.execute(forward, (last,)).fetchall():
            yield from (row[1:] for row in rows)
            last = rows[-1][0]
        return
    between = f"SELECT {columns} FROM {name} NOT INDEXED WHERE rowid BETWEEN ? AND ?"  # noqa: S608
    todo = [(last + 1, _highest(source, name, last))]
    for _ in range(_MOST_PROBES):
        if not todo:
            return
        low, high = todo.pop()
        try:
            found = source.execute(between, (low, high)).fetchall()
        except sqlite3.DatabaseError:
            middle = (low + high) // 2
            todo += [(middle + 1, high), (low, middle)] if low < high else []
            continue
        yield from found


def _by_block(
    source: sqlite3.Connection, target: sqlite3.Connection, columns: str
) -> Iterator[tuple[Any, ...]]:
    """Yield the chunks of every block that was saved; forwards and back where a page is damaged."""
    blocks = target.execute("SELECT host_id, day, id FROM block").fetchall()
    query = f"SELECT {columns} FROM chunk WHERE host_id = ? AND day = ? AND block_id = ?"  # noqa: S608
    for block in blocks:
        for order in ("", " ORDER BY series_id DESC"):
            with contextlib.suppress(sqlite3.DatabaseError):
                yield from source.execute(query + order, block)
                break


def _highest(source: sqlite3.Connection, name: str, last: int) -> int:
    """Return the largest row id, or a guess where that cannot be read."""
    try:
        query = f"SELECT max(rowid) FROM {name} NOT INDEXED"  # noqa: S608
        return int(source.execute(query).fetchone()[0])
    except (sqlite3.DatabaseError, TypeError):
        return last + 1_000_000


def _keyed(source: sqlite3.Connection, table: Any, columns: str) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a table without row ids from both ends up to what cannot be read."""
    for order in ("", " DESC"):
        keys = ", ".join(column.name + order for column in table.primary_key)
        cursor = source.execute(f"SELECT {columns} FROM {table.name} ORDER BY {keys}")  # noqa: S608
        try:
            yield from cursor
        except sqlite3.DatabaseError:
            continue
        return
