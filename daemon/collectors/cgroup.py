"""The control group that a run lives in: its limit, what it uses now, its own peak."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from memplan_daemon.collectors.base import Event, Reading, Watch
from memplan_daemon.proc import ProcFolder, read_at

__all__ = ["CgroupCollector"]

_NO_LIMIT = 2**62
"""Version 1 writes a limit near 2**63 where there is none; no machine has half of that."""


@dataclass(frozen=True, slots=True)
class _Files:
    limit: str
    current: str
    peak: str
    events: str


_V1 = _Files(
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "memory.max_usage_in_bytes",
    "memory.oom_control",
)
_V2 = _Files("memory.max", "memory.current", "memory.peak", "memory.events")

_COUNTS = {"oom_kill": "oom_kill_count", "max": "limit_hit_count", "high": "throttled_count"}
"""Line of the events file -> metric."""


class CgroupCollector:
    """Reads the memory controller, version 2 or 1, of the group of a run's root process.

    The limit is the tightest of the group's and its parents'. The group may hold more than the
    run: its numbers are the group's, not the tree's. A kill for want of memory inside the group is
    an event.
    """

    def __init__(self, proc: ProcFolder, root: Path = Path("/sys/fs/cgroup")) -> None:
        """Remember where to look.

        Args:
            proc: the /proc that tells a process's group.
            root: where the groups are mounted.
        """
        self._proc = proc
        self._root = root
        self._kills: dict[str, tuple[int, int]] = {}
        self._tick = -1
        self._read: dict[tuple[_Files, str], _Group] = {}

    def collect(self, watch: Watch) -> Iterable[Reading | Event]:
        """Return the group's readings; nothing for the host, or without a memory controller."""
        return self._readings(watch) if "medium" in watch.due and watch.members else []

    def _readings(self, watch: Watch) -> Iterator[Reading | Event]:
        member = watch.members.get(watch.pid or 0) or next(iter(watch.members.values()))
        place = _place(member.cgroup() or b"")
        if place is None:
            return
        if watch.tick != self._tick:
            self._tick, self._read = watch.tick, {}
        group = self._read.get(place)
        if group is None:  # many runs are in the same one
            group = self._read[place] = _Group(*self._find(*place))
        yield from group.readings
        yield from self._kills_of(watch, group)

    def _kills_of(self, watch: Watch, group: _Group) -> Iterator[Event]:
        now, run_id = group.oom_kills, watch.run_id or ""
        if now is None:
            return
        before, _ = self._kills.get(run_id, (now, 0))
        live = {key: value for key, value in self._kills.items() if value[1] >= watch.tick - 1000}
        self._kills = {**live, run_id: (now, watch.tick)}
        if now > before:
            text = f"{now - before} killed for want of memory in the control group {group.folder}"
            yield Event("cgroup", "cgroup.oom_kill", 0, text)

    def _find(self, files: _Files, path: str) -> tuple[_Files, Path, Path]:
        """Return the group's folder and the controller's mount.

        Inside a container the path may be the host's, which is not mounted here: the mount itself
        then is the container's group.
        """
        base = self._root / "memory" if files is _V1 else self._root
        if files is _V2 and (self._root / "unified").is_dir():  # beside version 1 controllers
            base = self._root / "unified"
        relative = PurePosixPath(path).relative_to("/")
        folder = base / relative
        inside = ".." not in relative.parts and folder.is_dir()
        return files, folder if inside else base, base


class _Group:
    """One group as it was read in one tick."""

    def __init__(self, files: _Files, folder: Path, base: Path) -> None:
        self.folder = folder
        counts = _pairs(read_at(str(folder / files.events)) or b"")
        self.oom_kills = counts.get("oom_kill")
        values = {metric: counts.get(name) for name, metric in _COUNTS.items()}
        values |= {
            "limit_bytes": _tightest(folder, base, files.limit),
            "current_bytes": _number(folder / files.current),
            "peak_bytes": _number(folder / files.peak),
        }
        self.readings = [
            Reading("cgroup", metric, value)
            for metric, value in values.items()
            if value is not None
        ]


@lru_cache(maxsize=256)
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


def _pairs(data: bytes) -> dict[str, int]:
    """Return the "name 123" lines of an events file."""
    words = (line.split() for line in data.decode("ascii", "replace").splitlines())
    return {w[0]: int(w[1]) for w in words if len(w) == 2 and w[1].isdigit()}


def _limits(folder: Path, base: Path, name: str) -> Iterator[int]:
    for place in (folder, *folder.parents):
        limit = _number(place / name)  # "max" is no number: no limit
        if limit is not None and limit < _NO_LIMIT:
            yield limit
        if place == base:
            return


def _tightest(folder: Path, base: Path, name: str) -> int | None:
    return min(_limits(folder, base, name), default=None)
