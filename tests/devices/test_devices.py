"""memplan.devices: detection with a recorded NVML, and the hardware options."""

from __future__ import annotations

import pytest

from memplan.devices.detect import detect_disk, detect_gpus, detect_host, gpu_problem
from memplan.devices.parse import parse_hardware
from memplan.errors import DeviceError
from memplan.units import GIB


class Nvml:
    """What pynvml answers on a machine with two GPUs, one of them without memory of its own."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, present=True, unified=()):
        self.present = present
        self.unified = unified
        self.open = 0

    def nvmlInit(self):
        if not self.present:
            raise self.NVMLError("NVML Shared Library Not Found")
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetMemoryInfo(self, handle):
        if handle in self.unified:
            raise self.NVMLError("Not Supported")

        class Info:
            total = (24 + handle) * GIB

        return Info

    def nvmlDeviceGetName(self, handle):
        return b"NVIDIA RTX"

    def nvmlDeviceGetUUID(self, handle):
        return f"GPU-{handle}"


def test_gpus_are_read_with_their_uuid(monkeypatch):
    """Bytes or text, and NVML is closed again."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvml = Nvml()
    gpus = detect_gpus(nvml)
    assert [(g.name, g.uuid, g.capacity_bytes) for g in gpus] == [
        ("cuda:0", "GPU-0", 24 * GIB),
        ("cuda:1", "GPU-1", 25 * GIB),
    ]
    assert gpus[0].label == "NVIDIA RTX"
    assert nvml.open == 0


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [("1,0", ["GPU-1", "GPU-0"]), ("GPU-1", ["GPU-1"]), ("", []), ("0,7,1", ["GPU-0"])],
)
def test_only_what_cuda_would_show_is_planned_for(monkeypatch, visible, uuids):
    """In CUDA's order, up to the first entry that names nothing."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpus = detect_gpus(Nvml())
    assert [gpu.uuid for gpu in gpus] == uuids
    assert [gpu.name for gpu in gpus] == [f"cuda:{i}" for i in range(len(uuids))]


def test_a_machine_without_nvml_has_no_gpus_and_says_why():
    """Never an exception."""
    nvml = Nvml(present=False)
    assert detect_gpus(nvml) == ()
    assert gpu_problem(nvml) == "NVML Shared Library Not Found"
    assert gpu_problem(Nvml()) is None


def test_a_gpu_without_memory_of_its_own_is_left_out(monkeypatch):
    """Unified memory: NVML knows no size."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [gpu.uuid for gpu in detect_gpus(Nvml(unified=(0,)))] == ["GPU-1"]


def test_host_and_disk_are_detected(tmp_path):
    """Real sizes of this machine."""
    assert detect_host().capacity_bytes > 2**28
    assert detect_disk(tmp_path / "not" / "yet").capacity_bytes > 0


def test_given_sizes_are_taken_as_they_stand():
    """Two GPUs, host, disk, a reserve on each GPU."""
    found = parse_hardware(
        ["24GiB", "16GiB"], host_memory=GIB, disk=2 * GIB, reserve=5, host_bandwidth=7
    )
    rows = [(d.name, d.kind, d.capacity_bytes, d.reserve_bytes) for d in found.devices]
    assert rows == [
        ("cuda:0", "gpu", 24 * GIB, 5),
        ("cuda:1", "gpu", 16 * GIB, 5),
        ("cpu", "cpu", GIB, 0),
        ("disk", "disk", 2 * GIB, 0),
    ]
    assert found.devices[2].bandwidth == 7


def test_without_a_gpu_the_host_computes():
    """The reserve is then kept there."""
    found = parse_hardware(["cpu"], host_memory=GIB, disk=0, reserve=9)
    assert [(d.name, d.reserve_bytes) for d in found.devices] == [("cpu", 9)]


@pytest.mark.parametrize(
    "names", [["big"], ["0"], ["cpu", "24GiB"], ["24GiBs"], ["cpu", "rtx4090"], ["rtx"]]
)
def test_a_device_that_is_none_is_refused_with_a_hint(names):
    """Neither a size nor a product nor a known word."""
    with pytest.raises(DeviceError) as caught:
        parse_hardware(names, host_memory=GIB, disk=0)
    assert caught.value.hint
