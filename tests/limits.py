"""A memory limit for one process: a cgroup where root may make one, else RLIMIT_DATA."""

from __future__ import annotations

import os
import resource
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


class CgroupLimit:
    """A cgroup of its own; what a process touched before it joined is not charged."""

    def __init__(self, name: str, size: int) -> None:
        first = ROOT / "memory"
        self.folder = (first if first.is_dir() else ROOT) / name
        self.folder.mkdir()
        file = "memory.limit_in_bytes" if first.is_dir() else "memory.max"
        (self.folder / file).write_text(str(size))

    def join(self) -> None:
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def close(self) -> None:
        self.folder.rmdir()


class DataLimit:
    """Private writable memory of the process that joins: what it has, and so many bytes more."""

    def __init__(self, name: str, size: int) -> None:
        self.size = size

    def join(self) -> None:
        lines = Path("/proc/self/status").read_text().splitlines()
        (held,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, (held + self.size, held + self.size))

    def close(self) -> None:
        pass


def limit(name: str, size: int) -> CgroupLimit | DataLimit:
    """Return the best limit that this machine allows."""
    try:
        return CgroupLimit(name, size)
    except OSError:
        return DataLimit(name, size)
