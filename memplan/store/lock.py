"""One process writes: an exclusive lock beside the database, which the kernel frees with it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from memplan.errors import StoreError, StoreLockedError

__all__ = ["WriterLock", "file_at", "lock_path", "log_holders"]


def lock_path(database: Path) -> Path:
    """Return the lock file of a database."""
    return database.with_name(database.name + ".lock")


class WriterLock:
    """An flock on "<database>.lock", whose text is the holder's process id.

    The file stays when the lock is given back: deleting it would let two processes hold two files
    of one name. A holder that is killed loses the lock with its last descriptor.
    """

    def __init__(self, database: Path) -> None:
        """Prepare; nothing is touched before `acquire`.

        Args:
            database: the database's file.
        """
        self._path = lock_path(database)
        self._database = database
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises StoreLockedError, with the holder's process id, when another process has it, and
        StoreError when the folder cannot be written.
        """
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreError(
                f"cannot write beside {self._database}: {error.strerror or error}",
                hint="name another place: export MEMPLAN_DATABASE=FILE",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = self._holder(descriptor)
            os.close(descriptor)
            raise StoreLockedError(
                f"{self._database} is in use by process {holder}: only one process writes to it",
                hint="memplan daemon status (memplan daemon stop ends it)",
            ) from error
        with contextlib.suppress(OSError):
            # A full disk must not keep a process from holding the lock.
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor

    @staticmethod
    def _holder(descriptor: int) -> str:
        with contextlib.suppress(OSError):
            return os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
        return "unknown"

    @property
    def is_in_place(self) -> bool:
        """False when the file was removed: somebody else could then hold another one."""
        return self._descriptor is not None and file_at(self._path) == file_at(self._descriptor)

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def file_at(place: Path | str | int) -> tuple[int, int] | None:
    """Return which file a path leads to, or a descriptor is of; None where there is none.

    It is the file's device and its number there, which no other file gets as long as somebody has
    this one open. No descriptor is needed for it, and of a database there must be none but
    SQLite's: closing it would give up all locks that this process has on the file.
    """
    try:
        found = os.stat(place)  # noqa: PTH116 - it takes descriptors, too
    except OSError:
        return None
    return found.st_dev, found.st_ino


def log_holders(database: Path, proc: Path = Path("/proc")) -> tuple[int, ...]:
    """Return the other processes that have the database's log open, by the kernel's locks.

    Args:
        database: the database's file.
        proc: where /proc is.
    """
    try:
        inode = str(database.with_name(database.name + "-shm").stat().st_ino)
        lines = (proc / "locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return ()
    found = set()
    for words in map(str.split, lines):  # "1: POSIX ADVISORY READ <pid> <device>:<inode> 123 123"
        if len(words) > 5 and words[1] == "POSIX" and words[5].rpartition(":")[2] == inode:
            found.add(int(words[4]))
    return tuple(sorted(found - {os.getpid()}))
