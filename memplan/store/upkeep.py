"""Looking after a database: check, repair, back up, pack anew."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from memplan.errors import StoreDamagedError, StoreError, StoreMissingError, UsageError
from memplan.store import codec, quarantine, tables
from memplan.store.engine import is_url, translated
from memplan.store.lock import WriterLock
from memplan.store.migrate import HEAD

__all__ = ["Check", "backup", "check", "compact", "local_path", "open_read_only", "repair"]

_MOST_PROBLEMS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What a look at every page and every checksum found."""

    schema: str | None
    """Revision of the tables."""
    bytes: int
    """Size of the file and its log."""
    rows: tuple[tuple[str, int], ...]
    """(table, rows)."""
    problems: tuple[str, ...]
    """What is wrong; empty = sound."""


def local_path(database: str | Path) -> Path:
    """Return a database's file. Raises UsageError for a URL, StoreMissingError when it is not."""
    if is_url(database):
        raise UsageError(
            "this works on an SQLite file only", hint="use PostgreSQL's own tools: pg_dump"
        )
    path = Path(database).expanduser()
    if not path.is_file():
        raise StoreMissingError(
            f"there is no database at {path} yet", hint="measure something: memplan run -- COMMAND"
        )
    return path


@contextlib.contextmanager
def open_read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database for reading with SQLite's own module; errors are ours."""
    with translated(path):
        uri = f"file:{quote(str(path.absolute()))}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=5)) as connection:
            yield connection


def check(database: str | Path) -> Check:
    """Read every page and every checksum; the writer may go on meanwhile.

    Raises StoreMissingError when there is none; what is wrong with it is no error but the answer.
    """
    path = local_path(database)
    problems: list[str] = []
    rows: list[tuple[str, int]] = []
    schema = None
    try:
        with open_read_only(path) as connection:
            found = connection.execute(f"PRAGMA integrity_check({_MOST_PROBLEMS})").fetchall()
            problems += [text for (text,) in found if text != "ok"]
            schema = _schema(connection)
            if schema is None:
                problems.append("no tables of memplan are in it")
            elif schema == HEAD:
                rows = _count(connection)
                problems += _checksums(connection)
            else:
                problems.append(f"its schema is {schema}, this program's is {HEAD}")
    except StoreError as error:
        problems.append(str(error))
    return Check(
        schema=schema,
        bytes=sum(p.stat().st_size for p in (path, Path(f"{path}-wal")) if p.exists()),
        rows=tuple(rows),
        problems=tuple(problems[:_MOST_PROBLEMS]),
    )


def _schema(connection: sqlite3.Connection) -> str | None:
    query = "SELECT name FROM sqlite_master WHERE name = 'alembic_version'"
    if connection.execute(query).fetchone() is None:
        return None
    return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def _count(connection: sqlite3.Connection) -> list[tuple[str, int]]:
    names = [table.name for table in tables.metadata.sorted_tables]
    return [
        (name, connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0])  # noqa: S608
        for name in names
    ]


def _checksums(connection: sqlite3.Connection) -> list[str]:
    problems = []
    for number, series, n, low, high, last, crc, data in connection.execute(
        "SELECT block_id, series_id, n, low, high, last, crc, data FROM chunk"
    ):
        if codec.checksum(data, n, low, high, last) != crc:
            problems.append(f"chunk {number}/{series} has a wrong checksum")
    for table in ("block", "tick"):
        query = f"SELECT seq0, n, crc, data FROM {table}"  # noqa: S608
        for seq, n, crc, data in connection.execute(query):
            if codec.checksum(data, seq, n) != crc:
                problems.append(f"{table} of instant {seq} has a wrong checksum")
    return problems


def repair(database: str | Path) -> quarantine.Rescue | None:
    """Put a damaged database aside and move what is sound into a new one; None when it is sound.

    Raises StoreLockedError while another process writes to it, and StoreDamagedError when it is
    another program's file.
    """
    from memplan.store.writer import LocalWriter

    path = local_path(database)
    lock = WriterLock(path)
    lock.acquire()
    try:
        found = check(path)
        if not found.problems or (found.schema not in (None, HEAD) and len(found.problems) == 1):
            return None
        if not quarantine.is_ours(path):
            raise StoreDamagedError(
                f"{path} was not made by memplan and is left alone: {found.problems[0]}",
                hint="name another place: export MEMPLAN_DATABASE=FILE",
            )
        rescue = quarantine.put_aside(path, found.problems[0])
    finally:
        lock.release()
    with LocalWriter(path) as writer:
        writer.take_over(rescue)
    return rescue


def backup(database: str | Path, target: Path) -> int:
    """Copy a database into one file while its writer goes on; return its size in bytes.

    Raises UsageError when the target exists.
    """
    path = local_path(database)
    if target.exists():
        raise UsageError(f"{target} exists already", hint="name a new file, or remove that one")
    with (
        open_read_only(path) as source,
        new_file(target) as half,
        contextlib.closing(sqlite3.connect(half)) as copy,
    ):
        source.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")
    return target.stat().st_size


@contextlib.contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Give a place to write at, and move it to the target when all went well."""
    if not target.parent.is_dir():
        raise UsageError(f"there is no folder {target.parent}", hint=f"mkdir -p {target.parent}")
    half = target.with_name(target.name + ".part")
    with translated(target):
        try:
            half.unlink(missing_ok=True)
            os.close(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            yield half
            half.replace(target)
        finally:
            half.unlink(missing_ok=True)


def compact(database: str | Path) -> tuple[int, int]:
    """Delete what is too old and pack the file anew; return its size before and after."""
    from memplan.store.writer import LocalWriter

    path = local_path(database)
    before = path.stat().st_size
    with LocalWriter(path) as writer:
        writer.keep_house()
        writer.vacuum()
    return before, path.stat().st_size
