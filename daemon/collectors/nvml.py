"""NVIDIA GPUs through NVML: each device's memory, and what a run's processes use of it."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from memplan_daemon.clock import NS, Clock
from memplan_daemon.collectors.base import Reading, Watch

__all__ = ["NvmlCollector"]

_log = logging.getLogger("memplan.daemon")

FIRST_RETRY_S = 5.0
LAST_RETRY_S = 300.0

_NOT_AVAILABLE = 2**64 - 1
"""NVML's own mark for "no number", as on Windows, WSL and some MIG set-ups."""

_BROKEN = (
    "NVMLError_GpuIsLost",
    "NVMLError_Uninitialized",
    "NVMLError_Unknown",
    "NVMLError_InvalidArgument",
    "NVMLError_DriverNotLoaded",
    "NVMLError_ResetRequired",
)
"""Answers after which only a new start of NVML helps (handles die with the driver)."""


_ABSENT = ("NVMLError_LibraryNotFound", "NVMLError_DriverNotLoaded")
"""A machine without an NVIDIA GPU: nothing to warn about."""


@dataclass(slots=True)
class _Gpu:
    """One device, with what was read in the current tick."""

    uuid: str
    handle: Any
    processes: Mapping[int, int] = field(default_factory=dict)
    tick: int = -1


def _load_pynvml() -> ModuleType | None:
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        return None


class NvmlCollector:
    """Reads every GPU; keyed by UUID, as an index may mean another device after a restart.

    Host: gpu:<uuid> total, used, free and, where the driver tells it apart, reserved bytes.
    Run: gpu:<uuid>/tree used_bytes, the sum over the run's processes that NVML lists there; no
    reading where it lists none, or where it has no number for them. NVML counts host process ids:
    inside a container with ids of its own there is no reading.

    Without the library or the driver there are no readings. A lost GPU goes silent while the
    others go on; NVML is started anew after 5 s, then 10 s, ... at most every 5 minutes. Device
    state is never changed.
    """

    def __init__(
        self, clock: Clock, load: Callable[[], ModuleType | Any | None] = _load_pynvml
    ) -> None:
        """Remember how to get NVML; it is loaded at the first reading.

        Args:
            clock: paces the new starts.
            load: returns the pynvml module, or None when it is not installed.
        """
        self._clock = clock
        self._load = load
        self._nvml: Any = None
        self._loaded = False
        self._gpus: list[_Gpu] = []
        self._started = False
        self._retry_ns: int | None = 0
        self._retry_s = FIRST_RETRY_S
        self._failed = ""

    def collect(self, watch: Watch) -> Iterable[Reading]:
        """Return the readings of all GPUs that answer."""
        self._start_if_due()
        for gpu in self._gpus:
            try:
                if watch.run_id is None:
                    yield from self._memory(gpu)
                else:
                    yield from self._tree(gpu, watch)
            except self._nvml.NVMLError as error:
                self._note(f"GPU {gpu.uuid}", error)

    def _start_if_due(self) -> None:
        if self._retry_ns is None or self._clock.monotonic_ns() < self._retry_ns:
            return
        if not self._loaded:
            self._loaded, self._nvml = True, self._load()
        self._retry_ns = None
        if self._nvml is None:
            _log.info("no GPU readings: the module pynvml is not installed")
            return
        try:
            self._start()
        except self._nvml.NVMLError as error:
            self._note("NVML", error)
            self._plan_retry()

    def _start(self) -> None:
        nvml = self._nvml
        if self._started:
            self._started, self._gpus = False, []
            try:
                nvml.nvmlShutdown()
            except nvml.NVMLError as error:
                self._note("NVML", error)
        nvml.nvmlInit()
        self._started = True
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                uuid = nvml.nvmlDeviceGetUUID(handle)
            except nvml.NVMLError as error:
                self._note(f"GPU number {index}", error)
                continue
            self._gpus.append(_Gpu(uuid.decode() if isinstance(uuid, bytes) else uuid, handle))

    def _plan_retry(self) -> None:
        if self._retry_ns is None:
            self._retry_ns = self._clock.monotonic_ns() + round(self._retry_s * NS)
            self._retry_s = min(2 * self._retry_s, LAST_RETRY_S)

    def _note(self, what: str, error: Exception) -> None:
        """Log an answer that was not logged last, and plan a new start where that may help."""
        text = f"{what}: {error}"
        if text != self._failed:
            absent = type(error).__name__ in _ABSENT
            _log.log(logging.INFO if absent else logging.WARNING, "no reading from %s", text)
            self._failed = text
        if type(error).__name__ in _BROKEN:
            self._plan_retry()

    def _memory(self, gpu: _Gpu) -> Iterator[Reading]:
        nvml, entity = self._nvml, f"gpu:{gpu.uuid}"
        try:
            info = nvml.nvmlDeviceGetMemoryInfo(gpu.handle, version=nvml.nvmlMemory_v2)
        except nvml.NVMLError as error:
            if type(error).__name__ in _BROKEN[:3]:
                raise
            info = nvml.nvmlDeviceGetMemoryInfo(gpu.handle)  # older drivers: no reserved bytes
        for name in ("total", "used", "free", "reserved"):
            value = getattr(info, name, None)
            if value is not None and value != _NOT_AVAILABLE:
                yield Reading(entity, f"{name}_bytes", int(value))
        self._retry_s = FIRST_RETRY_S if self._retry_ns is None else self._retry_s

    def _tree(self, gpu: _Gpu, watch: Watch) -> Iterator[Reading]:
        if gpu.tick != watch.tick:
            gpu.processes, gpu.tick = self._processes(gpu), watch.tick
        used = [value for pid, value in gpu.processes.items() if pid in watch.members]
        if used:
            yield Reading(f"gpu:{gpu.uuid}/tree", "used_bytes", sum(used))

    def _processes(self, gpu: _Gpu) -> dict[int, int]:
        """Return bytes by process; one that is in both lists has the same bytes in each."""
        found: dict[int, int] = {}
        lists = ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")
        for name in lists:
            try:
                processes = getattr(self._nvml, name)(gpu.handle)
            except self._nvml.NVMLError as error:
                if type(error).__name__ in _BROKEN:
                    raise
                continue  # not supported here: the other list may be
            for process in processes:
                value = process.usedGpuMemory
                if value is not None and value != _NOT_AVAILABLE:
                    found[process.pid] = max(int(value), found.get(process.pid, 0))
        return found
