"""The agents' socket, with real agents of `memplan.measure` and with broken ones."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from memplan_daemon import agents as module
from memplan_daemon.agents import AgentServer
from memplan_daemon.clock import SystemClock
from memplan_daemon.loop import Loop
from memplan_daemon.runbook import RunBook
from memplan_daemon.sampler import Sampler

from memplan.wire import MAX_PACKET_BYTES, agent_path, encode


class World:
    """A server in a thread of its own, as in a daemon that ticks ten times a second."""

    def __init__(self, folder, writer, **options):
        self.writer = writer
        self.path = agent_path(folder / "m.sock")
        clock = SystemClock()
        self.sampler = Sampler(clock=clock, collectors=(), writer=writer, interval_s=0.05)
        self.loop = Loop(self.sampler)
        self.server = AgentServer(
            path=self.path,
            loop=self.loop,
            clock=clock,
            sampler=self.sampler,
            book=RunBook(writer, clock),
            **options,
        )
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()

    def connect(self, **hello):
        found = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        found.settimeout(10)
        found.connect(str(self.path))
        if hello:
            found.send(encode("hello", **hello))
            found.run_id = json.loads(found.recv(4096))["run"]
        return found

    def close(self):
        self.loop.stop()
        self.thread.join()
        self.server.close()
        self.sampler.close()
        self.loop.close()


class Talker(socket.socket):
    run_id = ""


@pytest.fixture
def world(tmp_path, writer, monkeypatch):
    monkeypatch.setattr(socket, "socket", Talker)
    made = World(tmp_path, writer)
    yield made
    made.close()


def sample(**places):
    return encode("sample", t_ns=5, late_ns=7, values=places)


def test_an_agent_gets_a_run_and_its_numbers_are_stored(world, writer, until):
    """The kernel says who it is; its allocator is the run's."""
    with world.connect(run="", job=None) as agent:
        agent.send(sample(**{"cuda:0": {"allocated_bytes": 3}, "process": {"heap_used_bytes": 4}}))
        until(lambda: writer.values("torch:cuda:0", "allocated_bytes") == [3])
        assert writer.values(f"process:{os.getpid()}", "heap_used_bytes") == [4]
        (about,) = world.server.describe()
        assert (about["pid"], about["run"], about["late_ns"]) == (os.getpid(), agent.run_id, 7)
        assert world.sampler.watched == {agent.run_id: os.getpid()}
    until(lambda: world.sampler.watched == {})
    assert [run.status for run in writer.saved] == ["running", "finished"]


def test_five_hundred_agents_at_once_are_all_heard(world, writer, until):
    """Each with a device of its own; the ticks go on meanwhile."""
    agents = [world.connect(run="", job=None) for _ in range(500)]
    try:
        ticks = world.sampler.counts.ticks
        for number, agent in enumerate(agents):
            agent.send(sample(**{f"cuda:{number}": {"allocated_bytes": number}}))
        until(lambda: all(writer.values(f"torch:cuda:{i}", "allocated_bytes") for i in range(500)))
        assert writer.values("torch:cuda:499", "allocated_bytes") == [499]
        assert len(world.server.describe()) == 500
        assert world.sampler.counts.ticks > ticks
    finally:
        for agent in agents:
            agent.close()
    until(lambda: not world.server.describe())


def test_ranks_of_a_job_share_a_run_and_a_device_has_one_speaker(world, writer, until):
    """The second process on a device is told apart."""
    with (
        world.connect(run="", job="slurm:7.0") as first,
        world.connect(run="", job="slurm:7.0") as two,
    ):
        assert first.run_id == two.run_id
        first.send(sample(**{"cuda:0": {"allocated_bytes": 3}}))
        until(lambda: writer.values("torch:cuda:0", "allocated_bytes"))
        two.send(sample(**{"cuda:1": {"allocated_bytes": 4}, "cuda:0": {"allocated_bytes": 5}}))
        until(lambda: writer.values("torch:cuda:1", "allocated_bytes"))
        entity = f"process:{os.getpid()}/torch:cuda:0"
        assert writer.values(entity, "allocated_bytes") == [5]
    until(lambda: len(writer.saved) == 2)


def test_workload_events_and_quiet(world, writer, until):
    """What is worked on is stored; an event once; a critical phase is respected while it lasts."""
    with world.connect(run="", job=None) as agent:
        agent.send(encode("workload", t_ns=5, values={"tokens": 4096}))
        agent.send(encode("event", t_ns=9, what="oom", text="could not allocate", file="x"))
        agent.send(encode("quiet", on=True))
        until(lambda: world.sampler.quiet == {agent.run_id})
        until(lambda: writer.values("workload", "tokens_count") == [4096])
        until(lambda: any(isinstance(saved, list) for saved in writer.saved))
        (event,) = next(saved for saved in writer.saved if isinstance(saved, list))
        assert (event.kind, event.t_ns, event.run_id) == ("agent.oom", 9, agent.run_id)
        agent.send(encode("quiet", on=False))
        until(lambda: world.sampler.quiet == set())
        agent.send(encode("quiet", on=True))
    until(lambda: world.sampler.quiet == set(), 10)


@pytest.mark.parametrize(
    "packet",
    [
        b"x",
        b"\xff\xfe",
        b"[" * 5000,
        b"null",
        b"{}",
        b'{"v":2,"kind":"sample"}',
        b'{"v":1,"kind":"erase"}',
        encode("sample", values=5),
        encode("sample", values={"cuda:0": 5}, t_ns=1),
        encode("sample", values={"cuda:0": {"a b": 5}}, t_ns=1),
        encode("sample", values={"cuda:0": {"a": -1}}, t_ns=1),
        encode("sample", values={"cuda:0": {"a": True}}, t_ns=1),
        encode("sample", values={"cuda:0": {"a": 2**63}}, t_ns=1),
        encode("sample", values={"../x": {"a": 1}}, t_ns=1),
        encode("sample", values={"cuda:0": {"a": 1}}),
        encode("workload", values=[], t_ns=1),
        encode("event", what="a b", t_ns=1),
        b"y" * (MAX_PACKET_BYTES + 1),
    ],
)
def test_a_packet_that_makes_no_sense_cuts_its_agent_off_and_harms_no_other(world, packet):
    """Nothing is stored, the next one is served."""
    with world.connect(run="", job=None) as broken:
        broken.send(packet)
        assert broken.recv(10) == b""
    with world.connect(run="", job=None) as good:
        assert good.run_id
    assert world.thread.is_alive()


def test_a_sample_before_the_hello_is_refused(world):
    """Nobody knows whose it would be."""
    with world.connect() as rude:
        rude.send(sample())
        assert rude.recv(10) == b""


def test_a_run_of_another_user_is_no_agents(tmp_path, proc, writer, monkeypatch):
    """Who names it must own its processes, unless it is the daemon's own user, or root."""
    monkeypatch.setattr(socket, "socket", Talker)
    proc.add(4711, rss=1, uid=1001)
    world = World(tmp_path, writer)
    world.sampler._proc = proc.folder
    world.sampler.watch(4711, "r-theirs")
    try:
        monkeypatch.setattr(
            module, "peer_of", lambda _: SimpleNamespace(pid=5, uid=1000, is_owner=False)
        )
        world.server._gid = 1
        with world.connect() as stranger:
            stranger.send(encode("hello", run="r-theirs", job=None))
            assert stranger.recv(10) == b""
        monkeypatch.setattr(
            module, "peer_of", lambda _: SimpleNamespace(pid=5, uid=1001, is_owner=False)
        )
        with world.connect(run="r-theirs", job=None) as own:
            assert own.run_id == "r-theirs"
    finally:
        world.close()


def test_random_packets_do_no_harm_and_do_not_grow_the_memory(world):
    """A hundred connections of noise, one complaint in the log."""
    noise = random.Random(7)
    for _ in range(100):
        with world.connect() as one:
            one.send(noise.randbytes(noise.randrange(1, 2000)))
    with world.connect(run="", job=None) as good:
        assert good.run_id
    assert len(world.server._agents) <= 2


def test_an_agent_that_floods_is_thinned_out(world, writer, monkeypatch, until):
    """What is beyond a bound in one tick is dropped and counted; the sampler goes on."""
    monkeypatch.setattr(module, "MOST_PACKETS_PER_TICK", 5)
    with world.connect(run="", job=None) as agent:
        packet = sample(**{"cuda:0": {"allocated_bytes": 3}})

        def flood():
            for _ in range(100):
                agent.send(packet)
            return world.server.describe()[0]["dropped"] > 100

        until(flood)
        sent = world.server.describe()[0]["packets"]
        ticks = world.sampler.counts.ticks
        assert len(writer.values("torch:cuda:0", "allocated_bytes")) <= 5 * ticks < sent
    before = world.sampler.counts.ticks
    until(lambda: world.sampler.counts.ticks > before + 2)


def test_a_run_without_a_daemon_opens_no_others(tmp_path, writer, monkeypatch):
    """A `memplan run` has its own run; who does not belong to it is sent away."""
    monkeypatch.setattr(socket, "socket", Talker)
    world = World(tmp_path, writer, open_runs=False)
    try:
        with world.connect() as stranger:
            stranger.send(encode("hello", run="", job=None))
            assert stranger.recv(10) == b""
        with world.connect(run="r-1", job=None) as own:
            assert own.run_id == "r-1"
    finally:
        world.close()


PROGRAM = """
import sys, time
from memplan import measure
measure.attach(0.02)
with measure.track("load"):
    time.sleep(0.3)
measure.workload(tokens=7)
time.sleep(0.3)
"""


FAMILY = """
import multiprocessing, time
from memplan import measure

def work():
    measure.attach(0.02)
    time.sleep(0.5)

if __name__ == "__main__":
    measure.attach(0.02)
    time.sleep(0.5)
    for how in ("fork", "spawn"):
        child = multiprocessing.get_context(how).Process(target=work)
        child.start()
        print(child.pid)
        child.join()
        assert child.exitcode == 0
    time.sleep(0.2)
"""


def test_forked_and_spawned_workers_are_in_their_parents_run_and_counted_once(
    world, writer, tmp_path
):
    """Each with an agent of its own: one run, three processes, and no number twice."""
    (tmp_path / "family.py").write_text(FAMILY)
    environment = {**os.environ, "MEMPLAN_SOCKET": str(world.path.with_suffix(".sock"))}
    command = [sys.executable, "-W", "ignore", str(tmp_path / "family.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (run_id,) = {run.id for run in writer.saved if hasattr(run, "pid")}
    found = [s for s in writer.samples if s.series.metric == "heap_used_bytes"]
    assert {s.series.run_id for s in found} == {run_id}
    entities = {s.series.entity for s in found}
    assert len(entities) == 3
    assert entities >= {f"process:{pid}" for pid in done.stdout.split()}
    assert len({(s.series.entity, s.t_ns) for s in found}) == len(found)


EXEC = """
import os, sys, time
from memplan import measure
measure.attach(0.02)
time.sleep(0.5)
if len(sys.argv) == 1:
    os.execv(sys.executable, [sys.executable, __file__, "again"])
"""


def test_a_program_that_another_one_takes_the_place_of_is_heard_as_both(
    world, writer, tmp_path, until
):
    """One process after exec: its first agent has gone with the program, a second one comes."""
    (tmp_path / "twice.py").write_text(EXEC)
    environment = {**os.environ, "MEMPLAN_SOCKET": str(world.path.with_suffix(".sock"))}
    process = subprocess.Popen([sys.executable, str(tmp_path / "twice.py")], env=environment)
    assert process.wait(60) == 0
    until(lambda: not world.server.describe())
    assert [run.status for run in writer.saved] == ["running", "finished"] * 2
    assert {run.pid for run in writer.saved} == {process.pid}
    first, second = writer.saved[1], writer.saved[2]
    assert first.ended_ns <= second.started_ns
    for run in (first, second):
        assert [s for s in writer.samples if s.series.run_id == run.id]


def test_a_real_agent_in_its_own_pid_namespace_is_known_by_its_pid_here(world, writer, until):
    """As in a container: it believes to be another process, the kernel knows better."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", PROGRAM]
    environment = {**os.environ, "MEMPLAN_SOCKET": str(world.path.with_suffix(".sock"))}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: writer.values("workload", "tokens_count") or process.poll() is not None)
    finally:
        _, errors = process.communicate()
    if "unshare" in errors:
        pytest.skip(f"no namespaces here: {errors.strip()}")
    assert process.returncode == 0, errors
    run = next(saved for saved in writer.saved if hasattr(saved, "pid"))
    assert run.pid not in (1, 2)
    assert run.pid > process.pid
