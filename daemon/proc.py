"""Reading /proc: small files, by descriptor, from a root that tests can replace.

A process that is gone, or whose file may not be read, gives None and never an exception.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "Identity",
    "ProcFolder",
    "Process",
    "Stat",
    "has_memory",
    "kib_fields",
    "may_keep",
    "parse_stat",
    "raise_descriptor_limit",
    "read_at",
]

_READ_BYTES = 65536
_STAT_BYTES = 512
_STATUS_BYTES = 8192


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
    name: str
    """comm: the program's name, 15 bytes at most."""
    inode: int = 0
    """That of its folder, which no later process of its number has; 0 where that is not known."""


class Identity(NamedTuple):
    """What tells a process from every other one that has or had its number."""

    pid: int
    """Process id."""
    start_ticks: int | None
    """Start, in clock ticks since boot. With the pid it is no identity: a number that is used
    again within 10 ms has the same."""
    inode: int | None
    """The inode of its pidfd, which is never used again until the machine restarts; None where
    the kernel has none (before 6.9) or /proc is a copy."""


def raise_descriptor_limit() -> int:
    """Allow as many open files as the administrator does, and return that number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


_SPARE = 16
"""Descriptors that are never kept: listing, reading a file and the store need some for a moment."""


def may_keep(descriptor: int) -> bool:
    """Return True where enough descriptors are left beside one that is to be kept.

    The kernel gives the lowest free number, so the number tells how many are in use.
    """
    return descriptor < resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE


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
        return Stat(
            int(data[:open_at]),
            fields[0].decode(),
            int(fields[1]),
            int(fields[3]),
            data[open_at + 2 : close_at].decode("utf-8", "replace"),
        )
    except (IndexError, ValueError):
        return None


def has_memory(statm: bytes | None) -> bool:
    """Tell by its statm file whether a process has memory of its own: who ended has none."""
    return statm is not None and not statm.startswith(b"0 ")


def kib_fields(data: bytes) -> dict[str, int]:
    """Return the "Name:  123 kB" lines of a status, meminfo or smaps file, in bytes."""
    found: dict[str, int] = {}
    for line in data.splitlines():
        name, _, rest = line.partition(b":")
        words = rest.split()
        if len(words) == 2 and words[1] == b"kB" and words[0].isdigit():
            found[name.decode("ascii", "replace")] = int(words[0]) * 1024
    return found


def _stats(folder: int, inodes: Mapping[int, int]) -> dict[int, Stat]:
    """Return what `parse_stat` says of each process; `read_at` for thousands, all in one place."""
    found = {}
    open_, read, close, flags = os.open, os.read, os.close, os.O_RDONLY | os.O_CLOEXEC
    for pid, inode in inodes.items():
        try:
            descriptor = open_(f"{pid}/stat", flags, dir_fd=folder)
        except OSError:
            continue
        try:
            stat = parse_stat(read(descriptor, _STAT_BYTES))
        except OSError:  # ESRCH: it ended between the two calls
            continue
        finally:
            close(descriptor)
        if stat is not None:
            found[stat.pid] = stat._replace(inode=inode)
    return found


class ProcFolder:
    """One /proc."""

    def __init__(self, root: Path = Path("/proc")) -> None:
        """Remember the root.

        Args:
            root: /proc, or a recorded copy.
        """
        self.root = root
        self.is_real = str(root) == "/proc"
        """False for a copy: process ids in it mean nothing to the kernel."""

    def read(self, name: str) -> bytes | None:
        """Return a file of the root folder, such as "meminfo"."""
        return read_at(f"{self.root}/{name}")

    def stats(self, known: Mapping[int, Stat] | None = None) -> dict[int, Stat]:
        """Return every process by its id: one listing, one short file for each that is not known.

        Args:
            known: processes that need not be read again where they and their parents are the same
                (the kernel's listing tells that by inodes); their names may be old. Those of a
                copy, where a folder may be written anew, are always read.
        """
        try:
            folder = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return {}
        try:
            with os.scandir(folder) as entries:
                inodes = {int(e.name): e.inode() for e in entries if e.name.isdigit()}
            if not known or not self.is_real:
                return _stats(folder, inodes)
            there = {pid: s for pid, s in known.items() if inodes.get(pid) == s.inode}
            same = {pid: stat for pid, stat in there.items() if stat.parent in there}
            others = {pid: inode for pid, inode in inodes.items() if pid not in same}
            return same | _stats(folder, others)
        finally:
            os.close(folder)

    def line(self, pid: int) -> Iterator[int]:
        """Yield a process, its parent, the parent's parent ... as they are now."""
        while pid > 1:
            yield pid
            stat = parse_stat(self.read(f"{pid}/stat"))
            pid = stat.parent if stat is not None else 0

    def open(self, pid: int) -> Process | None:
        """Take hold of one process, or return None when it is gone."""
        path = f"{self.root}/{pid}"
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return None
        except OSError:  # out of descriptors: by path, with the risk of a reused id
            return Process(pid, path, None)
        if not may_keep(folder):
            os.close(folder)
            return Process(pid, path, None)
        return Process(pid, path, folder)


class Process:
    """A process that is held by an open descriptor of its folder.

    The descriptor goes on meaning this process after it ended, also when its id is given to
    another one: every read then fails. (Process id and start time together are no identity:
    both can be the same for two processes.)
    """

    __slots__ = ("_folder", "_kept", "_path", "identity", "label", "pid", "uid")

    def __init__(self, pid: int, path: str, folder: int | None, label: str = "") -> None:
        """Remember the process; `ProcFolder.open` makes these."""
        self.pid = pid
        self.label = label or str(pid)
        """Its name in series: the pid, with "#2" where the run had another one of that number."""
        self.uid: int | None = None
        """Owner; None until `identify`."""
        self.identity = Identity(pid, None, None)
        """Set by `identify`."""
        self._path = path
        self._folder = folder
        self._kept: dict[str, int] = {}

    def read(self, name: str) -> bytes | None:
        """Return one of its files, or None when it is gone or may not be read."""
        if self._folder is None:
            return read_at(f"{self._path}/{name}")
        return read_at(name, self._folder)

    def status(self) -> bytes | None:
        """Return its status file through a descriptor that is kept: a third of the cost."""
        return self._read_kept("status")

    def statm(self) -> bytes | None:
        """Return its statm file, kept, too: the kernel makes it in a tenth of status's time."""
        return self._read_kept("statm")

    def cgroup(self) -> bytes | None:
        """Return its control groups, kept, too."""
        return self._read_kept("cgroup")

    def _read_kept(self, name: str) -> bytes | None:
        try:
            descriptor = self.keep(name)
            if descriptor is None:
                return self.read(name)
            return os.pread(descriptor, _STATUS_BYTES, 0) or None
        except OSError:
            return self.read(name)

    def keep(self, name: str) -> int | None:
        """Open a file for good and return its descriptor; None where too few would be left.

        Raises OSError when the process is gone.
        """
        if (descriptor := self._kept.get(name)) is not None or self._folder is None:
            return descriptor
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder)
        if may_keep(descriptor):
            self._kept[name] = descriptor
            return descriptor
        os.close(descriptor)
        return None

    def stat(self) -> Stat | None:
        """Return its place among others, or None when it is gone."""
        return parse_stat(self.read("stat"))

    def identify(self) -> None:
        """Learn who it is and whose; costs four system calls, once in its life.

        The pidfd is opened by number, so it may be another process's: not so when this one still
        answers afterwards, because then its number cannot have been given away.
        """
        inode = _pidfd_inode(self.pid)
        fields = (self.read("stat") or b"").rpartition(b")")[2].split()
        start = int(fields[19]) if len(fields) > 19 and fields[19].isdigit() else None
        real = self._path == f"/proc/{self.pid}"
        self.identity = Identity(self.pid, start, inode if start is not None and real else None)
        _, _, rest = (self.status() or b"").partition(b"\nUid:")
        words = rest.split(None, 2)
        self.uid = int(words[1]) if len(words) > 1 and words[1].isdigit() else None

    def close(self) -> None:
        """Let go of it."""
        for descriptor in self._kept.values():
            os.close(descriptor)
        self._kept = {}
        if self._folder is not None:
            os.close(self._folder)
            self._path = "/dev/null"
        self._folder = None


def _pidfd_inode(pid: int) -> int | None:
    """Return the inode of a pidfd; None where all pidfds share one (kernels before 6.9)."""
    inode, own = _inode(pid), _inode(os.getpid())
    return None if inode == own and pid != os.getpid() else inode


def _inode(pid: int) -> int | None:
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        return os.fstat(descriptor).st_ino
    finally:
        os.close(descriptor)
