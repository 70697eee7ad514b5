"""A full disk: a ballast file that can be let go of, and what is left.

At a full disk SQLite cannot even delete, as that too needs room in its log. A megabyte that was
set aside in time lets the same connection go on.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["BALLAST_BYTES", "Ballast", "ballast_path"]

BALLAST_BYTES = 1024**2

PLENTY_BYTES = 16 * 1024**2
"""Free space from which the ballast is set aside (again)."""


def ballast_path(database: Path) -> Path:
    """Return the ballast file of a database."""
    return database.with_name(database.name + ".ballast")


class Ballast:
    """A file of BALLAST_BYTES beside the database, real blocks and no hole."""

    def __init__(self, database: Path) -> None:
        """Prepare; nothing is written yet."""
        self._path = ballast_path(database)
        self._text = str(self._path)

    def set_aside(self) -> None:
        """Make the file if it is not there and there is plenty of room; never raises."""
        if os.path.exists(self._text):  # noqa: PTH110 - asked at every write, so without a Path
            return
        with contextlib.suppress(OSError):
            room = os.statvfs(self._path.parent)
            if room.f_bavail * room.f_frsize < PLENTY_BYTES:
                return
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, BALLAST_BYTES)
            finally:
                os.close(descriptor)

    def let_go(self) -> bool:
        """Delete the file; tell whether that freed anything."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True
