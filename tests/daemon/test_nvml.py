"""NVML through a stand-in that fails in every way the real one does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from memplan_daemon.clock import ManualClock
from memplan_daemon.collectors.base import HOST, Watch
from memplan_daemon.collectors.nvml import FIRST_RETRY_S, NvmlCollector

NOT_AVAILABLE = 2**64 - 1


class NVMLError(Exception):
    pass


class NVMLError_GpuIsLost(NVMLError):
    pass


class NVMLError_Unknown(NVMLError):
    pass


class NVMLError_NotSupported(NVMLError):
    pass


class NVMLError_LibraryNotFound(NVMLError):
    pass


class FakeNvml:
    """Two GPUs; `broken` maps a function's name (and uuid) to the error it raises."""

    NVMLError = NVMLError
    nvmlMemory_v2 = 2

    def __init__(self):
        self.broken = {}
        self.inits = self.shutdowns = self.lists = 0
        self.uuids = ["GPU-a", "GPU-b"]
        self.compute = {"GPU-a": [(10, 500), (99, 70)], "GPU-b": []}
        self.graphics = {"GPU-a": [(10, 500), (11, 30)], "GPU-b": []}

    def _check(self, name, uuid=None):
        error = self.broken.get((name, uuid)) or self.broken.get(name)
        if error is not None:
            raise error(name)

    def nvmlInit(self):
        self.inits += 1
        self._check("init")

    def nvmlShutdown(self):
        self.shutdowns += 1

    def nvmlDeviceGetCount(self):
        return len(self.uuids)

    def nvmlDeviceGetHandleByIndex(self, index):
        return self.uuids[index]

    def nvmlDeviceGetUUID(self, handle):
        return handle

    def nvmlDeviceGetMemoryInfo(self, handle, version=None):
        self._check("memory", handle)
        if version == 2:
            self._check("memory_v2", handle)
            return SimpleNamespace(total=1000, used=600, free=350, reserved=50)
        return SimpleNamespace(total=1000, used=650, free=350)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        self.lists += 1
        self._check("compute", handle)
        return [SimpleNamespace(pid=p, usedGpuMemory=b) for p, b in self.compute[handle]]

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle):
        self._check("graphics", handle)
        return [SimpleNamespace(pid=p, usedGpuMemory=b) for p, b in self.graphics[handle]]


@pytest.fixture
def nvml():
    return FakeNvml()


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def collector(nvml, clock):
    return NvmlCollector(clock, lambda: nvml)


def read(collector, watch=HOST):
    return {(r.entity, r.metric): r.value for r in collector.collect(watch)}


def run_watch(*pids, tick=0):
    return Watch(run_id="r-1", pid=pids[0], members=dict.fromkeys(pids), tick=tick)


def test_every_gpu_is_read_by_uuid(collector, nvml):
    """Reserved bytes are told apart where the driver does."""
    found = read(collector)
    assert found["gpu:GPU-a", "used_bytes"] == 600
    assert found["gpu:GPU-b", "reserved_bytes"] == 50
    assert len(found) == 8
    read(collector)
    assert nvml.inits == 1


def test_an_old_driver_gives_no_reserved_bytes(collector, nvml):
    """The first version of the call is the way out."""
    nvml.broken["memory_v2"] = NVMLError_NotSupported
    found = read(collector)
    assert found["gpu:GPU-a", "used_bytes"] == 650
    assert ("gpu:GPU-a", "reserved_bytes") not in found


def test_a_tree_uses_what_its_processes_use_once(collector):
    """A process in both lists counts once; strangers do not count; an idle GPU has no reading."""
    assert read(collector, run_watch(10, 11, 12)) == {("gpu:GPU-a/tree", "used_bytes"): 530}
    assert read(collector, run_watch(12, tick=1)) == {}


@pytest.mark.parametrize("value", [None, NOT_AVAILABLE])
def test_a_process_without_a_number_is_left_out(collector, nvml, value):
    """N/A is no zero and no 16 EiB."""
    nvml.compute["GPU-a"] = [(10, value)]
    nvml.graphics["GPU-a"] = []
    assert read(collector, run_watch(10)) == {}


def test_process_lists_are_read_once_per_tick_for_all_runs(collector, nvml):
    """Two runs in one tick share the answer."""
    read(collector, run_watch(10, tick=3))
    read(collector, run_watch(11, tick=3))
    assert nvml.lists == 2
    read(collector, run_watch(11, tick=4))
    assert nvml.lists == 4


def test_a_list_that_is_not_supported_leaves_the_other(collector, nvml):
    """Graphics lists are missing on some devices."""
    nvml.broken["graphics"] = NVMLError_NotSupported
    assert read(collector, run_watch(10, 11)) == {("gpu:GPU-a/tree", "used_bytes"): 500}


def test_a_lost_gpu_goes_silent_and_the_others_go_on(collector, nvml, clock):
    """NVML is started anew after a pause that doubles, and readings return."""
    read(collector)
    nvml.broken["memory", "GPU-a"] = NVMLError_GpuIsLost
    assert {entity for entity, _ in read(collector)} == {"gpu:GPU-b"}
    assert nvml.inits == 1
    clock.advance(FIRST_RETRY_S)
    read(collector)
    assert (nvml.inits, nvml.shutdowns) == (2, 1)
    clock.advance(FIRST_RETRY_S)
    read(collector)
    assert nvml.inits == 2
    del nvml.broken["memory", "GPU-a"]
    clock.advance(FIRST_RETRY_S)
    assert {entity for entity, _ in read(collector)} == {"gpu:GPU-a", "gpu:GPU-b"}
    assert nvml.inits == 3


def test_a_driver_that_is_not_there_is_tried_again_later(collector, nvml, clock):
    """No library, no readings, no exception; once it is there, readings."""
    nvml.broken["init"] = NVMLError_LibraryNotFound
    assert read(collector) == {}
    assert read(collector) == {}
    assert nvml.inits == 1
    nvml.broken.clear()
    clock.advance(FIRST_RETRY_S)
    assert len(read(collector)) == 8


def test_an_unknown_error_while_listing_processes_starts_anew(collector, nvml, clock):
    """As after a daemon-reload in a container."""
    read(collector)
    nvml.broken["compute"] = NVMLError_Unknown
    assert read(collector, run_watch(10)) == {}
    nvml.broken.clear()
    clock.advance(FIRST_RETRY_S)
    assert read(collector, run_watch(10, tick=1)) == {("gpu:GPU-a/tree", "used_bytes"): 500}
    assert nvml.inits == 2


def test_without_pynvml_there_are_no_readings(clock):
    """The module is optional at run time."""
    assert read(NvmlCollector(clock, lambda: None)) == {}
