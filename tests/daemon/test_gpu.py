"""GPUs through a library of our own that fails in every way the real one does."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import subprocess
import time
from dataclasses import replace

import pytest
from memplan_daemon.clock import SystemClock
from memplan_daemon.collectors import child
from memplan_daemon.collectors.base import Event, Gap, Reading, Steady, Watch
from memplan_daemon.collectors.gpu import STATES, GpuCollector, nvidia_problem
from memplan_daemon.probe.fields import Device, Heard, Listing, Told
from memplan_daemon.proc import Process

from memplan.testing import FakeGpu, Fault, ManualClock

FULL = {
    "util": 37,
    "power": 250_000,
    "limit": 700_000,
    "temp": 54,
    "sm": 1980,
    "mem": 2619,
    "tx": 100,
    "rx": 200,
    "nvlink_tx": 3,
    "nvlink_rx": 4,
    "ecc_soft": 1,
    "ecc_hard": 0,
    "mig": 0,
}


class Gpus:
    """A collector and what it found, tick by tick."""

    def __init__(self, **options):
        self.collector = GpuCollector(SystemClock(), problem=lambda: "", wait_s=5.0, **options)
        self.ticks = 0

    def items(self, *pids, kind=Reading):
        members = {pid: Process(pid, "/nowhere", None) for pid in pids}
        run_id = "r-1" if pids else None
        watch = Watch(
            run_id=run_id, pid=pids[0] if pids else None, members=members, tick=self.ticks
        )
        found = self.collector.collect(watch)
        found = found.found if isinstance(found, Steady) else found
        return [item for item in found if isinstance(item, kind)]

    def host(self):
        self.ticks += 1
        return {(r.entity, r.metric): r.value for r in self.items()}

    def run(self, *pids):
        return {(r.entity, r.metric): r.value for r in self.items(*pids)}

    def gaps(self):
        return {(g.entity, g.metric): g.state for g in self.items(kind=Gap)}

    def everything(self):
        """One tick: readings, gaps and events."""
        self.ticks += 1
        watch = Watch(run_id=None, pid=None, tick=self.ticks)
        return list(self.collector.collect(watch))

    def events(self):
        return [(e.entity, e.kind, e.code) for e in self.everything() if isinstance(e, Event)]


@pytest.fixture
def gpus(nvml):
    nvml.gpus = [
        FakeGpu(uuid="GPU-a", used=600, total=2000, reserved=50, fields=dict(FULL)),
        FakeGpu(uuid="GPU-b", used=10, total=2000, reserved=0),
    ]
    nvml.write()
    made = Gpus()
    yield made
    made.collector.close()


def test_every_gpu_is_read_by_uuid_to_the_byte(gpus):
    """Memory by the second version of the call, and everything else that the device has."""
    found = gpus.host()
    assert {m: v for (e, m), v in found.items() if e == "gpu:GPU-a"} == {
        "total_bytes": 2000,
        "used_bytes": 600,
        "reserved_bytes": 50,
        "free_bytes": 1350,
        "utilization_percent": 37,
        "power_milliwatts": 250_000,
        "power_limit_milliwatts": 700_000,
        "temperature_celsius": 54,
        "sm_clock_megahertz": 1980,
        "memory_clock_megahertz": 2619,
        "pcie_tx_bytes_per_second": 100_000,
        "pcie_rx_bytes_per_second": 200_000,
        "nvlink_tx_bytes": 3072,
        "nvlink_rx_bytes": 4096,
        "ecc_corrected_count": 1,
        "ecc_uncorrected_count": 0,
    }
    assert gpus.collector.driver == "570.00"


def test_what_a_device_has_not_got_is_a_gap_with_its_reason_and_hides_nothing(gpus, nvml):
    """One field fails, the others are read; an old driver has no reserved bytes."""
    found = gpus.host()
    assert found["gpu:GPU-b", "used_bytes"] == 10
    assert gpus.gaps()["gpu:GPU-b", "power_milliwatts"] == "not-supported"
    nvml.faults = [
        Fault(function="nvmlDeviceGetPowerUsage", error=4),
        Fault(function="nvmlDeviceGetMemoryInfo_v2", error=13),
    ]
    nvml.write()
    found = gpus.host()
    assert gpus.gaps()["gpu:GPU-a", "power_milliwatts"] == "no-permission"
    assert found["gpu:GPU-a", "used_bytes"] == 650
    assert ("gpu:GPU-a", "reserved_bytes") not in found


def test_a_tree_uses_what_its_processes_use_once(gpus, nvml):
    """A process in both lists counts once; strangers do not count; an idle GPU has no reading."""
    nvml.gpus[0].compute = {10: 500, 99: 70}
    nvml.gpus[0].graphics = {10: 500, 11: 30}
    nvml.write()
    gpus.host()
    assert gpus.run(10, 11, 12) == {
        ("process:10/gpu:GPU-a", "used_bytes"): 500,
        ("process:11/gpu:GPU-a", "used_bytes"): 30,
        ("gpu:GPU-a/tree", "used_bytes"): 530,
    }
    assert gpus.run(12) == {}
    assert gpus.collector.pids() == {10, 11, 99}


@pytest.mark.parametrize("seed", range(4))
def test_what_a_run_has_is_carried_on_from_tick_to_tick(seed, monkeypatch):
    """Bytes change, processes come and go, devices are lost, numbers are missing for a while."""
    dice, collector = random.Random(seed), GpuCollector(ManualClock(), problem=lambda: "")
    lists = {f"GPU-{i}": {pid: 100 + pid for pid in range(10 + i, 60, 4)} for i in range(4)}
    lost = set()

    def answer(groups, wait_s):
        empty = {"name": "fake", "missing": {}, "values": {}}
        entries = [
            {"uuid": u, "state": "lost", "processes": None, **empty}
            if u in lost
            else {"uuid": u, "state": "ok", "processes": dict(known), **empty}
            for u, known in lists.items()
        ]
        return {"state": "ok", "driver": "1", "gpus": entries, "events": []}

    monkeypatch.setattr(collector.probe, "exchange", answer)
    runs = {f"r-{n}": {p: Process(p, "/nowhere", None) for p in range(n, 60, 3)} for n in range(3)}
    before, steady = {run: {} for run in runs}, 0
    for tick in range(80):
        uuid = dice.choice(sorted(lists))
        what = dice.choice(["move"] * 5 + ["none", "come", "go", "lose", "nothing", "join"])
        if what in {"move", "none"}:
            pids = dice.sample(sorted(lists[uuid]), 2)
            lists[uuid] |= dict.fromkeys(pids, None if what == "none" else dice.randrange(99))
        elif what == "come":
            lists[uuid][dice.randrange(100)] = 7
        elif what == "go":
            del lists[uuid][dice.choice(sorted(lists[uuid]))]
        elif what == "lose":
            lost ^= {uuid}
        elif what == "join":
            runs["r-0"] = runs["r-0"] | {dice.randrange(61, 70): Process(61, "/nowhere", None)}
        for run_id, members in runs.items():
            watch = Watch(run_id=run_id, pid=1, members=members, tick=tick)
            found, news = collector.collect(watch)
            assert found == collector._put_together(watch).found
            readings = {item[:2]: item[2] for item in found if isinstance(item, Reading)}
            assert set(news) <= {item for item in found if isinstance(item, Reading)}
            told = before[run_id] | {item[:2]: item[2] for item in news}
            assert readings.items() <= told.items(), "all that is new is told"
            before[run_id] = told
            steady += len(news) < len(readings) // 2
    assert steady > 80, "most ticks tell little"


def test_a_process_without_a_number_is_a_gap_and_no_zero(gpus, nvml):
    """As on WSL2 and WDDM."""
    nvml.gpus[0].compute = {10: None, 11: 5}
    nvml.write()
    gpus.host()
    assert gpus.run(10) == {}
    assert gpus.items(10, kind=Gap) == [Gap("process:10/gpu:GPU-a", "used_bytes", "not-supported")]
    assert gpus.run(10, 11)["gpu:GPU-a/tree", "used_bytes"] == 5


def test_a_list_that_grows_between_two_calls_is_left_out_once(gpus, nvml):
    """The room is as large as the list was said to be; more start in between, again and again."""
    nvml.gpus[0].compute = dict.fromkeys(range(100, 2100), 1)
    nvml.faults = [Fault(function="nvmlDeviceGetComputeRunningProcesses_v3", grow=1990)]
    nvml.write()
    gpus.host()
    assert gpus.run(100) == {}
    assert gpus.gaps()["gpu:GPU-a", "compute_processes"] == "failed"
    assert gpus.collector.pids() == set()
    nvml.faults = []
    nvml.write()
    gpus.host()
    assert gpus.run(100)["gpu:GPU-a/tree", "used_bytes"] == 1
    nvml.faults = [Fault(function="nvmlDeviceGetComputeRunningProcesses_v3", error=4)]
    nvml.gpus[0].used += 1
    nvml.write()
    gpus.host()
    assert gpus.run(100) == {}, "not 0 and not what it was"
    assert 100 in gpus.collector.pids(), "nobody knows that it has gone: its run goes on"
    nvml.faults = []
    nvml.gpus[0].compute = {100: 7}
    nvml.write()
    gpus.host()
    assert gpus.run(100)["gpu:GPU-a/tree", "used_bytes"] == 7
    assert gpus.collector.pids() == {100}


@pytest.mark.parametrize("grow", [0, 48])
def test_a_list_that_is_longer_than_expected_is_read_whole(gpus, nvml, grow):
    """Also when some start between the call that finds too little room and the next one."""
    nvml.gpus[0].compute = dict.fromkeys(range(100, 400), 1)
    nvml.faults = [Fault(function="nvmlDeviceGetComputeRunningProcesses_v3", grow=grow)]
    nvml.write()
    gpus.host()
    assert gpus.run(*range(100, 400))["gpu:GPU-a/tree", "used_bytes"] == 300


def test_lists_are_as_the_driver_has_them_however_they_change(gpus, nvml):
    """Processes come, go, move, change places, and are in both lists; or there is no list."""
    chance, gpu = random.Random(5), nvml.gpus[0]
    no_graphics = Fault(function="nvmlDeviceGetGraphicsRunningProcesses_v3", error=3)
    for _ in range(150):
        kind = chance.choice(["move", "move", "move", "order", "new", "both", "fault"])
        if kind == "move" and gpu.compute:
            for pid in chance.choices(list(gpu.compute), k=chance.randrange(3)):
                gpu.compute[pid] = chance.choice([None, 0, 5, 2**50])
        elif kind == "order":
            gpu.compute = dict(chance.sample(list(gpu.compute.items()), len(gpu.compute)))
        elif kind == "new":
            gpu.compute = dict.fromkeys(chance.sample(range(100, 112), chance.randrange(9)), 7)
        elif kind == "both":
            gpu.graphics = {pid: gpu.compute.get(pid, 9) for pid in chance.choice([(), (100, 50)])}
        else:
            nvml.faults = [] if nvml.faults else [no_graphics]
        nvml.write()
        answer = gpus.collector.probe.exchange(["fast"], 5.0)
        found = merged(gpu.compute, {} if nvml.faults else gpu.graphics)
        assert answer["gpus"][0]["processes"] == found


def merged(*lists):
    """The bytes of each process: the most that a list has for it."""
    said = [(pid, used) for found in lists for pid, used in found.items()]
    known = {pid: [n for other, n in said if other == pid and n is not None] for pid, _ in said}
    return {pid: max(numbers, default=None) for pid, numbers in known.items()}


def test_what_can_list_nothing_has_no_list(gpus, nvml):
    """And one again as soon as the driver can; an empty list is one, too."""
    nvml.gpus[0].compute = {10: 500}
    for code, expected in ((0, [{10: 500}, {}]), (4, [None, None]), (0, [{10: 500}, {}])):
        nvml.faults = [
            Fault(function=f"nvmlDeviceGet{kind}RunningProcesses_v3", error=code)
            for kind in ("Compute", "Graphics")
        ]
        nvml.write()
        answer = gpus.collector.probe.exchange(["fast"], 5.0)
        assert [entry["processes"] for entry in answer["gpus"]] == expected


def test_a_lost_gpu_is_a_gap_while_the_others_go_on(gpus, nvml):
    """It is told once, and once more when it is back."""
    gpus.host()
    nvml.faults = [Fault(function="*", uuid="GPU-a", error=15)]
    nvml.write()
    items = gpus.everything()
    assert {i.entity for i in items if isinstance(i, Reading)} == {"gpu:GPU-b"}
    assert [i.code for i in items if isinstance(i, Event)] == [STATES.index("lost")]
    assert gpus.collector.states == {"GPU-a": "lost", "GPU-b": "ok"}
    assert gpus.events() == []
    nvml.faults = []
    nvml.write()
    assert gpus.events() == [("gpu:GPU-a", "gpu.state", 0)]
    assert gpus.collector.probe.restarts == 0


def test_a_driver_that_was_loaded_anew_is_read_on_with_new_handles(gpus, nvml):
    """Old handles answer "invalid argument": no tick is lost, no probe restarted."""
    nvml.gpus[0].fields["mig"] = 1
    nvml.gpus[0].mig = [FakeGpu(uuid="MIG-1", used=100, fields={"gi": 1, "ci": 0})]
    nvml.gpus[0].compute = {10: 5}
    nvml.write()
    before = gpus.host()
    for generation in (1, 2):
        nvml.generation = generation
        nvml.write()
        after = gpus.host()
        for uuid, used in (("GPU-a", 600), ("GPU-b", 10), ("MIG-1", 100)):
            assert after[f"gpu:{uuid}", "used_bytes"] == used
        fast = {key for key in before if key[1] in ("used_bytes", "total_bytes")}
        assert fast <= after.keys()
        assert gpus.run(10)["gpu:GPU-a/tree", "used_bytes"] == 5
    assert gpus.collector.probe.restarts == 0
    assert set(gpus.collector.states.values()) == {"ok"}


def test_fewer_gpus_in_another_order_keep_their_names(gpus, nvml):
    """After a reset number 0 is another device."""
    gpus.host()
    nvml.gpus = [nvml.gpus[1], FakeGpu(uuid="GPU-c", used=7)]
    nvml.write()
    found = gpus.host()
    assert found["gpu:GPU-b", "used_bytes"] == 10
    gpus.host()
    nvml.gpus.append(FakeGpu(uuid="GPU-d", used=8))
    nvml.write()
    found = gpus.host()
    assert found["gpu:GPU-c", "used_bytes"] == 7
    assert found["gpu:GPU-d", "used_bytes"] == 8
    assert gpus.collector.states["GPU-a"] == "lost"


def test_mig_may_be_switched_on_and_off_while_it_runs(gpus, nvml):
    """Parts have their own memory and processes; what the parent has no number for is a gap."""
    gpus.host()
    nvml.gpus[0].fields["mig"] = 1
    nvml.gpus[0].mig = [
        FakeGpu(uuid="MIG-1", used=100, total=500, fields={"gi": 1, "ci": 0}, compute={10: 60}),
        FakeGpu(uuid="MIG-2", used=0, total=500, fields={"gi": 2, "ci": 0}),
    ]
    nvml.write()
    found = gpus.host()
    assert found["gpu:MIG-1", "used_bytes"] == 100
    assert gpus.gaps()["gpu:MIG-2", "utilization_percent"] == "not-supported"
    assert gpus.run(10)["gpu:MIG-1/tree", "used_bytes"] == 60
    nvml.gpus[0].fields["mig"] = 0
    nvml.gpus[0].mig = []
    nvml.write()
    assert {e for e, _ in gpus.host()} == {"gpu:GPU-a", "gpu:GPU-b"}


@pytest.mark.parametrize("code", [31, 48, 79, 94, 119])
def test_an_xid_is_told_once_with_its_time(gpus, nvml, code):
    """Also when the handles were taken anew in between; the device goes on."""
    gpus.host()
    before = time.time_ns()
    nvml.xid("GPU-a", code)
    found = [item for item in gpus.everything() if isinstance(item, Event)]
    assert [(e.entity, e.kind, e.code) for e in found] == [("gpu:GPU-a", "gpu.xid", code)]
    assert before <= found[0].t_ns <= time.time_ns()
    nvml.generation = 1
    nvml.write()
    assert gpus.events() == gpus.events() == []
    nvml.ecc("GPU-b")
    assert gpus.events() == [("gpu:GPU-b", "gpu.ecc_double", 0)]


def test_an_error_leaves_no_state_behind_once_the_device_is_back(gpus, nvml):
    """XID 79: it fell off the bus; told once, and after a reset it is as any other."""
    before = gpus.host()
    nvml.faults = [Fault(function="*", uuid="GPU-a", error=15)]
    nvml.xid("GPU-a", 79)
    told = gpus.events()
    assert ("gpu:GPU-a", "gpu.state", STATES.index("lost")) in told
    assert gpus.collector.states["GPU-a"] == "lost"
    nvml.faults = []
    nvml.generation = 1
    nvml.write()
    told += gpus.events()
    assert told[-1] == ("gpu:GPU-a", "gpu.state", 0)
    assert gpus.events() == []
    assert gpus.collector.states["GPU-a"] == "ok"
    for key, value in gpus.host().items():
        assert before[key] == value
    assert "xid" not in str(gpus.gaps())


def test_an_event_set_that_is_lost_is_made_anew(gpus, nvml):
    """What happens afterwards is told."""
    gpus.host()
    nvml.faults = [Fault(function="nvmlEventSetWait_v2", error=999)]
    nvml.write()
    assert gpus.events() == []
    nvml.faults = []
    nvml.write()
    gpus.host()
    nvml.xid("GPU-a", 31)
    assert gpus.events() == [("gpu:GPU-a", "gpu.xid", 31)]


@pytest.mark.parametrize(("code", "word"), [(12, "Not Found"), (18, "mismatch"), (999, "Unknown")])
def test_a_driver_that_does_not_start_is_said_once_and_tried_again(
    gpus, nvml, code, word, caplog, monkeypatch
):
    """No library, another version after an upgrade, "unknown error" in a container."""
    monkeypatch.setattr("memplan_daemon.collectors.gpu.FIRST_RETRY_S", 0.0)
    gpus.collector._retry_s = 0.0
    nvml.init = code
    nvml.write()
    with caplog.at_level("INFO", "memplan.daemon"):
        for _ in range(3):
            assert gpus.host() == {}
    assert len(caplog.records) == 1
    assert word in gpus.collector.problem
    nvml.init = 0
    nvml.write()
    assert gpus.host()["gpu:GPU-a", "used_bytes"] == 600
    assert gpus.collector.problem == ""


def test_the_pause_between_tries_grows(nvml):
    """5 s, 10 s, ... at most 5 minutes: a probe is not started in every tick."""
    nvml.init = 9
    nvml.write()
    made = Gpus()
    made.host()
    restarts = made.collector.probe.restarts
    for _ in range(5):
        made.host()
    assert made.collector.probe.restarts == restarts
    assert made.collector._retry_s == 10.0
    made.collector.close()


def test_without_a_library_no_probe_is_started(monkeypatch):
    """Most machines have none."""
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    if nvidia_problem() == "":
        pytest.skip("this machine has the library")
    collector = GpuCollector(SystemClock())
    assert list(collector.collect(Watch(run_id=None, pid=None))) == []
    assert collector.probe.pid is None
    assert "libnvidia-ml" in collector.problem


@pytest.fixture
def hasty(gpus, monkeypatch):
    """Late after a quarter of a second, thrown away after a whole one; a tick waits a twentieth."""
    monkeypatch.setattr(child, "LATE_S", 0.25)
    monkeypatch.setattr(child, "DEADLINE_S", 1.0)
    gpus.host()
    gpus.collector._wait_s = 0.05
    return gpus


def ticking(gpus, condition, seconds):
    """Tick ten times a second until a condition holds; return how long it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds, "it took too long"
        started = time.monotonic()
        gpus.host()
        assert time.monotonic() - started < 0.4, "a tick must not wait for a driver"
        time.sleep(0.1)
    return time.monotonic() - begin


def state_is(gpus, state):
    return lambda: gpus.collector.states["GPU-a"] == state


@pytest.mark.parametrize("how", ["hang", "stop", "kill"])
def test_a_driver_that_does_not_answer_makes_gpus_late_and_leaves_no_probe_behind(hasty, nvml, how):
    """A call that never ends, a probe that was stopped, one that was killed."""
    first = hasty.collector.probe.pid
    if how == "hang":
        nvml.faults = [Fault(function="nvmlDeviceGetMemoryInfo_v2", sleep_ms=3_600_000)]
        nvml.write()
    else:
        os.kill(first, signal.SIGSTOP if how == "stop" else signal.SIGKILL)
    if how != "kill":
        assert ticking(hasty, state_is(hasty, "late"), 3.0) > 0.2
        assert hasty.collector.probe.pid == first
        assert {item.state for item in hasty.everything() if isinstance(item, Gap)} == {"late"}
    nvml.faults = []
    nvml.write()
    ticking(hasty, lambda: hasty.collector.probe.restarts and state_is(hasty, "ok")(), 5.0)
    assert hasty.collector.probe.pid != first
    assert hasty.collector.probe.abandoned == 0
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_a_driver_that_stays_stuck_does_not_collect_probes(hasty, nvml, monkeypatch):
    """A child that SIGKILL does not end is left alone; after three no other is started."""
    monkeypatch.setattr(child, "FIRST_RETRY_S", 0.0)
    monkeypatch.setattr("subprocess.Popen.poll", lambda self: None)
    for _ in range(10):
        hasty.collector.probe.stop(pause_s=0)
        hasty.host()
    assert hasty.collector.probe.abandoned == child.MOST_ABANDONED
    monkeypatch.undo()
    hasty.collector.probe._reap()
    time.sleep(0.2)
    hasty.host()
    assert hasty.collector.probe.abandoned == 0


def test_after_a_slow_start_readings_are_of_their_own_tick(gpus, nvml):
    """The first answer comes a tick late; the next ones do not, and no group was left out."""
    gpus.collector._wait_s = 0.0001
    ticking(gpus, lambda: gpus.collector.states, 30)
    gpus.collector._wait_s = 5.0
    for used in (5, 6, 7):
        nvml.gpus[0].used = used
        nvml.write()
        assert gpus.host()["gpu:GPU-a", "used_bytes"] == used


@pytest.fixture
def spoken():
    """A probe whose child says what the test writes."""
    ours, theirs = socket.socketpair()
    ours.settimeout(0)
    poll = select.poll()
    poll.register(ours, select.POLLIN)
    probe = child.Probe("nvml", SystemClock())
    probe._child = child._Child(subprocess.Popen(["sleep", "60"]), ours, poll)
    yield probe, theirs
    probe.close()
    theirs.close()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nonsense",
        b"\xff",
        b"{}",
        b"[1]",
        b"[" * 100_000,
        b'{"id": 2, "gpus": [], "took_ns": 1}',
        b'{"id": 1, "gpus": 5, "took_ns": 1}',
        b'{"id": 1, "gpus": [{}], "took_ns": 1}',
        b'{"id": 1, "gpus": [], "took_ns": "x"}',
    ],
)
def test_a_child_that_answers_nonsense_is_thrown_away(spoken, line):
    """The tick goes on without its answer."""
    probe, peer = spoken
    peer.sendall(line + b"\n")
    assert probe.exchange(["fast"], 5.0) is None
    assert (probe.pid, probe.restarts) == (None, 1)


def test_an_answer_that_comes_in_pieces_is_taken_when_it_is_whole(spoken):
    """Without a wait for the rest; what comes after it belongs to the next question."""
    probe, peer = spoken
    line = b'{"id": 1, "gpus": [], "took_ns": 1}\n'
    peer.sendall(line[:10])
    assert probe.exchange(["fast"], 0.01) is None
    peer.sendall(line[10:] + line.replace(b"1", b"2", 1))
    assert probe.exchange(["fast"], 5.0)["id"] == 1
    assert probe.exchange(["fast"], 5.0)["id"] == 2
    assert probe.restarts == 0


def test_amd_devices_are_read_by_their_own_library(tmp_path, monkeypatch):
    """A stand-in for ROCm's module: bytes, watts, and "N/A" as a gap."""
    (tmp_path / "amdsmi.py").write_text(AMDSMI)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = Gpus(backend="amd")
    found = made.host()
    assert found == {
        ("gpu:AMD-u1", "total_bytes"): 1000,
        ("gpu:AMD-u1", "used_bytes"): 400,
        ("gpu:AMD-u1", "free_bytes"): 600,
        ("gpu:AMD-u1", "utilization_percent"): 12,
        ("gpu:AMD-u1", "power_milliwatts"): 90_000,
    }
    assert made.gaps()["gpu:AMD-u1", "temperature_celsius"] == "not-supported"
    assert made.run(10)["gpu:AMD-u1/tree", "used_bytes"] == 300
    made.collector.close()


AMDSMI = """
class AmdSmiException(Exception): pass
class AmdSmiLibraryException(AmdSmiException):
    def __init__(self, code):
        super().__init__(f"code {code}")
        self.err_code = code
class AmdSmiMemoryType: VRAM = 0
class AmdSmiTemperatureType: HOTSPOT = 1
class AmdSmiTemperatureMetric: CURRENT = 0
def amdsmi_init(): pass
def amdsmi_get_processor_handles(): return ["h"]
def amdsmi_get_gpu_asic_info(handle): return {"market_name": "Fake MI300X"}
def amdsmi_get_gpu_device_uuid(handle): return "u1"
def amdsmi_get_gpu_memory_total(handle, kind): return 1000
def amdsmi_get_gpu_memory_usage(handle, kind): return 400
def amdsmi_get_gpu_activity(handle): return {"gfx_activity": 12}
def amdsmi_get_power_info(handle):
    return {"current_socket_power": "N/A", "average_socket_power": 90}
def amdsmi_get_temp_metric(handle, kind, metric): raise AmdSmiLibraryException(2)
def amdsmi_get_gpu_process_list(handle):
    return [{"name": "x", "pid": 10, "memory_usage": {"vram_mem": 300}}]
"""


class Wire:
    """Both ends and the line between them; holds each answer against what went in."""

    def __init__(self):
        self.told, self.heard, self.lists = Told(), Heard(), {}

    def carry(self, *devices, question="fast"):
        """One answer through JSON; returns what came out, and the line.

        A device's processes are given as a dict; their list is kept, as a backend keeps it.
        """
        listed = []
        for device in devices:
            listing = None
            if device.processes is not None:
                listing = self.lists.setdefault(device.uuid, Listing())
                listing.replace(dict(device.processes))
            listed.append(replace(device, processes=listing))
        line = json.dumps(self.told.news(question, listed))
        found = self.heard.whole(question, json.loads(line))
        names = Device.__slots__
        assert found == [{name: getattr(device, name) for name in names} for device in devices]
        return found, line


@pytest.fixture
def wire():
    return Wire()


def device(uuid="GPU-a", processes=None, **values):
    return Device(uuid=uuid, name="x", values=values, processes=processes)


def test_an_answer_holds_only_what_is_new_and_is_made_whole_again(wire):
    """Through JSON, as it goes over the socket; other devices are told in full."""
    one = Device(uuid="GPU-a", name="x", values={"used_bytes": 1}, processes={1: 5, 2: None})
    two = Device(uuid="GPU-b", name="y", missing={"power_milliwatts": "not-supported"})
    moved, lost = replace(one, values={"used_bytes": 2}), replace(two, state="lost")
    states = [[one, two], [one, two], [moved, two], [two, moved], [moved], [], [moved], [two, one]]
    sizes = [len(wire.carry(*devices)[1]) for devices in states]
    assert sizes[1] < 10 < sizes[2] < 40 < sizes[3] < sizes[0] > sizes[7]
    assert wire.carry(lost, one)[1] == '[{"state": "lost"}, {}]'


def test_another_question_that_finds_no_devices_leaves_nothing_half_known(wire):
    """The next answer has whole lists again."""
    wire.carry(device(processes={1: 5}))
    wire.carry(question="rare")
    wire.carry(device(processes={1: 5}))
    wire.carry(device(processes={1: 6}))


def test_a_number_that_is_none_of_64_bits_is_a_gap():
    """A driver's nonsense is not stored."""
    found = device()
    for metric, value in (("a", 2**63), ("b", -1), ("c", None), ("d", 2**63 - 1)):
        found.take(metric, value)
    assert (found.values, found.missing) == (
        {"b": -1, "d": 2**63 - 1},
        {"a": "failed", "c": "not-supported"},
    )


def test_of_its_processes_what_changed_and_what_is_gone_is_told(wire):
    """The number of those that rest does not count."""
    many = dict.fromkeys(range(1000, 1200), 2**28)
    wire.carry(device(processes=many))
    assert wire.carry(device(processes=dict(many)))[1] == "[{}]"
    found, line = wire.carry(device(processes={**many, 1005: 7, 9: None}))
    assert line == '[{"changes": [[1005, 7], [9, null]]}]'
    assert wire.carry(device(processes={**many, 1005: 7}))[1] == '[{"changes": [9]}]'
    assert found[0]["processes"][9] is None  # what was handed out stays as it was


@pytest.mark.parametrize("before", [None, {}, {1: 5, 2: None}])
@pytest.mark.parametrize("after", [None, {}, {1: 5, 2: None}])
def test_a_list_of_processes_comes_and_goes(wire, before, after):
    """None is no list, and another thing than an empty one."""
    for processes in (before, after, before, after):
        found, _ = wire.carry(device(processes=processes))
        assert found[0]["processes"] == processes


def test_a_list_of_processes_is_the_same_object_while_nothing_in_it_changed(wire):
    """Whatever else did, whatever was asked, and in a GPU that came beside it; else another."""
    first = wire.carry(device(processes={1: 5}))[0][0]
    again = wire.carry(device(processes={1: 5}))[0][0]
    other = wire.carry(device(processes={1: 5}, used_bytes=3), question="slow")[0][0]
    beside = wire.carry(device("GPU-b"), device(processes={1: 5}))[0][1]
    assert first is again
    assert first["processes"] is other["processes"] is beside["processes"]
    moved = wire.carry(device("GPU-b"), device(processes={1: 6}), question="slow")[0][1]
    later = wire.carry(device("GPU-b"), device(processes={1: 6}))[0][1]
    assert first["processes"] == {1: 5}
    assert moved["processes"] is later["processes"]


def test_a_gpu_that_was_away_begins_with_its_whole_list(wire):
    """Also when only one of the questions was answered without it."""
    a, b = device("GPU-a", {1: 5}), device("GPU-b", {2: 6})
    for question in ("fast", "slow"):
        wire.carry(a, b, question=question)
    wire.carry(a)
    wire.carry(a, b, question="slow")
    wire.carry(b, a)
    wire.carry(question="slow")
    _, line = wire.carry(b, a)
    assert line == '[{"processes": [[2, 6]]}, {"processes": [[1, 5]]}]'


@pytest.mark.parametrize("seed", range(20))
def test_any_lists_in_any_order_arrive_as_they_are(wire, seed):
    """Devices come, go and change places, lists too; two questions take turns as they like."""
    chance = random.Random(seed)
    lists = {f"GPU-{n}": {} for n in range(4)}
    here, before = list(lists), {}
    for _ in range(200):
        if chance.random() < 0.1:
            here = chance.sample(list(lists), chance.randrange(5))
        for uuid in chance.sample(list(lists), 2):
            processes = dict(lists[uuid] or {})
            for pid in chance.sample(range(12), chance.randrange(4)):
                processes[pid] = chance.choice([None, 0, 2**40, 2**64 - 2])
            for pid in chance.sample(range(12), chance.randrange(4)):
                processes.pop(pid, None)
            lists[uuid] = None if chance.random() < 0.1 else processes
        devices = [device(uuid, lists[uuid], used=chance.randrange(2)) for uuid in here]
        found, _ = wire.carry(*devices, question=chance.choice(["fast", "slow"]))
        after = {entry["uuid"]: entry["processes"] for entry in found}
        for uuid in before.keys() & after.keys():
            assert (after[uuid] is before[uuid]) == (after[uuid] == before[uuid])
        before = after


@pytest.mark.parametrize(
    "line",
    [
        "[{}]",
        "[1]",
        "[{}, {}, {}]",
        "[[]]",
        '[{"uuid": "GPU-a"}]',
        '[{}, {"changes": [7]}]',
        '[{}, {"changes": [[7]]}]',
        '[{"changes": [[7, 1]]}, {}]',
        '[{}, {"processes": 7}]',
        '[{}, {"processes": [7]}]',
    ],
)
def test_news_of_other_devices_than_those_that_are_known_are_refused(wire, line):
    """The child is then thrown away and another one begins anew."""
    wire.carry(device("GPU-a"), device("GPU-b", {1: 5}))
    with pytest.raises((KeyError, TypeError, ValueError)):
        wire.heard.whole("fast", json.loads(line))
    with pytest.raises((KeyError, TypeError, ValueError)):
        Heard().whole("fast", json.loads(line))
