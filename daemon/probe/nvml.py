"""NVIDIA: memory, processes and the rest of a GPU's state, by pynvml."""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Iterator
from typing import Any

from memplan_daemon.probe.fields import reply
from memplan_daemon.probe.nvml_device import Library, NvmlDevice, StaleError, reason

__all__ = ["NvmlBackend"]

_ABSENT = ("NVMLError_LibraryNotFound", "NVMLError_DriverNotLoaded")
_MOST_MIG = 16
_MOST_EVENTS = 100
_EVENT_KINDS = {1: "ecc_single", 2: "ecc_double", 8: "xid"}
_TIMEOUT = 10

_Entry = tuple[Any, str, str, str | None]
"""(handle, UUID, product name, UUID of the GPU that it is a part of)."""


def _name(error: Exception) -> str:
    return type(error).__name__


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


class NvmlBackend:
    """Keeps NVML open; a request reads what it names.

    Groups: "fast" memory, processes and load; "medium" power, temperature and clocks; "rare" PCIe
    (20 ms a direction), NVLink and ECC. Events are handed out in every answer, each once. NVML's
    state is never changed.
    """

    def __init__(self) -> None:
        """Load the module; the library is loaded at the first request."""
        import pynvml

        self._nvml: Any = pynvml
        self._library = Library(pynvml)
        self._devices: list[NvmlDevice] = []
        self._started = False
        self._driver = ""
        self._events: Any = None
        self._event = pynvml.c_nvmlEventData_t()
        self._next_event: Any = None
        """Takes the next event into `_event`, without a wait; made with the set of events."""
        self._counted = 0

    def read(self, groups: frozenset[str]) -> dict[str, Any]:
        """Return one answer; a driver that was loaded anew is opened anew, once."""
        for _ in range(2):
            try:
                if not self._started:
                    self._start()
                if "medium" in groups and self._changed():
                    self._list()
                devices, events = [d.read(groups) for d in self._devices], [*self._new_events()]
                return reply("ok", driver=self._driver, devices=devices, events=events)
            except StaleError as stale:
                problem, absent = str(stale), False
                self._stop()
            except self._nvml.NVMLError as error:
                problem, absent = str(error), _name(error) in _ABSENT
                self._stop()
        return reply("absent" if absent else "failed", reason=problem)

    def _start(self) -> None:
        nvml = self._nvml
        nvml.nvmlInit()
        self._started = True
        self._driver = _text(nvml.nvmlSystemGetDriverVersion())
        self._list()

    def _stop(self) -> None:
        self._events, self._devices = None, []
        if self._started:
            self._started = False
            with contextlib.suppress(self._nvml.NVMLError):  # the driver that took it is gone
                self._nvml.nvmlShutdown()

    def _list(self) -> None:
        """Take every device's handle anew; the name of a device is its UUID, not its number."""
        nvml = self._nvml
        found: list[_Entry] = []
        self._counted = nvml.nvmlDeviceGetCount()
        for index in range(self._counted):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                uuid = _text(nvml.nvmlDeviceGetUUID(handle))
                found.append((handle, uuid, _text(nvml.nvmlDeviceGetName(handle)), None))
            except nvml.NVMLError as error:
                reason(error)
                continue
            found += self._mig(handle, uuid)
        self._devices = [NvmlDevice(self._library, *entry) for entry in found]
        self._listen()

    def _mig(self, handle: Any, parent: str) -> Iterator[_Entry]:
        nvml = self._nvml
        for index in range(_MOST_MIG if self._mig_mode(handle) else 0):
            try:
                part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
                uuid = _text(nvml.nvmlDeviceGetUUID(part))
                yield part, uuid, _text(nvml.nvmlDeviceGetName(part)), parent
            except nvml.NVMLError as error:
                if reason(error) != "not-supported":  # NotFound: an empty place
                    return

    def _mig_mode(self, handle: Any) -> int:
        try:
            return int(self._nvml.nvmlDeviceGetMigMode(handle)[0])
        except self._nvml.NVMLError as error:
            reason(error)
            return 0

    def _changed(self) -> bool:
        """Tell whether there are other devices or partitions than those that were listed."""
        if self._nvml.nvmlDeviceGetCount() != self._counted:
            return True
        for device in self._devices:
            if device.parent is None:
                now = {uuid for _, uuid, _, _ in self._mig(device.handle, device.uuid)}
                if now != {part.uuid for part in self._devices if part.parent == device.uuid}:
                    return True
        return False

    def _listen(self) -> None:
        """Register for XID and ECC events, where the device has them."""
        nvml = self._nvml
        try:
            if self._events is not None:
                nvml.nvmlEventSetFree(self._events)
            self._events = nvml.nvmlEventSetCreate()
            event = ctypes.byref(self._event)
            self._next_event = self._library.call("nvmlEventSetWait_v2", self._events, event, 0)
            for device in self._devices:
                if device.parent is None:
                    kinds = nvml.nvmlDeviceGetSupportedEventTypes(device.handle)
                    wanted = sum(kind for kind in _EVENT_KINDS if kinds & kind)
                    nvml.nvmlDeviceRegisterEvents(device.handle, wanted, self._events)
        except nvml.NVMLError as error:
            reason(error)
            self._events = None

    def _new_events(self) -> Iterator[tuple[str, str, int, int]]:
        """Yield (uuid, kind, code, wall clock ns) of what happened since the last request."""
        nvml = self._nvml
        event = self._event
        for _ in range(_MOST_EVENTS if self._events is not None else 0):
            code = self._next_event()
            if code == _TIMEOUT:
                return
            try:
                uuid = "" if code else _text(nvml.nvmlDeviceGetUUID(event.device))
            except nvml.NVMLError as error:
                code = error.value
            if code:
                self._events = None  # the set is lost; the next listing makes another
                self._counted = -1
                return
            kind = _EVENT_KINDS.get(int(event.eventType), "gpu")
            yield uuid, kind, int(event.eventData), time.time_ns()
