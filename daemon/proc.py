"""Reading /proc: small files, by descriptor, from a root that tests can replace.

A process that is gone, or whose file may not be read, gives None and never an exception.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

__all__ = ["ProcFolder", "Process", "Stat", "kib_fields", "parse_stat", "read_at"]

_READ_BYTES = 65536
_STAT_BYTES = 512


class Stat(NamedTuple):
    """The fields of /proc/PID/stat that tell a process's place among others."""

    pid: int
    """Process id."""
    state: str
    """"R", "S", "D", "Z" (zombie) ..."""
    parent: int
    """Parent's process id."""
    session: int
    """Session id."""


def read_at(path: str, folder: int | None = None, size: int = _READ_BYTES) -> bytes | None:
    """Return the beginning of a small file, or None when it cannot be read.

    Args:
        path: absolute, or relative to `folder`.
        folder: an open folder's descriptor.
        size: most bytes to read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return None
    try:
        return os.read(descriptor, size)
    except OSError:  # ESRCH: it ended between the two calls
        return None
    finally:
        os.close(descriptor)


def parse_stat(data: bytes | None) -> Stat | None:
    """Return the fields of a stat file, or None when it is not one.

    The name in parentheses may hold anything, also ")" and spaces: the last ")" ends it.
    """
    if data is None:
        return None
    open_at, close_at = data.find(b" ("), data.rfind(b")")
    fields = data[close_at + 1 :].split(None, 5)
    try:
        return Stat(int(data[:open_at]), fields[0].decode(), int(fields[1]), int(fields[3]))
    except (IndexError, ValueError):
        return None


def kib_fields(data: bytes) -> dict[str, int]:
    """Return the "Name:  123 kB" lines of a status, meminfo or smaps file, in bytes."""
    found: dict[str, int] = {}
    for line in data.splitlines():
        name, _, rest = line.partition(b":")
        words = rest.split()
        if len(words) == 2 and words[1] == b"kB" and words[0].isdigit():
            found[name.decode("ascii", "replace")] = int(words[0]) * 1024
    return found


class ProcFolder:
    """One /proc."""

    def __init__(self, root: Path = Path("/proc")) -> None:
        """Remember the root.

        Args:
            root: /proc, or a recorded copy.
        """
        self.root = root

    def read(self, name: str) -> bytes | None:
        """Return a file of the root folder, such as "meminfo"."""
        return read_at(f"{self.root}/{name}")

    def stats(self) -> dict[int, Stat]:
        """Return every process by its id: one listing, one short file per process."""
        try:
            folder = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return {}
        try:
            names = [n for n in os.listdir(folder) if n.isdigit()]  # noqa: PTH208 - by descriptor
            found = (parse_stat(read_at(f"{name}/stat", folder, _STAT_BYTES)) for name in names)
            return {stat.pid: stat for stat in found if stat is not None}
        finally:
            os.close(folder)

    def open(self, pid: int) -> Process | None:
        """Take hold of one process, or return None when it is gone."""
        path = f"{self.root}/{pid}"
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return None
        except OSError:  # out of descriptors: by path, with the risk of a reused id
            return Process(pid, path, None)
        return Process(pid, path, folder)


class Process:
    """A process that is held by an open descriptor of its folder.

    The descriptor goes on meaning this process after it ended, also when its id is given to
    another one: every read then fails. (Process id and start time together are no identity:
    both can be the same for two processes.)
    """

    __slots__ = ("_folder", "_path", "pid")

    def __init__(self, pid: int, path: str, folder: int | None) -> None:
        """Remember the process; `ProcFolder.open` makes these."""
        self.pid = pid
        self._path = path
        self._folder = folder

    def read(self, name: str) -> bytes | None:
        """Return one of its files, or None when it is gone or may not be read."""
        if self._folder is None:
            return read_at(f"{self._path}/{name}")
        return read_at(name, self._folder)

    def stat(self) -> Stat | None:
        """Return its place among others, or None when it is gone."""
        return parse_stat(self.read("stat"))

    def close(self) -> None:
        """Let go of it."""
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None
            self._path = "/dev/null"
