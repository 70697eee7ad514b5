"""The control group that a run lives in: its limit, what it uses now, its own peak."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from memplan_daemon.collectors.base import Reading, Watch
from memplan_daemon.proc import ProcFolder, read_at

__all__ = ["CgroupCollector"]

_NO_LIMIT = 2**62
"""Version 1 writes a limit near 2**63 where there is none; no machine has half of that."""


@dataclass(frozen=True, slots=True)
class _Files:
    limit: str
    current: str
    peak: str


_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.max_usage_in_bytes")
_V2 = _Files("memory.max", "memory.current", "memory.peak")


class CgroupCollector:
    """Reads the memory controller, version 2 or 1, of the group of a run's root process.

    The limit is the tightest of the group's and its parents'. The group may hold more than the
    run: its numbers are the group's, not the tree's.
    """

    def __init__(self, proc: ProcFolder, root: Path = Path("/sys/fs/cgroup")) -> None:
        """Remember where to look.

        Args:
            proc: the /proc that tells a process's group.
            root: where the groups are mounted.
        """
        self._proc = proc
        self._root = root

    def collect(self, watch: Watch) -> Iterable[Reading]:
        """Return the group's readings; nothing for the host, or without a memory controller."""
        member = watch.members.get(watch.pid) if watch.pid is not None else None
        if member is None or (data := member.read("cgroup")) is None:
            return
        place = _place(data)
        if place is None:
            return
        files, folder, base = self._find(*place)
        values = {
            "limit_bytes": _tightest(folder, base, files.limit),
            "current_bytes": _number(folder / files.current),
            "peak_bytes": _number(folder / files.peak),
        }
        for metric, value in values.items():
            if value is not None:
                yield Reading("cgroup", metric, value)

    def _find(self, files: _Files, path: str) -> tuple[_Files, Path, Path]:
        """Return the group's folder and the controller's mount.

        Inside a container the path may be the host's, which is not mounted here: the mount itself
        then is the container's group.
        """
        base = self._root / "memory" if files is _V1 else self._root
        relative = PurePosixPath(path).relative_to("/")
        folder = base / relative
        inside = ".." not in relative.parts and folder.is_dir()
        return files, folder if inside else base, base


def _place(data: bytes) -> tuple[_Files, str] | None:
    """Return version and path from /proc/PID/cgroup: a version 1 memory controller comes first."""
    unified = None
    for line in data.decode("utf-8", "surrogateescape").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not path.startswith("/"):
            continue
        if "memory" in controllers.split(","):
            return _V1, path
        if number == "0" and not controllers:
            unified = path
    return None if unified is None else (_V2, unified)


def _number(path: Path) -> int | None:
    data = read_at(str(path))
    return int(data) if data is not None and data.strip().isdigit() else None


def _limits(folder: Path, base: Path, name: str) -> Iterator[int]:
    for place in (folder, *folder.parents):
        limit = _number(place / name)  # "max" is no number: no limit
        if limit is not None and limit < _NO_LIMIT:
            yield limit
        if place == base:
            return


def _tightest(folder: Path, base: Path, name: str) -> int | None:
    return min(_limits(folder, base, name), default=None)
