"""A damaged file is put aside under its own name and a time stamp, never deleted."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import time
from dataclasses import dataclass, field
from pathlib import Path

from memplan.store.migrate import APPLICATION_ID
from memplan.store.salvage import mend_header, salvage, schema_pages
from memplan.store.space import ballast_path
from memplan.types import Event, FrozenMap

__all__ = ["Rescue", "is_ours", "put_aside", "put_log_aside", "refill"]

_SIDES = ("-wal", "-shm")
_MARKS = (b"alembic_version", b"CREATE TABLE rollup_1m")
_LEAF = b"\x0d"
_LOOKED_AT = 4 * 1024**2
_PAGE = 4096


@dataclass(slots=True, kw_only=True)
class Rescue:
    """What became of a damaged database."""

    reason: str
    """What SQLite said."""
    database: Path
    """Where it was."""
    aside: Path
    """Where it is now."""
    counts: dict[str, int] = field(default_factory=dict)
    """Table -> rows that were saved."""
    problem: str = ""
    """Why nothing could be saved; empty when something was tried."""

    def event(self, now_ns: int) -> Event:
        """Return the event that tells it."""
        chunks = self.counts.get("chunk", 0)
        return Event(
            kind="store.quarantined",
            t_ns=now_ns,
            severity="error",
            message=f"a damaged database was moved to {self.aside.name}; {chunks} packed columns "
            "were saved from it" + (f" ({self.problem})" if self.problem else ""),
            data=FrozenMap(
                {
                    "reason": self.reason,
                    "file": str(self.aside),
                    **{f"rows.{name}": str(count) for name, count in self.counts.items()},
                }
            ),
        )


def is_ours(database: Path) -> bool:
    """Tell whether a file that cannot be used was a memplan database, and no stranger's file."""
    try:
        with database.open("rb") as file:
            head = file.read(_LOOKED_AT)
    except OSError:
        return False
    if head[68:72] == APPLICATION_ID.to_bytes(4, "big") or any(mark in head for mark in _MARKS):
        return True
    return not head.startswith(b"SQLite format 3") and ballast_path(database).exists()


def put_aside(database: Path, reason: str) -> Rescue:
    """Rename a database and its log. The caller holds the writer's lock and no connection."""
    aside = _rename(database, ("", *_SIDES))
    return Rescue(reason=reason, database=database, aside=aside)


def put_log_aside(database: Path) -> None:
    """Rename the log of a file that is not there any more: another file must not be read by it."""
    _rename(database, _SIDES)


def _rename(database: Path, sides: tuple[str, ...]) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = database.with_name(f"{database.name}.damaged-{stamp}")
    number = 1
    while any(Path(f"{aside}{side}").exists() for side in sides):
        number += 1
        aside = database.with_name(f"{database.name}.damaged-{stamp}-{number}")
    for side in sides:
        with contextlib.suppress(FileNotFoundError):
            Path(f"{database}{side}").rename(f"{aside}{side}")
    return aside


def refill(rescue: Rescue, target: sqlite3.Connection) -> None:
    """Copy what is sound into the new database and note in `rescue` how much that was.

    It works on a copy of the damaged file, as reading a log changes the file. Where there is no
    room for one, nothing is saved, and `rescue.problem` says so: the file is still there.
    """
    work = rescue.database.with_name(rescue.database.name + ".salvage")
    try:
        for side in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{rescue.aside}{side}", f"{work}{side}")
        _mend(work, rescue.database, target)
        with contextlib.closing(sqlite3.connect(work)) as source:
            source.execute("PRAGMA cell_size_check = ON")
            rescue.counts = salvage(source, target)
    except (OSError, sqlite3.Error) as error:
        rescue.problem = str(error)
        with contextlib.suppress(sqlite3.Error):
            target.execute("ROLLBACK")
    finally:
        for side in ("", *_SIDES, "-journal"):
            Path(f"{work}{side}").unlink(missing_ok=True)


def _mend(work: Path, database: Path, target: sqlite3.Connection) -> None:
    """Make the list of tables readable, with pages of the new database where they are gone."""
    target.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    size = work.stat().st_size
    with database.open("rb") as template, work.open("r+b") as file:
        first = template.read(_PAGE)
        page = mend_header(file.read(_PAGE), first, size)
        file.seek(0)
        file.write(page)
        for number in schema_pages(page):
            template.seek((number - 1) * _PAGE)
            sound = template.read(_PAGE)
            file.seek((number - 1) * _PAGE)
            if file.read(1) != _LEAF and sound[:1] == _LEAF:
                file.seek((number - 1) * _PAGE)
                file.write(sound)
