"""Floods, reuse, endurance: what a daemon meets that nobody planned. `make faults` runs all."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from memplan_daemon.budget import MOST, CpuBudget
from memplan_daemon.clock import SystemClock
from memplan_daemon.collectors.base import Reading, Watch
from memplan_daemon.collectors.cgroup import CgroupCollector
from memplan_daemon.collectors.host import HostCollector
from memplan_daemon.collectors.process import ProcessCollector
from memplan_daemon.daemon import SCAN_S, SCAN_SHARE
from memplan_daemon.lifecycle import daemon_status
from memplan_daemon.proc import ProcFolder, raise_descriptor_limit
from memplan_daemon.sampler import Sampler
from memplan_daemon.server import MAX_CONNECTIONS_EACH
from memplan_daemon.tree import Group, ProcessTable, Tree

from memplan.errors import DaemonError
from memplan.store.remote import DaemonClient, encode_frame, socket_path
from memplan.testing import ManualClock


def tracked(proc, *pids):
    group = Group(proc)
    group.wanted = set(pids)
    group.update(ProcessTable(proc, ManualClock()))
    return group


def test_two_processes_of_one_number_in_one_tick_are_two_identities():
    """The number is forced to be used again at once; nothing of the second is the first's."""
    last = Path("/proc/sys/kernel/ns_last_pid")
    if not os.access(last, os.W_OK):
        pytest.skip("ns_last_pid cannot be written here")
    hits = same_start = 0
    for _ in range(400):
        first = subprocess.Popen(["sleep", "60"])
        group = tracked(ProcFolder(), first.pid)
        held = group.members[first.pid]
        known = ProcFolder().stats()
        first.kill()
        first.wait()
        last.write_text(str(first.pid - 1))
        second = subprocess.Popen(["sleep", "60"])
        try:
            if second.pid != first.pid:
                continue
            assert held.status() is None
            assert held.stat() is None
            group.update(ProcessTable(ProcFolder(), ManualClock()))
            other = group.members[second.pid]
            assert other.label == f"{second.pid}#2"
            assert other.status() is not None
            assert ProcFolder().stats(known)[second.pid].inode != known[first.pid].inode
            hits += 1
            same_start += other.identity.start_ticks == held.identity.start_ticks
            if held.identity.inode is not None:  # since Linux 6.9
                assert other.identity != held.identity
            if hits == 20:
                break
        finally:
            second.kill()
            second.wait()
            group.close()
    if not hits:
        pytest.skip("other processes took the number each time")
    assert hits == 20
    assert same_start, "not in one tick of the kernel's clock: then it was no trial"


SPAWN = """
import os, sys, time
input()
begin = time.monotonic()
for number in range(900):
    if (pid := os.fork()) == 0:
        time.sleep(0.05)
        os._exit(0)
    print(pid)
    if number >= 50:
        os.wait()
print(900 / (time.monotonic() - begin))
"""


def test_processes_that_come_and_go_cause_no_error_and_no_wrong_attribution(writer, until):
    """Hundreds, at more than 10,000 a minute, in a watched tree, and as many beside it.

    Each that was seen is a child of the tree, and has one final row; the tree's file descriptors
    are given back.
    """
    clock = SystemClock()
    sampler = Sampler(
        clock=clock,
        collectors=[ProcessCollector(clock)],
        writer=writer,
        interval_s=0.01,
        table=ProcessTable(ProcFolder(), clock, share=1),
    )
    files = len(list(Path("/proc/self/fd").iterdir()))
    ours, others = (
        subprocess.Popen(
            [sys.executable, "-c", SPAWN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    )
    sampler.watch(ours.pid, "r-1")
    sampler.tick()
    said = []
    reader = threading.Thread(target=lambda: said.append(ours.communicate("\n")[0]))
    reader.start()
    drain = threading.Thread(target=others.communicate, args=("\n",))
    drain.start()
    while reader.is_alive():
        sampler.tick()
        time.sleep(0.002)
    until(lambda: sampler.tick() or sampler.watched == {})  # a listing may be some ticks away
    drain.join()
    *pids, rate = said[0].split()
    assert float(rate) * 60 > 10_000
    assert not sampler._failing
    family = {str(ours.pid), *pids}
    seen, final = set(), []
    for found in writer.samples:
        name = found.series.entity.removeprefix("process:")
        if found.series.entity == "tree":
            continue
        assert name.partition("#")[0] in family, "a stranger was taken in"
        seen.add(name)
        if found.series.metric == "final_rss_bytes":
            final.append(name)
    assert len(seen) > 3
    assert sorted(final) == sorted(seen), "each that was seen has one final row"
    sampler.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == files


def test_status_is_read_of_processes_whose_memory_map_is_not_ours(tmp_path):
    """As user nobody: RSS by kind and the mark are there, PSS is a gap with its reason."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    code = (
        "import os, json, sys\n"
        "from memplan_daemon.collectors.base import Watch\n"
        "from memplan_daemon.collectors.process import ProcessCollector\n"
        "from memplan_daemon.proc import ProcFolder\n"
        "from memplan_daemon.clock import SystemClock\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "pid = int(sys.argv[1]); held = ProcFolder().open(pid)\n"
        "watch = Watch(run_id='r', pid=pid, members={pid: held})\n"
        "assert held.read('environ') is held.read('io') is None\n"
        "found = list(ProcessCollector(SystemClock()).collect(watch))\n"
        "print(json.dumps({i.metric: getattr(i, 'state', '') for i in found}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(os.getpid())], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rss_anon_bytes"] == found["hwm_bytes"] == ""
    assert found["pss_bytes"] == "no-permission"
    assert "uss_bytes" not in found


def test_without_descriptors_it_samples_on(proc, writer):
    """At the limit of open files processes are read by path; nothing is raised."""
    for pid in range(100, 160):
        proc.add(pid, rss=1)
    clock = ManualClock()
    sampler = Sampler(
        clock=clock,
        collectors=[ProcessCollector(clock)],
        writer=writer,
        interval_s=1.0,
        proc=proc.folder,
    )
    group = Group(proc.folder)
    group.wanted = set(range(100, 160))
    sampler.watch_group("r-1", group)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40, hard))
    try:
        for _ in range(3):
            sampler.tick()
            clock.advance(1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert writer.values("tree", "processes_count") == [60]
    assert writer.values("tree", "rss_bytes") == [60 * 1024] * 3
    assert raise_descriptor_limit() >= soft
    sampler.close()


def test_a_clock_that_jumps_makes_neither_gaps_nor_negative_rates(writer, proc):
    """Back an hour, on a day, slewed: cadence and pace follow the other clock."""
    clock = ManualClock()
    proc.write("meminfo", "MemTotal: 10 kB\nMemAvailable: 5 kB\n")
    sampler = Sampler(
        clock=clock,
        collectors=[HostCollector(proc.folder, Path("/dev/null"))],
        writer=writer,
        interval_s=1.0,
        host_interval_s=1.0,
        proc=proc.folder,
    )
    budget = sampler.budget = CpuBudget(clock, clock.monotonic_ns, 0.0)
    for jump in (0, -3600, 86400, 0.001, -0.001, *[0] * 12):
        clock.jump_wall(jump)
        sampler.tick()
        clock.advance(1)
    assert len(writer.values("host", "used_bytes")) == 17
    assert sampler.counts.late_ticks == 0
    assert sampler.counts.lateness_ns == 0
    assert budget.share == 1.0
    moved = [event for saved in writer.saved for event in saved]
    assert [(event.kind, event.data["code"]) for event in moved] == [
        ("host.clock", "-3600"),
        ("host.clock", "86400"),
    ]
    assert moved[0].message.startswith("the wall clock moved by -3600.0 s")


def test_a_clock_that_is_slewed_is_told_when_it_is_a_second_off(writer):
    """A tenth of a second in each tick; and a machine that slept an hour."""
    clock = ManualClock()
    sampler = Sampler(clock=clock, collectors=(), writer=writer, interval_s=1.0)
    for jump in (*[0.1] * 21, 3600):
        sampler.tick()
        clock.advance(1)
        clock.jump_wall(jump)
    sampler.tick()
    codes = [event.data["code"] for saved in writer.saved for event in saved]
    assert codes == ["1", "1", "3600"]


HIDDEN = """
import os, sys
from pathlib import Path
from memplan_daemon.collectors.base import Watch
from memplan_daemon.collectors.process import ProcessCollector
from memplan_daemon.clock import SystemClock
from memplan_daemon.proc import ProcFolder
folder, hidden = ProcFolder(Path(sys.argv[1])), int(sys.argv[2])
before = folder.open(hidden)
os.setgroups([])
os.setgid(65534)  # the mount's own exception is group 0
os.setuid(65534)
assert hidden not in folder.stats()
assert os.getpid() in folder.stats()
assert folder.open(hidden) is None
held = {hidden: before, os.getpid(): folder.open(os.getpid())}
watch = Watch(run_id="r", pid=os.getpid(), members=held)
entities = {item.entity for item in ProcessCollector(SystemClock()).collect(watch)}
assert f"process:{os.getpid()}" in entities
assert f"process:{hidden}" not in entities, "what cannot be read is no number"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_processes_that_hidepid_hides_are_not_there_and_harm_no_other():
    """A /proc of its own mount option, read as nobody."""
    with tempfile.TemporaryDirectory(prefix="mp-13-") as name:
        Path(name).chmod(0o755)
        mount = ["mount", "-t", "proc", "-o", "hidepid=2", "proc", name]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting is not allowed here")
        try:
            done = subprocess.run(
                [sys.executable, "-c", HIDDEN, name, str(os.getpid())],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
        finally:
            subprocess.run(["umount", "-l", name], check=True)


@pytest.mark.faults
def test_an_hour_of_ticks_leaves_descriptors_and_memory_flat(writer, tmp_path):
    """3,600 of them: a real /proc, and processes that are replaced all the time."""
    clock = ManualClock()
    proc = ProcFolder()
    collectors = [HostCollector(proc), ProcessCollector(clock), CgroupCollector(proc)]
    sampler = Sampler(
        clock=clock,
        collectors=collectors,
        writer=writer,
        interval_s=1.0,
        host_interval_s=1.0,
        proc=proc,
        table=ProcessTable(proc, clock, share=SCAN_SHARE, shortest_s=SCAN_S),
    )
    group = Group(proc)
    sampler.watch_group("r-1", group)
    children = [subprocess.Popen(["sleep", "600"]) for _ in range(10)]
    sizes = []
    try:
        for tick in range(3600):
            if tick % 10 == 0:
                old = children.pop(0)
                old.kill()
                old.wait()
                children.append(subprocess.Popen(["sleep", "600"]))
            group.wanted = {child.pid for child in children}
            sampler.tick()
            writer.batches.clear()
            clock.advance(1)
            if tick in (600, 3599):
                gc.collect()
                sizes.append((len(list(Path("/proc/self/fd").iterdir())), rss()))
    finally:
        for child in children:
            child.kill()
            child.wait()
        sampler.close()
    (files, memory), (files_after, memory_after) = sizes
    assert files_after <= files + 2
    assert memory_after <= memory + 2 * 2**20
    assert not sampler._failing


def rss():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


@pytest.mark.faults
def test_ten_thousand_processes_and_sixty_four_gpus_fit_into_bounds(proc, writer, nvml):
    """A listing of all, sixty-four in series, one answer for all GPUs, 500 agents' numbers.

    What a tick costs here is real, and the seconds between are not: intervals are stretched until
    the cost is within the budget, or as far as they may be; how late a tick was is told.
    """
    from memplan_daemon.collectors.gpu import GpuCollector

    from memplan.testing import FakeGpu

    for pid in range(100, 10_100):
        proc.add(pid, rss=pid, name="crowd")
    nvml.gpus = [FakeGpu(uuid=f"GPU-{i}", compute={100 + i: 5}) for i in range(64)]
    nvml.write()
    clock = ManualClock()
    gpus = GpuCollector(SystemClock(), problem=lambda: "", wait_s=20.0)
    sampler = Sampler(
        clock=clock,
        collectors=[ProcessCollector(clock), gpus],
        writer=writer,
        interval_s=1.0,
        host_interval_s=1.0,
        proc=proc.folder,
        table=ProcessTable(proc.folder, clock, shortest_s=5.0),
    )
    table = ProcessTable(proc.folder, clock)
    begin = time.process_time()
    table.refresh()
    assert len(table.stats) == 10_000
    assert time.process_time() - begin < 3.0, "0.15 s on an idle machine"
    group = Group(proc.folder)
    group.wanted = set(range(100, 400))
    sampler.watch_group("r-1", group)
    sampler.tick()
    own = {s.series.entity for s in writer.samples if s.series.entity.count("/") == 0}
    assert len([entity for entity in own if entity.startswith("process:")]) == 64
    assert writer.values("tree", "processes_count") == [300]
    assert len({e for e in own if e.startswith("gpu:")}) == 64

    limit = 0.02
    sampler.budget = CpuBudget(clock, time.process_time_ns, limit)
    numbers = [Reading(f"process:{n}", "heap_used_bytes", n) for n in range(500)]
    for _ in range(100):
        clock.advance(sampler.due_in_s())
        for number in numbers:
            sampler.add("r-1", clock.wall_ns(), [number])
        sampler.tick()
        writer.batches.clear()
        if sampler.budget.stretch == MOST or (sampler.budget.share or 1) <= limit:
            break
    else:
        raise AssertionError("the budget is not held")
    assert sampler.budget.stretch > 1.4
    clock.advance(sampler.due_in_s() + 0.25)
    sampler.tick()
    assert sampler.counts.lateness_ns == 250_000_000
    gpus.close()
    sampler.close()


@pytest.fixture
def flooded(daemons, home, until):
    database = str(home / "memplan.db")
    process = daemons("--interval", "0.1")
    until(lambda: daemon_status(database).running)
    return process, database


@pytest.mark.faults
def test_a_flood_at_the_socket_is_held_off(flooded, until):
    """Ten thousand connections, slow ones, giant announcements, noise: limits hold, it answers.

    No more than a user's share is let in at once, the memory stays, and so does the log.
    """
    process, database = flooded
    path = str(socket_path(database))
    before = memory(process.pid)
    connected = 0
    noise = random.Random(3)
    held = []
    for number in range(10_000):
        one = socket.socket(socket.AF_UNIX)
        try:
            one.connect(path)  # without a time limit: with one, a full queue is an error
            connected += 1
            one.settimeout(5)
            kind = number % 4
            if kind == 0:
                one.sendall(struct.pack(">I", 2**30))
            elif kind == 1:
                one.sendall(noise.randbytes(200))
            elif kind == 2:
                one.sendall(encode_frame({"op": "ping"})[:-1])
        except OSError:
            pass
        if number % 20 == 3 and len(held) < 400:
            held.append(one)
        else:
            one.close()
    assert connected == 10_000
    ours = sum(name.startswith("socket:") for name in descriptors(process.pid))
    assert ours <= MAX_CONNECTIONS_EACH + 10
    assert ours > 100, "they are held, and it holds them"
    for one in held:
        one.close()
    until(lambda: daemon_status(database).running)
    assert process.poll() is None
    assert memory(process.pid) < before + 16 * 2**20
    ticks = daemon_status(database).samples_written
    until(lambda: daemon_status(database).samples_written > ticks)
    process.terminate()
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert len(log.splitlines()) < 15


@pytest.mark.faults
def test_a_flood_at_the_agents_socket_is_held_off(flooded, until):
    """Ten thousand connections with noise, giant packets, another version, and no hello."""
    process, database = flooded
    before = memory(process.pid)
    noise = random.Random(4)
    packets = (b'{"v":99,"kind":"hello"}', b'{"v":1,"kind":"sample"}', b"\xff\xfe", b"")
    for number in range(10_000):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as one:
            one.connect(f"{database}.peer")
            with contextlib.suppress(OSError):
                one.send(packets[number % 4] or noise.randbytes(noise.randrange(1, 60_000)))
    until(lambda: daemon_status(database).running)
    until(lambda: daemon_status(database).agents == ())
    assert memory(process.pid) < before + 16 * 2**20
    process.terminate()
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert len(log.splitlines()) < 15


def descriptors(pid):
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(link.readlink()))
    return found


def memory(pid):
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) * 1024


STEPS = """
import sys, time
from memplan import measure
measure.attach(0.01)
sizes, phases, end = [], [], time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    begin = time.perf_counter()
    measure.workload(step=1)
    sizes.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    with measure.track("step"):
        pass
    phases.append(time.perf_counter() - begin)
    time.sleep(0.005)
for took in (sizes, phases):
    took.sort()
    print(took[len(took) // 2], took[len(took) * 98 // 100], took[-1])
print(len(sizes))
"""


@pytest.mark.parametrize(
    "what", ["stalled", "killed", pytest.param("long", marks=pytest.mark.faults)]
)
def test_an_agent_survives_a_daemon_that_stalls_or_dies(flooded, daemons, until, what):
    """By the clock on the wall no step waits for the daemon, which is gone for seconds.

    It is stopped (for 30 seconds, with make faults) or killed and started anew; its agent finds
    it. What a phase costs is its own reading of /proc: a third of a millisecond.
    """
    process, database = flooded
    seconds = {"stalled": 3, "killed": 3, "long": 30}[what]
    environment = {**os.environ, "MEMPLAN_SOCKET": str(socket_path(database))}
    command = [sys.executable, "-c", STEPS, str(seconds + 3)]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        until(lambda: daemon_status(database).agents)
        if what == "killed":
            process.kill()
            process.wait()
            daemons("--interval", "0.1")
        else:
            process.send_signal(signal.SIGSTOP)
            time.sleep(seconds)
            process.send_signal(signal.SIGCONT)
        until(lambda: daemon_status(database).agents)
    finally:
        text, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    sizes, phases, count = ([float(word) for word in line.split()] for line in text.splitlines())
    assert count[0] > 30 * seconds
    assert sizes[1] < 0.001, "two in a hundred may fall into the time of another program"
    assert phases[0] < 0.002
    assert max(sizes[2], phases[2]) < 0.25


TARGET = """
import mmap, os, sys, time
GIB = 2**30
file = os.memfd_create("x")
os.truncate(file, GIB // 16)
held = [mmap.mmap(file, GIB // 16) for _ in range(int(sys.argv[1]) * 16)]
for one in held:  # each page once: what one file holds counts in every mapping of it
    for at in range(0, GIB // 16, 4096):
        one[at]
print("ready", flush=True)
for line in sys.stdin:
    end, done = time.monotonic() + float(line), 0
    while time.monotonic() < end:
        area = mmap.mmap(-1, 2**20)
        for at in range(0, 2**20, 4096):
            area[at] = 1
        area.close()
        done += 1
    print(done, flush=True)
"""


def looped(target, seconds, meanwhile):
    """Let a target map, touch and unmap memory for some seconds; return how often it could."""
    target.stdin.write(f"{seconds}\n")
    target.stdin.flush()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        meanwhile()
        time.sleep(0.1)
    return int(target.stdout.readline())


@pytest.mark.faults
def test_a_process_of_eight_gibibytes_is_not_stalled_by_being_sampled():
    """Ten times a second; its PSS is never asked for, which would take most of its speed."""
    command = [sys.executable, "-c", TARGET, "8"]
    target = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert target.stdout.readline() == "ready\n"
        member = ProcFolder().open(target.pid)
        tree = Watch(run_id="r", pid=target.pid, members={target.pid: member})
        collector = ProcessCollector(SystemClock(), 0.05)
        found = {r.metric: r.value for r in collector.collect(tree) if isinstance(r, Reading)}
        assert found["rss_bytes"] > 8 * 2**30
        assert "pss_bytes" not in found

        def sample():
            metrics = {item.metric for item in collector.collect(tree)}
            assert "rss_bytes" in metrics
            assert "pss_bytes" not in metrics

        alone, sampled = [], []
        for _ in range(5):  # the best of each: others may be busy here, too
            alone.append(looped(target, 0.5, lambda: None))
            sampled.append(looped(target, 0.5, sample))
        assert max(sampled) > 0.6 * max(alone), "1 % less on an idle machine; a tenth with PSS"
    finally:
        target.kill()
        target.communicate()
        member.close()


def test_the_pss_of_two_hundred_gibibytes_is_not_asked_for(proc):
    """By its size, before anything is read."""
    proc.add(10, rss=200 * 2**20, pss=5)
    held = proc.hold(10)
    collector = ProcessCollector(ManualClock())
    found = collector.collect(Watch(run_id="r", pid=10, members={10: held}))
    metrics = {item.metric: item.value for item in found if isinstance(item, Reading)}
    assert metrics["rss_bytes"] == 200 * 2**30
    assert "pss_bytes" not in metrics


@pytest.mark.faults
def test_a_big_process_is_not_stalled(until):
    """1 GiB: its PSS is read within the budget, and above the bound not at all."""
    code = "b = bytearray(b'x') * 2**30; print(1, flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    child.stdout.readline()
    member = ProcFolder().open(child.pid)
    asked = []
    real = member.read

    class Counting:
        def __init__(self):
            self.pid, self.label, self.uid = member.pid, member.label, 0

        def read(self, name):
            asked.append(name)
            return real(name)

        def status(self):
            return member.status()

    collector = ProcessCollector(SystemClock(), 0.05)
    begin = time.monotonic()
    tick = 0
    while time.monotonic() - begin < 5:
        tick += 1
        watch = Watch(run_id="r", pid=child.pid, members={child.pid: Counting()}, tick=tick)
        found = [item for item in collector.collect(watch) if isinstance(item, Reading)]
        assert found
        time.sleep(0.02)
    child.communicate(b"\n")
    member.close()
    reads = asked.count("smaps_rollup")
    assert reads <= 1 + 0.085 / 0.010, "60 ms saved up and 5 ms a second, 15 ms each"


def test_a_tree_that_is_joined_twice_is_counted_once(proc):
    """Two ranks of one job, one of them the other's child."""
    proc.add(10, rss=1)
    proc.add(11, 10, rss=1)
    tree = Tree(10, proc.folder)
    table = ProcessTable(proc.folder, ManualClock())
    table.refresh()
    tree.update(table)
    tree.join(11)
    tree.join(11)
    assert sorted(tree.members) == [10, 11]
    assert tree.members[11].label == "11"
    tree.close()


def test_a_daemon_that_is_not_there_is_said_at_once(tmp_path):
    """A symlink where the socket should be leads nowhere."""
    (tmp_path / "m.sock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DaemonError), DaemonClient(tmp_path / "m.sock") as client:
        client.status()
