"""AMD: the same answers as for NVIDIA, by amdsmi, which comes with ROCm and not from an index.

Names and units by the AMD SMI Python reference (ROCm 6.4): memory in bytes, power in watts.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from memplan_daemon.probe.fields import Device, Listing, reply

__all__ = ["AmdBackend"]

_NOT_SUPPORTED, _NO_PERMISSION = 2, 10
"""AMDSMI_STATUS_NOT_SUPPORTED and AMDSMI_STATUS_NO_PERM."""


def _number(value: Any) -> int | None:
    """Return a number, or None for amdsmi's "N/A"."""
    return int(value) if isinstance(value, int | float) else None


def _read(read: Callable[[], Any]) -> int | None:
    return _number(read())


class AmdBackend:
    """Keeps amdsmi open; a request reads what it names."""

    def __init__(self) -> None:
        """Begin closed; the module is loaded at the first request."""
        self._smi: Any = None
        self._devices: list[tuple[Any, str, str]] = []
        self._lists: dict[str, Listing] = {}

    def read(self, groups: frozenset[str]) -> dict[str, Any]:
        """Return one answer."""
        try:
            self._smi = self._smi or importlib.import_module("amdsmi")
        except (ImportError, OSError, KeyError) as error:  # the library lies beside the module
            return reply("absent", reason=f"amdsmi cannot be loaded: {error}")
        try:
            if not self._devices:
                self._smi.amdsmi_init()
                self._devices = [self._named(h) for h in self._smi.amdsmi_get_processor_handles()]
            devices = tuple(self._device(*entry, groups) for entry in self._devices)
        except self._smi.AmdSmiException as error:
            self._devices = []
            return reply("failed", reason=str(error))
        return reply("ok" if devices else "absent", devices=devices)

    def _named(self, handle: Any) -> tuple[Any, str, str]:
        name = str(self._smi.amdsmi_get_gpu_asic_info(handle).get("market_name", "AMD GPU"))
        return handle, f"AMD-{self._smi.amdsmi_get_gpu_device_uuid(handle)}", name

    def _reason(self, error: Exception) -> str:
        if not isinstance(error, self._smi.AmdSmiException):
            raise error
        code = getattr(error, "err_code", None)
        return {_NOT_SUPPORTED: "not-supported", _NO_PERMISSION: "no-permission"}.get(
            code if isinstance(code, int) else -1, "failed"
        )

    def _device(self, handle: Any, uuid: str, name: str, groups: frozenset[str]) -> Device:
        smi, device = self._smi, Device(uuid=uuid, name=name)
        reads: dict[str, Any] = {}
        if "fast" in groups:
            vram = smi.AmdSmiMemoryType.VRAM
            reads |= {
                "total_bytes": lambda: smi.amdsmi_get_gpu_memory_total(handle, vram),
                "used_bytes": lambda: smi.amdsmi_get_gpu_memory_usage(handle, vram),
                "utilization_percent": lambda: smi.amdsmi_get_gpu_activity(handle)["gfx_activity"],
            }
            self._processes(device, handle)
        if "medium" in groups:
            kind, now = smi.AmdSmiTemperatureType.HOTSPOT, smi.AmdSmiTemperatureMetric.CURRENT
            reads |= {
                "power_milliwatts": lambda: self._power(handle),
                "temperature_celsius": lambda: smi.amdsmi_get_temp_metric(handle, kind, now),
            }
        for metric, read in reads.items():
            device.attempt(metric, self._reason, _read, read)
        if {"total_bytes", "used_bytes"} <= device.values.keys():
            device.take("free_bytes", device.values["total_bytes"] - device.values["used_bytes"])
        return device

    def _power(self, handle: Any) -> int | None:
        info = self._smi.amdsmi_get_power_info(handle)
        for key in ("current_socket_power", "average_socket_power"):
            if (watts := _number(info.get(key))) is not None:
                return watts * 1000
        return None

    def _processes(self, device: Device, handle: Any) -> None:
        try:
            entries = self._smi.amdsmi_get_gpu_process_list(handle)
        except self._smi.AmdSmiException as error:
            device.missing["compute_processes"] = self._reason(error)
            return
        found: dict[int, int | None] = {}
        for entry in entries:
            info = (
                entry
                if isinstance(entry, dict)
                else self._smi.amdsmi_get_gpu_process_info(handle, entry)
            )
            found[int(info["pid"])] = _number(info.get("memory_usage", {}).get("vram_mem"))
        device.processes = self._lists.setdefault(device.uuid, Listing())
        device.processes.replace(found)
