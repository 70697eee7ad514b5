"""The agent: never in the program's way, whatever the daemon does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from memplan import measure
from memplan.measure import agent, oom
from memplan.measure.allocator import Allocators, available
from memplan.measure.link import PacketLink
from memplan.wire import agent_path, decode, encode


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where the daemon would listen."""
    measure.detach()  # another test's agent would still look where that test listened
    monkeypatch.setenv("MEMPLAN_SOCKET", str(tmp_path / "m.sock"))
    yield agent_path(tmp_path / "m.sock")
    measure.detach()


@pytest.fixture
def daemon(place):
    """Something that listens and says nothing by itself."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.settimeout(10)
    listener.bind(str(place))
    listener.listen()
    yield listener
    listener.close()


def packets(peer, count):
    return [decode(peer.recv(65536)) for _ in range(count)]


def test_one_line_attaches_and_samples_come_with_their_lateness(daemon):
    """The hello first: who, which job, which counters there are."""
    measure.attach(0.01)
    peer, _ = daemon.accept()
    hello, *samples = packets(peer, 4)
    assert (hello["kind"], hello["pid"]) == ("hello", os.getpid())
    assert "torch" in hello["available"]
    assert {s["kind"] for s in samples} == {"sample"}
    assert samples[0]["values"]["process"]["hwm_bytes"] > 2**20
    assert all(s["late_ns"] >= 0 for s in samples)
    peer.close()


def test_a_daemon_that_ended_is_found_again_and_the_hello_repeated(daemon, place):
    """What was kept meanwhile arrives."""
    measure.attach(0.01)
    first, _ = daemon.accept()
    packets(first, 2)
    first.close()
    second, _ = daemon.accept()
    assert packets(second, 2)[0]["kind"] == "hello"
    second.close()


def test_without_a_daemon_the_program_does_not_wait(place):
    """A thousand workloads by the clock on the wall, some microseconds each, nothing raised.

    One in a hundred may fall into the time of another program.
    """
    measure.attach(0.01)
    took = []
    for step in range(1000):
        begin = time.perf_counter()
        measure.workload(step=step)
        took.append(time.perf_counter() - begin)
        time.sleep(0.001)
    assert sorted(took)[989] < 0.001
    with measure.track("step"):
        pass
    with measure.quiet():
        pass


def test_a_daemon_that_does_not_read_makes_the_oldest_go(daemon, place):
    """The queue is bounded, and what was dropped is counted."""
    link = PacketLink(str(place.with_suffix(".sock")), encode("hello"))
    for number in range(5000):
        link.put(encode("workload", t_ns=number, values={}))
        link.flush()
    assert link.dropped > 3000
    assert link.flush() is False
    peer, _ = daemon.accept()
    assert decode(peer.recv(65536))["kind"] == "hello"
    peer.close()
    link.close()


def test_a_forked_child_has_no_agent_and_the_parents_goes_on(daemon):
    """A DataLoader's worker: its counters would be counted twice."""
    measure.attach(0.01)
    peer, _ = daemon.accept()
    packets(peer, 2)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if agent._agent is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    packets(peer, 2)
    peer.close()


def test_phases_that_follow_each_other_quickly_are_sent_together(place, monkeypatch):
    """The thread takes the interpreter ten times a second, not twice for each; none is lost."""
    sent = []

    class Link:
        def __init__(self, path):
            del path

        def send(self, phases, *, last=False):
            del last
            sent.append(phases)

    monkeypatch.setattr(agent, "PhaseLink", Link)
    monkeypatch.setenv("MEMPLAN_RUN", "r-1")
    begin = time.monotonic()
    for number in range(100):
        with measure.track(f"step-{number}"):
            pass
        time.sleep(0.002)
    took_s = time.monotonic() - begin
    measure.detach()
    batches = [phases for phases in sent if phases]
    assert len(batches) <= 4 + 2 * took_s / 0.1
    newest = {phase.name: phase for phases in batches for phase in phases}
    assert list(newest) == [f"step-{number}" for number in range(100)]
    assert all(phase.ended_ns is not None for phase in newest.values())
    told = sum(map(len, batches))
    assert told <= 100 + len(batches), "a phase that has ended is not told twice"


def test_a_program_with_an_agent_ends_as_it_would(tmp_path):
    """Its exit code, nothing on its streams, also with a daemon that hangs."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "m.peer"))
        listener.listen()
        program = "from memplan import measure; measure.attach(0.01); print(1); raise SystemExit(7)"
        environment = {**os.environ, "MEMPLAN_SOCKET": str(tmp_path / "m.sock")}
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            env=environment,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout, done.stderr) == (7, "1\n", "")


CPU_BUILD = "not available: this build of torch is for the CPU"


def fake_torch(*, cuda="12.8", hip=None, usable=True, started=True, peak=900, mps=None):
    stats = {
        "allocated_bytes": {"all": {"current": 5, "peak": 7}},
        "reserved_bytes": {"all": {"current": 8, "peak": peak}},
        "num_ooms": 2,
    }
    pool = [
        {
            "device": 0,
            "total_size": 100,
            "allocated_size": 60,
            "blocks": [
                {"address": 1, "size": 60, "state": "active_allocated"},
                {"address": 2, "size": 40, "state": "inactive"},
            ],
        }
    ]
    return SimpleNamespace(
        __version__="2.13.0",
        backends=SimpleNamespace(
            mps=None if mps is None else SimpleNamespace(is_available=lambda: mps)
        ),
        version=SimpleNamespace(cuda=cuda, hip=hip),
        cuda=SimpleNamespace(
            is_available=lambda: usable,
            is_initialized=lambda: started,
            device_count=lambda: 1,
            memory_stats_as_nested_dict=lambda index: stats,
            host_memory_stats_as_nested_dict=lambda: {"active_bytes": {"current": 3}},
            memory_snapshot=lambda: pool,
        ),
        stats=stats,
    )


@pytest.mark.parametrize(
    ("torch", "said"),
    [
        (None, {"torch": "not imported"}),
        (fake_torch(), {"cuda": "yes"}),
        (fake_torch(started=False), {"cuda": "not in use yet"}),
        (fake_torch(usable=False), {"cuda": "not available: no usable device"}),
        (fake_torch(cuda=None), {"cuda": CPU_BUILD, "mps": "not available"}),
        (fake_torch(cuda=None, hip="6.4"), {"cuda": "yes", "hip": "6.4", "mps": "not available"}),
        (fake_torch(cuda=None, mps=True), {"cuda": CPU_BUILD, "mps": "yes"}),
        (fake_torch(cuda=None, mps=False), {"cuda": CPU_BUILD, "mps": "not available"}),
    ],
)
def test_what_has_no_counters_is_said_and_is_no_zero(torch, said):
    """Torch absent; builds for CUDA, ROCm, Apple's MPS and the CPU."""
    found = available(torch)
    assert said.items() <= found.items()


def test_allocator_counters_are_read_and_a_peak_that_was_reset_is_counted(monkeypatch):
    """Ours and torch's names; what this version has not got is left out."""
    torch = fake_torch()
    monkeypatch.setitem(sys.modules, "torch", torch)
    reader = Allocators()
    found = reader.read()
    assert found["cuda:0"] == {
        "allocated_bytes": 5,
        "reserved_bytes": 8,
        "peak_allocated_bytes": 7,
        "peak_reserved_bytes": 900,
        "ooms_count": 2,
    }
    assert found["host"] == {"pinned_allocated_bytes": 3}
    assert reader.peak_resets == 0
    torch.stats["reserved_bytes"]["all"]["peak"] = 8
    reader.read()
    assert reader.peak_resets == 1
    reader.close()


@pytest.mark.models
def test_torch_for_the_cpu_has_no_gpu_counters_and_says_so():
    """The real one."""
    import torch

    if torch.version.cuda is not None or torch.version.hip is not None:
        pytest.skip("this build is for a GPU")
    assert available(torch)["cuda"].startswith("not available")
    reader = Allocators()
    assert set(reader.read()) == {"process"}
    reader.close()


def test_one_bounded_description_is_written_when_memory_runs_out(tmp_path, monkeypatch):
    """Of the first failure; the next ones are told only; old files make room."""
    observers, told = [], []
    torch = fake_torch()
    torch._C = SimpleNamespace(_cuda_attachOutOfMemoryObserver=observers.append)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(oom, "_state", {"watching": False, "written": False})
    folder = tmp_path / "oom"
    folder.mkdir()
    for number in range(20):
        (folder / f"oom-{number}-1.json").write_text("{}")
    assert oom.watch_oom(lambda *what: told.append(what), folder=str(folder))
    assert oom.watch_oom(lambda *what: told.append(what), folder=str(folder))
    (observe,) = observers
    observe(0, 500, 0, 0)
    observe(0, 600, 0, 0)
    assert "could not allocate 500 bytes" in told[0][0]
    assert told[1][1] == ""
    path = Path(told[0][1])
    document = json.loads(path.read_text())
    assert (document["reserved_bytes"], document["largest_free_bytes"]) == (100, 40)
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(list(folder.iterdir())) == oom.MOST_FILES


def test_a_description_lists_no_more_than_a_bound(monkeypatch):
    """The largest blocks; the sums are over all."""
    monkeypatch.setattr(oom, "MOST_BLOCKS", 1)
    document = oom.describe(fake_torch(), 0, 5)
    assert [block["size"] for block in document["blocks"]] == [60]
    assert (document["blocks_left_out"], document["allocated_bytes"]) == (1, 60)


@pytest.mark.models
def test_accelerates_tracker_passes_whole_numbers_on(daemon):
    """What is logged beside the loss is stored beside the memory."""
    tracker = measure.accelerate_tracker()
    tracker.store_init_configuration({"batch": 4, "name": "x"})
    tracker.log({"tokens": 4096, "loss": 0.5}, step=3)
    peer, _ = daemon.accept()
    found = []
    while sum(p["kind"] == "workload" for p in found) < 2:
        found += packets(peer, 1)
    values = [p["values"] for p in found if p["kind"] == "workload"]
    assert values == [{"batch": 4}, {"step": 3, "tokens": 4096}]
    peer.close()


def test_the_agent_is_attached_to_a_program_that_knows_nothing_of_it(home):
    """`memplan run --agent`: its own sitecustomize is run, too, and its numbers are the run's."""
    (home / "sitecustomize.py").write_text("print('mine')")
    program = "import time, sys; time.sleep(1.5); print('inject' in str(sys.path))"
    done = subprocess.run(
        [sys.executable, "-m", "memplan", "run", "--agent", "--", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(home)},
        check=False,
    )
    assert done.stdout == "mine\nmine\nFalse\n", "of memplan itself, then of the program"
    assert "heap_used_bytes" in done.stderr
