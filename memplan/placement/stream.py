"""What streaming costs: bytes for each token, and the tokens a second that the copies allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memplan.types import Device, DeviceKind, Range

__all__ = ["decode_speed"]


@dataclass(frozen=True, slots=True)
class _Band:
    """Bytes a second."""

    value: float
    low: float
    high: float


_ASSUMED: dict[DeviceKind, _Band] = {
    "cpu": _Band(25e9, 6e9, 55e9),
    "disk": _Band(3e9, 0.2e9, 12e9),
}
"""Copies to the computing device where nothing was measured. cpu: PCIe 4.0 x16 pinned 25 GB/s,
pageable from 6, PCIe 5.0 up to 55. disk: NVMe 3 GB/s, a network disk 0.2; 12 GB/s was measured
when the page cache held the file."""

_STATED = 0.25
"""Relative band of a bandwidth that the user stated."""


def decode_speed(offloaded: Mapping[str, int], devices: Sequence[Device]) -> Range:
    """Return tokens a second of one sequence as far as the copies allow; None without copies.

    Every offloaded byte crosses once for each token, one module after another, so the times add
    up: t = sum over devices of bytes / bandwidth.
    """
    if not any(offloaded.values()):
        return Range(value=None, low=None, high=None)
    bands = {device.name: _band(device) for device in devices if device.kind != "gpu"}

    def speed(pick: str) -> float:
        times = (size / getattr(bands[name], pick) for name, size in offloaded.items() if size)
        return 1.0 / float(sum(times))

    return Range(value=speed("value"), low=speed("low"), high=speed("high"))


def _band(device: Device) -> _Band:
    if device.bandwidth:
        stated = float(device.bandwidth)
        return _Band(stated, stated * (1 - _STATED), stated * (1 + _STATED))
    return _ASSUMED[device.kind]
