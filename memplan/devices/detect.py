"""What this machine has: GPUs by NVML, host memory and free disk. Missing parts are left out."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from memplan.devices.table import find
from memplan.types import Device

__all__ = ["detect_disk", "detect_gpus", "detect_host", "gpu_problem"]


def detect_gpus(pynvml: Any = None) -> tuple[Device, ...]:
    """Return the NVIDIA GPUs that NVML shows, named cuda:N in CUDA's order; () without any.

    CUDA_VISIBLE_DEVICES (indices or uuids) is respected. A GPU without memory of its own
    (unified memory) is left out: NVML reports no size for it.

    Args:
        pynvml: the module to ask; None = the installed one.
    """
    with _nvml(pynvml) as nvml:
        if nvml is None:
            return ()
        found = [device for i in range(nvml.nvmlDeviceGetCount()) if (device := _gpu(nvml, i))]
    return tuple(
        _renamed(device, i)
        for i, device in enumerate(_visible(found, os.environ.get("CUDA_VISIBLE_DEVICES")))
    )


def gpu_problem(pynvml: Any = None) -> str | None:
    """Return why NVML shows no GPU, in words; None when it works."""
    nvml = pynvml or _import_nvml()
    if nvml is None:
        return "the package nvidia-ml-py is not installed"
    try:
        nvml.nvmlInit()
        nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        return str(error)
    return None


def _import_nvml() -> Any:
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml


@contextlib.contextmanager
def _nvml(pynvml: Any) -> Iterator[Any]:
    nvml = pynvml or _import_nvml()
    if nvml is None:
        yield None
        return
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        yield None
        return
    try:
        yield nvml
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> Device | None:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        total = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
        label = _text(nvml.nvmlDeviceGetName(handle))
        known = find(label)
        return Device(
            name=f"cuda:{index}",
            kind="gpu",
            capacity_bytes=total,
            label=label,
            memory_bandwidth=known.bandwidth if known else None,
            link_bandwidth=known.host_bandwidth if known else None,
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            vendor="NVIDIA",
            compute=_compute(nvml, handle),
            source="NVML",
        )
    except nvml.NVMLError:
        return None


def _compute(nvml: Any, handle: Any) -> str | None:
    """Return a GPU's compute capability, None where the driver does not say."""
    try:
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    except (nvml.NVMLError, AttributeError):
        return None
    return f"{major}.{minor}"


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _visible(found: list[Device], wish: str | None) -> list[Device]:
    """Return the devices that CUDA would show, in its order; CUDA stops at the first bad entry."""
    if wish is None:
        return found
    result = []
    for entry in (part.strip() for part in wish.split(",")):
        match = [
            device
            for i, device in enumerate(found)
            if entry == str(i) or (entry and (device.uuid or "").startswith(entry))
        ]
        if not match:
            break
        result.append(match[0])
    return result


def _renamed(device: Device, index: int) -> Device:
    return replace(device, name=f"cuda:{index}")


def detect_host() -> Device:
    """Return the host's memory: what is there, or the cgroup's limit where that is less."""
    import psutil

    total = int(psutil.virtual_memory().total)
    limit = _cgroup_limit(Path("/sys/fs/cgroup"))
    if limit is not None and limit < total:
        return Device(name="cpu", kind="cpu", capacity_bytes=limit, source="cgroup limit")
    return Device(name="cpu", kind="cpu", capacity_bytes=total, source="psutil")


def _cgroup_limit(root: Path) -> int | None:
    """Return the memory limit of this process's cgroup, v2 or v1, as a container sees it."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            return int((root / name).read_text(encoding="ascii"))
    return None


def detect_disk(folder: Path) -> Device:
    """Return the free space of the file system that holds a folder (or its nearest parent)."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return Device(name="disk", kind="disk", capacity_bytes=free, source="free space")
