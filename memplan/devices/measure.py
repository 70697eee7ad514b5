"""Speeds of this machine, measured: host memory, disk, and the copies to each GPU.

Each measurement is bounded in size and time, and leaves nothing behind. What was found is kept in
the cache folder with its date; later plans for this machine use it in place of assumed figures.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from memplan.config import cache_dir
from memplan.errors import DeviceError
from memplan.units import GIB, MIB

__all__ = ["Speed", "known_speed", "known_speeds", "measure_speeds"]

_RAM_BYTES = 512 * MIB
_MOST_THREADS = 8
_DISK_BYTES = GIB
_CHUNK = 8 * MIB
_COPY_BYTES = 256 * MIB
_REPEATS = 5
_SECONDS = 4.0
"""Longest time that one reading of the disk goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """One speed of this machine."""

    name: str
    """"ram", "disk", or a GPU's "cuda:0"."""
    bandwidth: int
    """Bytes a second: of host memory as read, of the disk as read without the page cache, from
    pinned host memory to a GPU."""
    low: int
    """Slowest of the repeats (a GPU: from pageable memory)."""
    high: int
    """Fastest of the repeats."""
    how: str
    """What was done, in words."""
    place: str
    """Host name, with the folder of a disk or the uuid of a GPU."""
    measured_ns: int
    """When, nanoseconds since the epoch."""

    @property
    def date(self) -> str:
        """Return the day of the measurement."""
        return datetime.fromtimestamp(self.measured_ns / 1e9, tz=UTC).date().isoformat()


def _file() -> Path:
    return cache_dir() / "speeds.json"


def known_speeds() -> tuple[Speed, ...]:
    """Return what was measured on this machine; a damaged file counts as nothing."""
    try:
        rows = json.loads(_file().read_bytes())
        found = tuple(Speed(**row) for row in rows)
    except (OSError, ValueError, TypeError):
        return ()
    here = platform.node()
    return tuple(x for x in found if x.bandwidth > 0 and x.place.partition(":")[0] == here)


def known_speed(name: str, detail: str = "") -> Speed | None:
    """Return the measured speed of one thing, or None.

    Args:
        name: "ram", "disk" or "cuda:N".
        detail: a GPU's uuid, or a folder on the disk: that of another device counts as none.
    """
    for speed in known_speeds():
        own = speed.place.partition(":")[2]
        same = not detail or not own or own == detail or _same_disk(name, own, detail)
        if speed.name == name and same:
            return speed
    return None


def _same_disk(name: str, folder: str, other: str) -> bool:
    if name != "disk":
        return False
    try:
        return Path(folder).stat().st_dev == Path(other).stat().st_dev
    except OSError:
        return False


def measure_speeds(
    folder: Path,
    *,
    clock: Callable[[], float] = time.perf_counter,
    disk_bytes: int | None = None,
) -> tuple[Speed, ...]:
    """Measure host memory, the disk of a folder and each GPU; keep and return what was found.

    Args:
        folder: where the disk is written and read; it must take `disk_bytes` for a moment.
        clock: seconds, rising.
        disk_bytes: size of the file that is read, at most an eighth of the free space; None = 1
            GiB.

    Raises DeviceError when the folder cannot be written.
    """
    rates, threads = _ram(clock)
    how = f"{_RAM_BYTES // 2 // MIB} MiB copied by {threads} threads, reads and writes counted"
    found = (
        _speed("ram", "", rates, how),
        _disk(folder, clock, _DISK_BYTES if disk_bytes is None else disk_bytes),
        *_gpus(),
    )
    kept = {speed.name: speed for speed in (*known_speeds(), *found)}
    with contextlib.suppress(OSError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps([asdict(speed) for speed in kept.values()], indent=2)
        _file().write_text(text, encoding="utf-8")
    return found


def _speed(name: str, detail: str, rates: list[float], how: str, low: float = 0.0) -> Speed:
    return Speed(
        name=name,
        bandwidth=int(statistics.median(rates)),
        low=int(low or min(rates)),
        high=int(max(rates)),
        how=how,
        place=f"{platform.node()}:{detail}",
        measured_ns=time.time_ns(),
    )


def _ram(clock: Callable[[], float]) -> tuple[list[float], int]:
    """Return bytes a second that threads move together, each copying blocks of its own.

    A copy reads and writes: 2 n / t. Returns the rates and the number of threads, at most eight,
    so that each block is larger than a core's caches.
    """
    threads = max(1, min(len(os.sched_getaffinity(0)), _MOST_THREADS))
    size = _RAM_BYTES // threads // 2
    blocks = [
        (ctypes.create_string_buffer(size), ctypes.create_string_buffer(size))
        for _ in range(threads)
    ]
    with ThreadPoolExecutor(threads) as pool:

        def round_trip() -> float:
            began = clock()
            list(pool.map(lambda pair: ctypes.memmove(pair[0], pair[1], size), blocks))
            return 2 * size * threads / max(clock() - began, 1e-9)

        round_trip()
        return [round_trip() for _ in range(_REPEATS)], threads


def _disk(folder: Path, clock: Callable[[], float], most: int) -> Speed:
    """Return the speed of reading a file that is not in the page cache."""
    status = os.statvfs(folder)
    size = min(most, status.f_bavail * status.f_frsize // 8) // _CHUNK * _CHUNK
    if size < _CHUNK:
        raise DeviceError(f"{folder} has no room for a file to read", hint="free some space")
    try:
        with _written(folder, size) as path:
            rates, how = _read(path, size, clock)
    except OSError as error:
        raise DeviceError(f"cannot measure the disk of {folder}: {error}") from error
    text = f"{size // MIB} MiB read {how}, in pieces of {_CHUNK // MIB} MiB"
    return _speed("disk", str(folder.resolve()), rates, text)


@contextlib.contextmanager
def _written(folder: Path, size: int) -> Iterator[Path]:
    """Write a file of random bytes to the disk itself, and remove it in the end."""
    handle, name = tempfile.mkstemp(prefix=".memplan-measure-", dir=folder)
    path = Path(name)
    try:
        piece = os.urandom(_CHUNK)
        with os.fdopen(handle, "wb", buffering=0) as file:
            for _ in range(size // _CHUNK):
                file.write(piece)
            os.fsync(file.fileno())
        yield path
    finally:
        path.unlink(missing_ok=True)


def _read(path: Path, size: int, clock: Callable[[], float]) -> tuple[list[float], str]:
    """Read past the page cache (O_DIRECT), or, where the file system has no such, after dropping.

    Returns bytes a second of each eighth that was read, and how.
    """
    direct = getattr(os, "O_DIRECT", 0)
    how = "past the page cache"
    try:
        handle = os.open(path, os.O_RDONLY | direct)
    except OSError:
        handle, how = os.open(path, os.O_RDONLY), "after dropping it from the page cache"
    try:
        os.posix_fadvise(handle, 0, size, os.POSIX_FADV_DONTNEED)
        return _pieces(handle, size, clock), how
    finally:
        os.close(handle)


def _pieces(handle: int, size: int, clock: Callable[[], float]) -> list[float]:
    """Return the rates of up to eight runs through the file, as time allows."""
    buffer = mmap.mmap(-1, _CHUNK)  # aligned, as O_DIRECT wants it
    part, end, rates = max(size // 8, _CHUNK), clock() + _SECONDS, []
    for start in range(0, size - part + 1, part):
        began, done = clock(), 0
        while done < part:
            count = os.preadv(handle, [buffer], start + done)
            if count <= 0:
                break
            done += count
        rates.append(done / max(clock() - began, 1e-9))
        if clock() > end:
            break
    return rates


def _gpus() -> list[Speed]:
    """Return the speed of copies to each CUDA device; [] without torch or a GPU."""
    try:
        import torch
    except ImportError:
        return []
    if not torch.cuda.is_available():
        return []
    return [_gpu(torch, index) for index in range(torch.cuda.device_count())]


def _gpu(torch: Any, index: int) -> Speed:
    target = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=f"cuda:{index}")
    pinned = torch.zeros(_COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    rates = _copies(torch, pinned, target)
    pageable = _copies(torch, torch.zeros(_COPY_BYTES, dtype=torch.uint8), target)
    uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
    how = f"{_COPY_BYTES // MIB} MiB from pinned memory; lower end: pageable"
    return _speed(f"cuda:{index}", uuid, rates, how, low=statistics.median(pageable))


def _copies(torch: Any, source: Any, target: Any) -> list[float]:
    rates = []
    target.copy_(source)
    for _ in range(_REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.device(target.device):
            begin.record()
            target.copy_(source, non_blocking=True)
            end.record()
            end.synchronize()
        rates.append(_COPY_BYTES / (begin.elapsed_time(end) / 1000))
    return rates
