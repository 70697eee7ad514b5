"""What is read of one NVIDIA device.

pynvml makes an object of every answer, which takes longer than most answers. What is asked in every
tick is asked through its ctypes library, with rooms and calls that are made once.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from memplan_daemon.probe.fields import Device, Listing

__all__ = ["Library", "NvmlDevice", "StaleError", "reason"]

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

_INSUFFICIENT_SIZE, _FUNCTION_NOT_FOUND = 7, 13
_NVLINK_TX, _NVLINK_RX = 138, 139
"""NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX and _RX, KiB since the driver was loaded."""
_ALL_LINKS = 2**32 - 1

_VERSION = struct.Struct("@I")
_MEMORY = struct.Struct("@8xQQQQ")
"""nvmlMemory_v2_t: the version, and the bytes of `_BYTES`."""
_BYTES = ("total_bytes", "reserved_bytes", "free_bytes", "used_bytes")

_LISTS = (
    ("nvmlDeviceGetComputeRunningProcesses_v3", "compute_processes"),
    ("nvmlDeviceGetGraphicsRunningProcesses_v3", "graphics_processes"),
)
"""Functions that list processes, and what is missing where one fails."""
_NO_LISTS = [None] * len(_LISTS)
_HIGHEST_USED = 2**63
"""From here on it is no number of bytes, but NVML's mark for none, or nonsense."""
_PROCESS = struct.Struct("@IQ8x")
"""nvmlProcessInfo_v2_t: process id, bytes, and two numbers of a MIG device that are not read."""
_TRIES = 3
_ROOM = 128
"""Processes that a list is expected to hold at the most; it grows."""

_NUMBERS: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("power_milliwatts", "nvmlDeviceGetPowerUsage", ()),
    ("power_limit_milliwatts", "nvmlDeviceGetEnforcedPowerLimit", ()),
    ("sm_clock_megahertz", "nvmlDeviceGetClockInfo", (1,)),
    ("memory_clock_megahertz", "nvmlDeviceGetClockInfo", (2,)),
)
"""Metric, the function that has it as one unsigned number, and what it is told beside the device:
NVML_CLOCK_SM, NVML_CLOCK_MEM."""

_Call = Callable[..., int]
"""A function of the library, maybe with its arguments; it returns NVML's code."""


class StaleError(Exception):
    """Every handle is invalid: start anew."""


def reason(error: Exception) -> str:
    """Return the state of what answered with an error.

    Raises StaleError where a new start is needed, and the error itself where it is not NVML's.
    """
    name = type(error).__name__
    if name in _RESTART:
        raise StaleError(str(error)) from error
    if not name.startswith("NVMLError"):
        raise error
    return _STATES.get(name, "failed")


class Library:
    """The functions of the library that pynvml has loaded, and room for what they answer."""

    def __init__(self, nvml: Any) -> None:
        """Make the room.

        Args:
            nvml: the module pynvml.
        """
        self.nvml = nvml
        self.memory = ctypes.create_string_buffer(8 + 8 * len(_BYTES))
        _VERSION.pack_into(self.memory, 0, nvml.nvmlMemory_v2)
        self.rates = (ctypes.c_uint * 2)()
        """Percent of time that the GPU, and its memory, was busy."""
        self.number, self.count = ctypes.c_uint(), ctypes.c_uint()
        self.grow(_ROOM)

    def grow(self, places: int) -> None:
        """Make room for a list of so many processes."""
        self.places = places
        self.processes = ctypes.create_string_buffer(places * _PROCESS.size)

    def call(self, function: str, *arguments: Any) -> _Call:
        """Return a function with its first arguments, one that fails where there is none."""
        try:
            return partial(getattr(self.nvml.nvmlLib, function), *arguments)
        except AttributeError:
            return lambda *_: _FUNCTION_NOT_FOUND

    def why(self, code: int) -> str:
        """Return the state that a code means. Raises StaleError where a new start is needed."""
        return reason(self.nvml.NVMLError(code))


class NvmlDevice:
    """A device, or a MIG device inside another, with its handle."""

    def __init__(
        self, library: Library, handle: Any, uuid: str, name: str, parent: str | None
    ) -> None:
        """Prepare the calls.

        Args:
            library: what they go to.
            handle: the driver's name for the device, for as long as the driver is loaded.
            uuid: its own name.
            name: product name.
            parent: UUID of the GPU that it is a part of.
        """
        self.handle, self.uuid, self.name, self.parent = handle, uuid, name, parent
        self._library = library
        call, number = library.call, ctypes.byref(library.number)
        count = ctypes.byref(library.count)
        self._memory = call("nvmlDeviceGetMemoryInfo_v2", handle, library.memory)
        self._rates = call("nvmlDeviceGetUtilizationRates", handle, library.rates)
        self._lists = [(call(function, handle, count), what) for function, what in _LISTS]
        self._numbers = [
            (metric, call(function, handle, *kind, number)) for metric, function, kind in _NUMBERS
        ]
        self._raw: list[bytes | None] = [None] * len(_LISTS)
        self._listing = Listing()

    def read(self, groups: frozenset[str]) -> Device:
        """Return what the groups name. Raises StaleError where a new start is needed."""
        device = Device(uuid=self.uuid, name=self.name, parent=self.parent)
        if "fast" in groups:
            self._read_memory(device)
            if device.state == "lost":
                return device
            device.processes = self._read_processes(device)
            if code := self._rates():
                device.missing["utilization_percent"] = self._library.why(code)
            else:
                device.values["utilization_percent"] = self._library.rates[0]
        if "medium" in groups:
            self._read_medium(device)
        if "rare" in groups:
            self._read_rare(device)
        return device

    def _read_memory(self, device: Device) -> None:
        code = self._memory()
        state = self._library.why(code) if code else "ok"
        numbers: tuple[int | None, ...] = ()
        if state == "ok":
            numbers = _MEMORY.unpack(self._library.memory)
        elif state == "not-supported":
            try:
                found = self._library.nvml.nvmlDeviceGetMemoryInfo(self.handle)
            except self._library.nvml.NVMLError as error:
                state = reason(error)
            else:  # older drivers: no reserved bytes
                numbers = (found.total, None, found.free, found.used)
        if not numbers:
            device.missing["used_bytes"] = state
            device.state = "lost" if state == "lost" else "ok"
        for metric, number in zip(_BYTES, numbers, strict=False):
            device.take(metric, None if number == _NOT_AVAILABLE else number)

    def _read_processes(self, device: Device) -> Listing | None:
        """Return the processes, None without a list; only what moved in the lists is unpacked.

        Where a list fails that the device has, nobody knows who is on it.
        """
        raw, was = [self._list(call, device, what) for call, what in self._lists], self._raw
        if any(device.missing.get(what, "not-supported") != "not-supported" for _, what in _LISTS):
            return None
        if raw != was:
            alone = raw[1] == was[1] and not raw[1]
            moved = _moved(was[0], raw[0], len(self._listing.pairs)) if alone else {}
            if moved:
                self._listing.update(moved)
            else:
                self._listing.replace(_merged(raw))
            self._raw = raw
        return None if raw == _NO_LISTS else self._listing

    def _list(self, call: _Call, device: Device, what: str) -> bytes | None:
        """Return a list as the driver writes it, None where it fails.

        The room that is kept for it makes the call superfluous that asks for the size.
        """
        library, code = self._library, _INSUFFICIENT_SIZE
        for _ in range(_TRIES):
            library.count.value = library.places
            code = call(library.processes)
            if code != _INSUFFICIENT_SIZE:
                break
            library.grow(2 * max(library.places, library.count.value))
        if code:
            device.missing[what] = library.why(code)
            return None
        return ctypes.string_at(library.processes, library.count.value * _PROCESS.size)

    def _read_medium(self, device: Device) -> None:
        for metric, call in self._numbers:
            if code := call():
                device.missing[metric] = self._library.why(code)
            else:
                device.values[metric] = self._library.number.value
        temperature = self._library.nvml.nvmlDeviceGetTemperatureV
        device.attempt("temperature_celsius", reason, temperature, self.handle, 0)

    def _read_rare(self, device: Device) -> None:
        nvml, pcie, field = self._library.nvml, self._pcie, self._field
        ecc = partial(nvml.nvmlDeviceGetTotalEccErrors, self.handle)
        device.attempt("pcie_tx_bytes_per_second", reason, pcie, nvml.NVML_PCIE_UTIL_TX_BYTES)
        device.attempt("pcie_rx_bytes_per_second", reason, pcie, nvml.NVML_PCIE_UTIL_RX_BYTES)
        device.attempt("ecc_corrected_count", reason, ecc, 0, 1)
        device.attempt("ecc_uncorrected_count", reason, ecc, 1, 1)
        device.attempt("nvlink_tx_bytes", reason, field, _NVLINK_TX)
        device.attempt("nvlink_rx_bytes", reason, field, _NVLINK_RX)

    def _pcie(self, direction: int) -> int:
        """Return bytes per second: NVML counts KB (1000 bytes) over 20 ms."""
        nvml = self._library.nvml
        return int(nvml.nvmlDeviceGetPcieThroughput(self.handle, direction)) * 1000

    def _field(self, number: int) -> int | None:
        nvml = self._library.nvml
        found = nvml.nvmlDeviceGetFieldValues(self.handle, [(number, _ALL_LINKS)])[0]
        return None if found.nvmlReturn else int(found.value.ullVal) * 1024


def _moved(before: bytes | None, now: bytes | None, number: int) -> dict[int, int | None]:
    """Return the bytes of the processes whose place in a list differs.

    Args:
        before: the list as it was, without another one beside it.
        now: as it is.
        number: processes that `before` holds.

    Returns nothing where this cannot tell what the list says now: a process came, went or changed
    its place, or is there more than once.
    """
    if not before or not now or not len(before) == len(now) == number * _PROCESS.size:
        return {}
    moved: dict[int, int | None] = {}
    bits, at = int.from_bytes(before, "little") ^ int.from_bytes(now, "little"), 0
    while bits:
        places = ((bits & -bits).bit_length() - 1) // (8 * _PROCESS.size)
        at += places * _PROCESS.size
        pid, used = _PROCESS.unpack_from(now, at)
        if pid != _PROCESS.unpack_from(before, at)[0]:
            return {}
        moved[pid] = None if used >= _HIGHEST_USED else used
        bits >>= (places + 1) * 8 * _PROCESS.size
        at += _PROCESS.size
    return moved


def _merged(raw: list[bytes | None]) -> dict[int, int | None]:
    """Return the bytes of all lists; a process that is in both has the same bytes in each."""
    found: dict[int, int | None] = {}
    for data in raw:
        for pid, used in _PROCESS.iter_unpack(data or b""):
            value, known = None if used >= _HIGHEST_USED else used, found.get(pid)
            found[pid] = known if value is None else max(value, known or 0)
    return found
