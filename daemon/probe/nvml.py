"""NVIDIA: memory, processes and the rest of a GPU's state, by pynvml."""

from __future__ import annotations

import contextlib
import ctypes
import struct
import time
from collections.abc import Iterator
from typing import Any

from memplan_daemon.probe.fields import Device, Processes, reply

__all__ = ["NvmlBackend"]

_NOT_AVAILABLE = 2**64 - 1
"""NVML's own mark for "no number", as on Windows, WSL and some MIG set-ups."""

_STATES = {
    "NVMLError_NotSupported": "not-supported",
    "NVMLError_FunctionNotFound": "not-supported",
    "NVMLError_ArgumentVersionMismatch": "not-supported",
    "NVMLError_NotFound": "not-supported",
    "NVMLError_NoPermission": "no-permission",
    "NVMLError_GpuIsLost": "lost",
    "NVMLError_ResetRequired": "lost",
}

_RESTART = (
    "NVMLError_Uninitialized",
    "NVMLError_InvalidArgument",
    "NVMLError_DriverNotLoaded",
    "NVMLError_LibRmVersionMismatch",
    "NVMLError_Unknown",
)
"""Answers after which only a new start of NVML helps (handles die with the driver)."""

_ABSENT = ("NVMLError_LibraryNotFound", "NVMLError_DriverNotLoaded")
_MOST_MIG = 16
_MOST_EVENTS = 100
_EVENT_KINDS = {1: "ecc_single", 2: "ecc_double", 8: "xid"}
_NVLINK_TX, _NVLINK_RX = 138, 139
"""NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX and _RX, KiB since the driver was loaded."""
_ALL_LINKS = 2**32 - 1
_INSUFFICIENT_SIZE, _TIMEOUT, _FUNCTION_NOT_FOUND = 7, 10, 13
_MEMORY = struct.Struct("@IQQQQ")
"""nvmlMemory_v2_t: version, and bytes: total, reserved, free, used."""
_PROCESS = struct.Struct("@IQII")
"""nvmlProcessInfo_v2_t: process id, bytes, and the two numbers of a MIG device."""
_TRIES = 3
_ROOM = 128
"""Processes that a list is expected to hold at the most; it grows."""

_MEDIUM: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("power_milliwatts", "nvmlDeviceGetPowerUsage", ()),
    ("power_limit_milliwatts", "nvmlDeviceGetEnforcedPowerLimit", ()),
    ("sm_clock_megahertz", "nvmlDeviceGetClockInfo", (1,)),
    ("memory_clock_megahertz", "nvmlDeviceGetClockInfo", (2,)),
)
"""Metric, the function that has it as one unsigned number, and what that is told beside the
device: NVML_CLOCK_SM, NVML_CLOCK_MEM."""

_EITHER = ("Compute", "Graphics")
_LISTS = tuple(
    (f"nvmlDeviceGet{kind}RunningProcesses_v3", f"{kind.lower()}_processes") for kind in _EITHER
)
"""Functions that list processes, and what is missing where one fails."""

_Entry = tuple[Any, str, str, str | None]
"""(handle, UUID, product name, UUID of the GPU that it is a part of)."""

_Raw = list[bytes | None]
"""The driver's own process lists of a device; None for one that there is not."""

_Listed = tuple[_Raw, Processes | None]
"""A device's lists, and what they mean."""


class _StaleError(Exception):
    """Every handle is invalid: start anew."""


def _name(error: Exception) -> str:
    return type(error).__name__


def _reason(error: Exception) -> str:
    if _name(error) in _RESTART:
        raise _StaleError(str(error)) from error
    if not _name(error).startswith("NVMLError"):
        raise error
    return _STATES.get(_name(error), "failed")


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
        self._handles: list[_Entry] = []
        self._started = False
        self._driver = ""
        self._events: Any = None
        self._counted = 0
        self._listed: dict[str, _Listed] = {}
        self._calls: dict[str, Any] = {}
        self._memory_room = ctypes.create_string_buffer(_MEMORY.size)
        self._rates_room = (ctypes.c_uint * 2)()
        self._number_room, self._count_room = ctypes.c_uint(), ctypes.c_uint()
        self._count = ctypes.byref(self._count_room)
        self._event_room = pynvml.c_nvmlEventData_t()
        self._event = ctypes.byref(self._event_room)
        self._room = ctypes.create_string_buffer(_ROOM * _PROCESS.size)

    def read(self, groups: frozenset[str]) -> dict[str, Any]:
        """Return one answer; a driver that was loaded anew is opened anew, once."""
        for _ in range(2):
            try:
                if not self._started:
                    self._start()
                if "medium" in groups and self._changed():
                    self._list()
                devices = [self._device(*entry, groups) for entry in self._handles]
                return reply(
                    "ok", driver=self._driver, devices=devices, events=list(self._new_events())
                )
            except _StaleError as stale:
                problem, absent = str(stale), False
                self._stop()
            except self._nvml.NVMLError as error:
                problem, absent = str(error), _name(error) in _ABSENT
                self._stop()
        return reply("absent" if absent else "failed", reason=problem)

    def _call(self, function: str, *arguments: Any) -> int:
        """Call the library with rooms that are kept, and return its code.

        pynvml makes an object for every answer, which takes longer than most answers.
        """
        call = self._calls.get(function)
        if call is None:
            try:
                call = self._calls[function] = getattr(self._nvml.nvmlLib, function)
            except AttributeError:
                return _FUNCTION_NOT_FOUND
        return int(call(*arguments))

    def _ask(self, function: str, *arguments: Any) -> None:
        """Call the library; raises NVMLError where its code is not 0."""
        if code := self._call(function, *arguments):
            raise self._nvml.NVMLError(code)

    def _start(self) -> None:
        nvml = self._nvml
        nvml.nvmlInit()
        self._started = True
        self._driver = _text(nvml.nvmlSystemGetDriverVersion())
        self._list()

    def _stop(self) -> None:
        self._events, self._handles = None, []
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
                _reason(error)
                continue
            found += self._mig(handle, uuid)
        self._handles = found
        self._listed = {}
        self._listen()

    def _mig(self, handle: Any, parent: str) -> Iterator[_Entry]:
        nvml = self._nvml
        for index in range(_MOST_MIG if self._mig_mode(handle) else 0):
            try:
                part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
                uuid = _text(nvml.nvmlDeviceGetUUID(part))
                yield part, uuid, _text(nvml.nvmlDeviceGetName(part)), parent
            except nvml.NVMLError as error:
                if _reason(error) != "not-supported":  # NotFound: an empty place
                    return

    def _mig_mode(self, handle: Any) -> int:
        try:
            return int(self._nvml.nvmlDeviceGetMigMode(handle)[0])
        except self._nvml.NVMLError as error:
            _reason(error)
            return 0

    def _changed(self) -> bool:
        """Tell whether there are other devices or partitions than those that were listed."""
        if self._nvml.nvmlDeviceGetCount() != self._counted:
            return True
        for handle, uuid, _, parent in self._handles:
            if parent is None:
                now = {entry[1] for entry in self._mig(handle, uuid)}
                if now != {entry[1] for entry in self._handles if entry[3] == uuid}:
                    return True
        return False

    def _device(
        self, handle: Any, uuid: str, name: str, parent: str | None, groups: frozenset[str]
    ) -> Device:
        device = Device(uuid=uuid, name=name, parent=parent)
        if "fast" in groups:
            self._memory(device, handle)
            if device.state == "lost":
                return device
            self._processes(device, handle)
            device.attempt("utilization_percent", _reason, self._load, handle)
        if "medium" in groups:
            self._medium(device, handle)
        if "rare" in groups:
            self._rare(device, handle)
        return device

    def _memory(self, device: Device, handle: Any) -> None:
        try:
            found = self._bytes(handle)
        except self._nvml.NVMLError as error:
            device.missing["used_bytes"] = state = _reason(error)
            device.state = "lost" if state == "lost" else "ok"
            return
        for metric, value in found.items():
            device.take(metric, None if value == _NOT_AVAILABLE else value)

    def _bytes(self, handle: Any) -> dict[str, int | None]:
        nvml, room = self._nvml, self._memory_room
        _MEMORY.pack_into(room, 0, nvml.nvmlMemory_v2, 0, 0, 0, 0)
        code = self._call("nvmlDeviceGetMemoryInfo_v2", handle, room)
        if not code:
            _, total, reserved, free, used = _MEMORY.unpack(room)
        elif _reason(error := nvml.NVMLError(code)) != "not-supported":
            raise error
        else:
            info = nvml.nvmlDeviceGetMemoryInfo(handle)  # older drivers: no reserved bytes
            total, reserved, free, used = info.total, None, info.free, info.used
        return {
            "total_bytes": total,
            "used_bytes": used,
            "free_bytes": free,
            "reserved_bytes": reserved,
        }

    def _load(self, handle: Any) -> int:
        self._ask("nvmlDeviceGetUtilizationRates", handle, self._rates_room)
        return self._rates_room[0]

    def _processes(self, device: Device, handle: Any) -> None:
        """Add the processes; lists that are as they were in the last tick are not read again."""
        raw: _Raw = []
        for function, missing in _LISTS:
            try:
                raw.append(self._process_list(function, handle))
            except self._nvml.NVMLError as error:
                device.missing[missing] = _reason(error)
                raw.append(None)
        known = self._listed.get(device.uuid)
        if known is None or known[0] != raw:
            known = self._listed[device.uuid] = (raw, _merged(raw))
        device.processes = known[1]

    def _process_list(self, function: str, handle: Any) -> bytes:
        """Return a list as the driver writes it.

        The room that is kept for it makes the call superfluous that asks for the size.
        """
        code, count = _INSUFFICIENT_SIZE, self._count_room
        for _ in range(_TRIES):
            count.value = room = len(self._room) // _PROCESS.size
            code = self._call(function, handle, self._count, self._room)
            if code != _INSUFFICIENT_SIZE:
                break
            room = 2 * max(room, count.value)
            self._room = ctypes.create_string_buffer(room * _PROCESS.size)
        if code:
            raise self._nvml.NVMLError(code)
        return ctypes.string_at(self._room, count.value * _PROCESS.size)

    def _medium(self, device: Device, handle: Any) -> None:
        for metric, function, what in _MEDIUM:
            device.attempt(metric, _reason, self._number, function, handle, *what)
        temperature = self._nvml.nvmlDeviceGetTemperatureV
        device.attempt("temperature_celsius", _reason, temperature, handle, 0)

    def _number(self, function: str, *arguments: Any) -> int:
        self._ask(function, *arguments, ctypes.byref(self._number_room))
        return self._number_room.value

    def _rare(self, device: Device, handle: Any) -> None:
        nvml = self._nvml
        pcie, ecc, field = self._pcie, nvml.nvmlDeviceGetTotalEccErrors, self._field
        for metric, read, *what in (
            ("pcie_tx_bytes_per_second", pcie, nvml.NVML_PCIE_UTIL_TX_BYTES),
            ("pcie_rx_bytes_per_second", pcie, nvml.NVML_PCIE_UTIL_RX_BYTES),
            ("ecc_corrected_count", ecc, 0, 1),
            ("ecc_uncorrected_count", ecc, 1, 1),
            ("nvlink_tx_bytes", field, _NVLINK_TX),
            ("nvlink_rx_bytes", field, _NVLINK_RX),
        ):
            device.attempt(metric, _reason, read, handle, *what)

    def _pcie(self, handle: Any, direction: int) -> int:
        """Return bytes per second: NVML counts KB (1000 bytes) over 20 ms."""
        return int(self._nvml.nvmlDeviceGetPcieThroughput(handle, direction)) * 1000

    def _field(self, handle: Any, number: int) -> int | None:
        found = self._nvml.nvmlDeviceGetFieldValues(handle, [(number, _ALL_LINKS)])[0]
        return None if found.nvmlReturn else int(found.value.ullVal) * 1024

    def _listen(self) -> None:
        """Register for XID and ECC events, where the device has them."""
        nvml = self._nvml
        try:
            if self._events is not None:
                nvml.nvmlEventSetFree(self._events)
            self._events = nvml.nvmlEventSetCreate()
            for handle, _, _, parent in self._handles:
                if parent is None:
                    kinds = nvml.nvmlDeviceGetSupportedEventTypes(handle)
                    wanted = sum(kind for kind in _EVENT_KINDS if kinds & kind)
                    nvml.nvmlDeviceRegisterEvents(handle, wanted, self._events)
        except nvml.NVMLError as error:
            _reason(error)
            self._events = None

    def _new_events(self) -> Iterator[tuple[str, str, int, int]]:
        """Yield (uuid, kind, code, wall clock ns) of what happened since the last request."""
        nvml = self._nvml
        for _ in range(_MOST_EVENTS if self._events is not None else 0):
            code = self._call("nvmlEventSetWait_v2", self._events, self._event, 0)
            if code == _TIMEOUT:
                return
            event = self._event_room
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


def _merged(raw: _Raw) -> Processes | None:
    """Return the bytes of all lists; a process that is in both has the same bytes in each."""
    found: dict[int, int | None] = {}
    for data in raw:
        for pid, used, _, _ in _PROCESS.iter_unpack(data or b""):
            value, known = None if used == _NOT_AVAILABLE else used, found.get(pid)
            found[pid] = known if value is None else max(value, known or 0)
    return None if all(data is None for data in raw) else found
