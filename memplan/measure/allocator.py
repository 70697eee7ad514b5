"""What torch's allocators and the C library say of themselves, at some microseconds a reading.

Nothing is reset: a peak is read as it stands, and when somebody else resets it that is counted.
Source of the names: torch.cuda.memory_stats, host_memory_stats, torch.mps (torch 2.13).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["Allocators", "available"]

_CURRENT = {
    "allocated_bytes": ("allocated_bytes", "all", "current"),
    "requested_bytes": ("requested_bytes", "all", "current"),
    "active_bytes": ("active_bytes", "all", "current"),
    "reserved_bytes": ("reserved_bytes", "all", "current"),
    "inactive_split_bytes": ("inactive_split_bytes", "all", "current"),
    "peak_allocated_bytes": ("allocated_bytes", "all", "peak"),
    "peak_reserved_bytes": ("reserved_bytes", "all", "peak"),
    "alloc_retries_count": ("num_alloc_retries",),
    "ooms_count": ("num_ooms",),
}
"""Our metric -> where it stands in the allocator's nested statistics."""

_PINNED = {
    "pinned_allocated_bytes": ("active_bytes", "current"),
    "pinned_reserved_bytes": ("allocated_bytes", "current"),
}
"""torch calls what the pinned pool owns "allocated" and what is handed out "active"."""


def available(torch: Any | None) -> dict[str, str]:
    """Return, for each allocator, "yes" or why it has no counters; never 0 for "none".

    Args:
        torch: the module, None when the program has not imported it.
    """
    if torch is None:
        return {"torch": "not imported"}
    found = {"torch": str(getattr(torch, "__version__", "?"))}
    cuda = getattr(torch, "cuda", None)
    version = getattr(torch, "version", None)
    if getattr(version, "cuda", None) is None and getattr(version, "hip", None) is None:
        found["cuda"] = "not available: this build of torch is for the CPU"
    elif cuda is None or not cuda.is_available():
        found["cuda"] = "not available: no usable device"
    else:
        found["cuda"] = "yes" if cuda.is_initialized() else "not in use yet"
    if (hip := getattr(version, "hip", None)) is not None:
        found["hip"] = str(hip)
    backends = getattr(torch, "backends", None)
    mps = getattr(backends, "mps", None)
    found["mps"] = "yes" if mps is not None and mps.is_available() else "not available"
    found["cpu"] = "not available: torch counts nothing there; see heap_used_bytes"
    return found


class Allocators:
    """Reads everything that this process has; what is not there is left out."""

    def __init__(self, status: str = "/proc/self/status") -> None:
        """Open what is read again and again.

        Args:
            status: this process's status file.
        """
        self.peak_resets = 0
        """Times that a peak went back: another tool resets them."""
        self._peaks: dict[str, int] = {}
        self._mallinfo = _mallinfo()
        try:
            self._status: int | None = os.open(status, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._status = None

    def close(self) -> None:
        """Give the descriptor back."""
        if self._status is not None:
            os.close(self._status)
            self._status = None

    def read(self) -> dict[str, dict[str, int]]:
        """Return {place: {metric: number}}; places are "process", "host", "cuda:0", "mps" ..."""
        found = {"process": self._process()}
        torch = sys.modules.get("torch")
        if torch is not None:
            found |= self._cuda(torch)
            found |= _mps(torch)
        return {place: values for place, values in found.items() if values}

    def _process(self) -> dict[str, int]:
        values: dict[str, int] = {}
        if self._status is not None:
            data = os.pread(self._status, 4096, 0)
            at = data.find(b"VmHWM:")
            if at >= 0:
                values["hwm_bytes"] = int(data[at + 6 : data.index(b"kB", at)]) * 1024
        if self._mallinfo is not None:
            info = self._mallinfo()
            values["heap_used_bytes"] = info.uordblks + info.hblkhd
            values["heap_free_bytes"] = info.fordblks
        return values

    def _cuda(self, torch: Any) -> dict[str, dict[str, int]]:
        """CUDA and ROCm; reading starts neither."""
        cuda = getattr(torch, "cuda", None)
        if cuda is None or not cuda.is_available() or not cuda.is_initialized():
            return {}
        found = {}
        for index in range(cuda.device_count()):
            values = _pick(cuda.memory_stats_as_nested_dict(index), _CURRENT)
            if values.get("peak_reserved_bytes"):
                found[f"cuda:{index}"] = values
                self._watch_peak(f"cuda:{index}", values["peak_reserved_bytes"])
        host = getattr(cuda, "host_memory_stats_as_nested_dict", None)
        if found and host is not None:
            found["host"] = _pick(host(), _PINNED)
        return found

    def _watch_peak(self, place: str, peak: int) -> None:
        if peak < self._peaks.get(place, 0):
            self.peak_resets += 1
        self._peaks[place] = peak


def _mps(torch: Any) -> dict[str, dict[str, int]]:
    mps = getattr(getattr(torch, "backends", None), "mps", None)
    if mps is None or not mps.is_available():
        return {}
    return {
        "mps": {
            "allocated_bytes": int(torch.mps.current_allocated_memory()),
            "reserved_bytes": int(torch.mps.driver_allocated_memory()),
        }
    }


def _pick(stats: Mapping[str, Any], names: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    """Return numbers out of nested dictionaries; what a version has not got is left out."""
    found = {}
    for metric, path in names.items():
        value: Any = stats
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            found[metric] = int(value)
    return found


def _mallinfo() -> Any | None:
    """Return glibc's mallinfo2 (2.33 and newer), or None."""
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"

    class Info(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

    try:
        function = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        return None
    function.restype = Info
    return function
