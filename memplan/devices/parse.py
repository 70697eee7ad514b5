"""The hardware options of the command line -> devices in the order that the planner wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from memplan.devices.detect import detect_disk, detect_gpus, detect_host
from memplan.devices.measure import known_speed
from memplan.devices.table import closest, find
from memplan.errors import DeviceError, UnitError
from memplan.types import Device
from memplan.units import parse_bytes

__all__ = ["Hardware", "parse_hardware"]

LOCAL = "local"

_SMALLEST = 2**20
"""Bytes below which a number is a name that was meant otherwise ("4090")."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What a plan is made for."""

    devices: tuple[Device, ...]
    """GPUs, then host memory, then disk (left out when it has no room)."""
    names: tuple[str, ...]
    """What the GPUs were called on the command line."""


def parse_hardware(
    names: Sequence[str] = (),
    *,
    host_memory: int | None = None,
    disk: int | None = None,
    reserve: int = 0,
    host_bandwidth: int | None = None,
    disk_bandwidth: int | None = None,
) -> Hardware:
    """Return the devices that the options name; what they leave open is detected here.

    Args:
        names: one per GPU: a size ("24GiB"), a product of the table ("rtx4090"), "local" (the
            GPUs of this machine, or its host memory when it has none), or "cpu" (no GPU: the
            host computes). Empty = "local".
        host_memory: bytes; None = this machine's, or none beside a product whose CPU and GPU
            share one memory: that memory is counted once.
        disk: bytes; None = free space here, 0 = none may be used.
        reserve: bytes left untouched on each computing device.
        host_bandwidth: bytes a second from host memory; None = not known.
        disk_bandwidth: bytes a second from disk; None = not known.

    Raises DeviceError for a name that is none of these, and for sizes that make no sense.
    """
    wanted = tuple(names) or (LOCAL,)
    gpus = _gpus(wanted)
    host = _rated_host(_host(wanted, host_memory), gpus, host_bandwidth)
    if not gpus:
        host = replace(host, reserve_bytes=reserve)
    devices = [replace(gpu, reserve_bytes=reserve) for gpu in gpus]
    devices += [host] if host.capacity_bytes or not gpus else []
    for device in devices:
        if device.reserve_bytes > device.capacity_bytes:
            raise DeviceError(
                f"--reserve is more than all of {device.name}'s memory", hint="reserve less"
            )
    store = (
        detect_disk(Path.cwd())
        if disk is None
        else Device(name="disk", kind="disk", capacity_bytes=disk, source="given")
    )
    if store.capacity_bytes:
        devices.append(_rated_disk(store, disk_bandwidth))
    return Hardware(devices=tuple(devices), names=wanted)


def _rated_host(host: Device, gpus: Sequence[Device], stated: int | None) -> Device:
    """Return the host with its rates: stated, or measured here where it is this machine's.

    Copies were measured to a GPU of this machine: they say nothing about one that is only named.
    """
    if stated is not None or host.source in ("given", "shared with the GPU"):
        return replace(host, bandwidth=stated)
    own = known_speed("ram")
    local = [gpu for gpu in gpus if gpu.uuid]
    copies = known_speed("cuda:0", local[0].uuid or "") if local else None
    return replace(
        host,
        bandwidth=copies.bandwidth if copies else None,
        memory_bandwidth=own.bandwidth if own else None,
        measured=max((speed.date for speed in (own, copies) if speed is not None), default=""),
    )


def _rated_disk(store: Device, stated: int | None) -> Device:
    """Return the disk with its rate: stated, or measured here where it is this folder's."""
    speed = known_speed("disk", str(Path.cwd())) if store.source == "free space" else None
    if stated is not None or speed is None:
        return replace(store, bandwidth=stated)
    return replace(store, bandwidth=speed.bandwidth, measured=speed.date)


def _host(names: Sequence[str], size: int | None) -> Device:
    if size is None and not any(_shares_memory(name) for name in names):
        return detect_host()
    source = "shared with the GPU" if size is None else "given"
    return Device(name="cpu", kind="cpu", capacity_bytes=size or 0, source=source)


def _shares_memory(name: str) -> bool:
    known = find(name)
    return known is not None and known.kind == "unified"


def _gpus(names: Sequence[str]) -> list[Device]:
    if "cpu" in names:
        if len(names) > 1:
            raise DeviceError(
                "--device cpu means that no GPU computes", hint="leave the other --device out"
            )
        return []
    gpus: list[Device] = []
    for name in names:
        found = detect_gpus() if name == LOCAL else (_named(name) or _sized(name),)
        gpus += [replace(gpu, name=f"cuda:{len(gpus) + i}") for i, gpu in enumerate(found)]
    return gpus


def _named(name: str) -> Device | None:
    """Return a product of the table; None when there is none of that name."""
    known = find(name)
    if known is None:
        return None
    return Device(
        name="cuda:0",
        kind="gpu",
        capacity_bytes=known.capacity_bytes,
        label=known.label,
        vendor=known.vendor,
        compute=known.compute_capability,
        memory_bandwidth=known.bandwidth,
        link_bandwidth=known.host_bandwidth,
        source=known.source,
    )


def _sized(text: str) -> Device:
    try:
        size = parse_bytes(text)
    except UnitError as error:
        raise DeviceError(
            f"{text!r} is no device that memplan knows",
            hint=f"close are {', '.join(closest(text))}; `memplan devices` lists all; "
            'or give a size such as "24GiB", "local" or "cpu"',
        ) from error
    if 0 < size < _SMALLEST:
        raise DeviceError(
            f"a GPU of {size} bytes is none",
            hint=f'give a size such as "24GiB"; close names are {", ".join(closest(text))}',
        )
    if size <= 0:
        raise DeviceError(f"a device of {text} holds nothing", hint='give a size such as "24GiB"')
    return Device(name="cuda:0", kind="gpu", capacity_bytes=size, label=text, source="given")
