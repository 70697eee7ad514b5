"""The one read-write connection: its lock, its transactions, and what it does when a disk is full.

`memplan.store.writer.LocalWriter` is built on it. A write that the disk refuses lets go of the
ballast, drops the oldest samples and is tried once more; a damaged file is put aside, what can be
saved of it moves into a new one, and the write is tried once more there.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import sqlalchemy
from sqlalchemy import func, insert, select, update

from memplan.errors import StoreDamagedError, StoreError, StoreFullError, StoreLockedError
from memplan.store import quarantine, tables
from memplan.store.append import SampleLog
from memplan.store.engine import check_encoding, driver, is_url, translated, writer_engine
from memplan.store.lock import WriterLock, file_at, log_holders
from memplan.store.migrate import migrate, refuse_stranger
from memplan.store.retention import Policy, Retention, shrink
from memplan.store.space import Ballast

__all__ = ["LOG_CAP_BYTES", "WriterConnection"]

_log = logging.getLogger("memplan.store")

T = TypeVar("T")

LOG_CAP_BYTES = 64 * 1024**2
"""Longest write-ahead log. It grows while somebody reads an old state; then samples must wait."""

_ADVISORY_KEY = 0x6D656D70
"""PostgreSQL's advisory lock of the one writer."""

_ROOM_PAUSE_S = 60.0
"""Seconds between two attempts to make room by dropping samples."""

_ROOM_BATCHES = 4

_CHECKPOINT_EVERY = 4
"""Batches of housekeeping between two checkpoints, of some 1000 pages each."""

_CHECKPOINT_PAGES = 1000
"""Pages in the log after which a write makes a checkpoint by itself: SQLite's own default."""


class WriterConnection:
    """Opens, locks, migrates; then runs transactions, one at a time."""

    def __init__(
        self,
        database: str | Path,
        policy: Policy,
        log_cap_bytes: int,
        identity: tuple[str, str],
    ) -> None:
        """Take the lock and open. Raises what `LocalWriter` says."""
        self._identity = identity
        self.database = database
        self.path = None if is_url(database) else Path(database)
        self._place, self._wal = f"{self.path}", f"{self.path}-wal"
        self.degraded = ""
        """Why the store takes nothing at the moment; empty while all is well."""
        self.degraded_ns = 0
        """Since when, wall clock."""
        self.rescued: quarantine.Rescue | None = None
        """What became of a damaged file, when there was one."""
        self.policy = policy
        """How long what is kept."""
        self._log_cap_bytes = log_cap_bytes
        self._lock = None if self.path is None else WriterLock(self.path)
        self._ballast = None if self.path is None else Ballast(self.path)
        self._engine: sqlalchemy.Engine | None = None
        self._connection: sqlalchemy.Connection | None = None
        self._room_s: float | None = None
        self._batches = itertools.count(1)
        self.longest_checkpoint_s = 0.0
        """Longest time that a checkpoint took, which holds no lock but waits for the disk."""
        self._file: tuple[int, int] | None = None  # what is open at the moment
        self._log_file: tuple[int, int] | None = None  # its log, also when it is closed again
        self._stale = False
        if self._lock is not None:
            self._lock.acquire()
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        try:
            self._connect()
        except StoreDamagedError as error:
            if self.path is None or not quarantine.is_ours(self.path):
                raise
            self._rescue(error)
        if self._ballast is not None:
            self._ballast.set_aside()

    def _connect(self) -> None:
        if self.path is not None:
            refuse_stranger(self.path)
        self._engine = writer_engine(self.database)
        opened = None if self.path is None else file_at(self.path)
        with translated(self.database):
            self._connection = self._engine.connect()
        if self.path is not None and file_at(self.path) != opened:  # which one is open is unknown
            raise StoreError(f"{self.path} was replaced while it was opened", hint="try again")
        if self._lock is None:
            self._take_advisory_lock()
        migrate(self._connection, self.database)
        with self.begin() as connection:
            self.host_id = _host_id(connection, *self._identity)
            self.log = SampleLog(connection, self.host_id)
        self.retention = Retention(self.begin, self.host_id, self.policy)
        if self.path is not None:
            self._file, self._log_file = opened, file_at(self._wal)

    def _take_advisory_lock(self) -> None:
        with self.begin() as connection:
            check_encoding(connection)
            query = select(func.pg_try_advisory_lock(_ADVISORY_KEY))
            free = connection.execute(query).scalar()
        if not free:
            raise StoreLockedError(
                "another process writes to this database", hint="memplan daemon status"
            )

    @property
    def connection(self) -> sqlalchemy.Connection:
        """The connection, outside of any transaction."""
        assert self._connection is not None, "the writer is closed"
        return self._connection

    @contextlib.contextmanager
    def begin(self) -> Iterator[sqlalchemy.Connection]:
        """Run one transaction; errors are ours."""
        with translated(self.database), self.connection.begin():
            yield self.connection

    @contextlib.contextmanager
    def durable(self) -> Iterator[sqlalchemy.Connection]:
        """Run one transaction that survives a power cut: the disk has it when this returns."""
        if self.path is None:
            with self.begin() as connection:
                yield connection
            return
        driver(self.connection).execute("PRAGMA synchronous = FULL")
        try:
            with self.begin() as connection:
                yield connection
        finally:
            with contextlib.suppress(AssertionError):  # closed meanwhile
                driver(self.connection).execute("PRAGMA synchronous = NORMAL")

    def write(self, operation: Callable[[sqlalchemy.Connection], T], *, durable: bool = False) -> T:
        """Run an operation in a transaction, and again after making room or a new file.

        Raises StoreFullError when the disk still refuses, other StoreErrors otherwise.
        """
        try:
            self._check_place()
            try:
                result = self._attempt(operation, durable=durable)
            except StoreFullError:
                if not self._make_room():
                    raise
                result = self._attempt(operation, durable=durable)
            except StoreDamagedError as error:
                if self.path is None:
                    raise
                self._rescue(error)
                result = self._attempt(operation, durable=durable)
        except StoreError as error:
            self._degrade(error)
            raise
        self._well_again()
        return result

    def _check_place(self) -> None:
        """Begin anew where the file was removed or replaced: what went into it would be lost."""
        if self.path is None or self._lock is None:
            return
        if self._file is not None and file_at(self._place) == self._file:
            return
        self._disconnect()
        if not self._lock.is_in_place:  # with the lock: who holds the new one writes now
            self._lock.release()
            self._lock.acquire()
        if self._log_file is not None and file_at(self._wal) == self._log_file:
            quarantine.put_log_aside(self.path)  # it belongs to the file that was there
            self._log_file = None
        self._connect()
        _log.warning("%s was removed or replaced: a new database begins there", self.path)

    def _attempt(self, operation: Callable[[sqlalchemy.Connection], T], *, durable: bool) -> T:
        self._check_log()
        if self._stale:
            self._reload()
        try:
            with self.durable() if durable else self.begin() as connection:
                return operation(connection)
        except BaseException:
            self._stale = True
            raise

    def _reload(self) -> None:
        """Read the running numbers anew: a transaction that failed has given some to nobody."""
        with self.begin() as connection:
            self.log = SampleLog(connection, self.host_id)
        self._stale = False

    def _check_log(self) -> None:
        """Raise StoreFullError when the write-ahead log is too long and cannot begin anew."""
        if self.path is None or _size(self._wal) <= self._log_cap_bytes:
            return
        self.checkpoint("TRUNCATE")
        if _size(self._wal) <= self._log_cap_bytes:
            return
        assert self.path is not None
        pids = ", ".join(map(str, log_holders(self.path))) or "unknown"
        raise StoreFullError(
            f"the log of {self.path} is full: a process ({pids}) reads an old state of it",
            hint="end that process; samples wait in memory meanwhile",
        )

    def checkpoint(self, how: str = "PASSIVE") -> None:
        """Move the log into the file as far as readers allow; never raises StoreError."""
        if self.path is None:
            return
        with contextlib.suppress(StoreError), translated(self.database):
            raw = driver(self.connection)
            raw.execute("PRAGMA busy_timeout = 0")
            begun_s = time.perf_counter()
            try:
                raw.execute(f"PRAGMA wal_checkpoint({how})").fetchall()
            finally:
                took_s = time.perf_counter() - begun_s
                self.longest_checkpoint_s = max(self.longest_checkpoint_s, took_s)
                raw.execute("PRAGMA busy_timeout = 5000")

    @contextlib.contextmanager
    def checkpoints_apart(self) -> Iterator[Callable[[], None]]:
        """Keep checkpoints out of transactions: they wait for the disk with the lock held.

        Yields what is to be called after each transaction, when nobody waits for the lock; the
        last ones' checkpoint is left to the next write.
        """

        def pause() -> None:
            if next(self._batches) % _CHECKPOINT_EVERY == 0:
                self.checkpoint()

        if self.path is None:
            yield pause
            return
        with translated(self.database):
            raw = driver(self.connection)
            raw.execute("PRAGMA wal_autocheckpoint = 0")
            try:
                yield pause
            finally:
                raw.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")

    def _make_room(self) -> bool:
        """Let go of the ballast, then of the oldest samples; tell whether to try again.

        Not at every write: somebody else may be filling the disk as fast as we empty it.
        """
        if self._ballast is None:  # PostgreSQL's disk is its operator's
            return False
        freed = self._ballast.let_go()
        now = time.monotonic()
        if self._room_s is not None and now - self._room_s < _ROOM_PAUSE_S:
            return freed
        self._room_s = now
        for _ in range(_ROOM_BATCHES):
            try:
                freed = self.retention.drop_oldest() or freed
                with translated(self.database):
                    shrink(self.connection, 1 << 20)
            except StoreError:
                break
            self.checkpoint("TRUNCATE")
        return freed

    def _degrade(self, error: StoreError) -> None:
        if not self.degraded:
            self.degraded_ns = time.time_ns()
        self.degraded = str(error)

    def _well_again(self) -> None:
        if self.degraded:
            self.degraded, self._room_s = "", None
        if self._ballast is not None:
            self._ballast.set_aside()

    def _rescue(self, error: StoreDamagedError) -> None:
        """Put the damaged file aside and go on in a new one with what could be saved."""
        assert self.path is not None
        self._disconnect()
        self.rescued = quarantine.put_aside(self.path, str(error))
        self._connect()
        self.take_over(self.rescued)

    def take_over(self, rescue: quarantine.Rescue) -> None:
        """Move what is sound of a database that was put aside into this one."""
        quarantine.refill(rescue, driver(self.connection))
        with self.begin() as connection:
            self.host_id = _host_id(connection, *self._identity)
            self.log = SampleLog(connection, self.host_id)

    def _disconnect(self) -> None:
        self._file = None
        if self._connection is not None:
            with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError):
                self._connection.close()
            self._connection = None
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    def close(self) -> None:
        """Give the connection and the lock back."""
        self._disconnect()
        if self._lock is not None:
            self._lock.release()


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - asked at every write, so without a Path
    except OSError:
        return 0


def _host_id(connection: sqlalchemy.Connection, key: str, name: str) -> int:
    """Return this machine's number in the database; a new machine gets the next one."""
    h = tables.host.c
    row = connection.execute(select(h.id, h.name).where(h.key == key)).first()
    if row is None:
        number = (connection.execute(select(func.max(h.id))).scalar() or 0) + 1
        connection.execute(insert(tables.host), {"id": number, "key": key, "name": name})
        return number
    if row.name != name:
        connection.execute(update(tables.host).where(h.id == row.id).values(name=name))
    return int(row.id)
