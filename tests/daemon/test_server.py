"""The socket: good requests, bad ones, and clients that leave."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from factories import make_device, make_phase, make_plan, make_run, make_sample
from memplan_daemon.access import Peer
from memplan_daemon.clock import SystemClock
from memplan_daemon.loop import Loop
from memplan_daemon.sampler import Sampler
from memplan_daemon.server import Server
from memplan_daemon.service import Service, Session

from memplan.errors import DaemonError, StoreError, StoreLockedError
from memplan.serialize import to_dict
from memplan.store.remote import MAX_FRAME_BYTES, DaemonClient, RemoteWriter, encode_frame


@pytest.fixture
def kind():
    return "daemon"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "t.db.sock"


@pytest.fixture
def server(path, writer, kind):
    """A server in a thread of its own."""
    clock = SystemClock()
    sampler = Sampler(clock=clock, collectors=(), writer=writer, interval_s=0.05)
    loop = Loop(sampler)
    service = Service(
        writer=writer, sampler=sampler, clock=clock, database="t.db", kind=kind, stop=loop.stop
    )
    found = Server(path=path, service=service, loop=loop, clock=clock)
    thread = threading.Thread(target=loop.run)
    thread.start()
    yield found
    loop.stop()
    thread.join(10)
    assert not thread.is_alive()
    found.close()
    loop.close()


@pytest.fixture
def client(server, path):
    with DaemonClient(path) as found:
        yield found


@pytest.fixture
def raw(server, path):
    with socket.socket(socket.AF_UNIX) as found:
        found.settimeout(10)
        found.connect(str(path))
        yield found


def reply(raw):
    data = b""
    while len(data) < 4 or len(data) < 4 + struct.unpack(">I", data[:4])[0]:
        part = raw.recv(65536)
        assert part, "the connection was closed"
        data += part
    return json.loads(data[4:])


@pytest.fixture
def open_umask():
    """Nothing is masked."""
    before = os.umask(0)
    yield
    os.umask(before)


def test_the_socket_belongs_to_its_user_alone(open_umask, server, path):
    """Mode 0600 from the first moment, whatever the umask."""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_ping_and_status_tell_who_answers(client):
    """Process, kind and counts."""
    assert client.request("ping")["pid"] == os.getpid()
    status = client.status()
    assert (status["kind"], status["database"]) == ("daemon", "t.db")
    assert status["samples_written"] == 0
    assert status["watching"] == {}


def test_everything_that_a_writer_takes_arrives_as_it_was(server, path, writer):
    """Plans, runs, phases, devices and samples survive the wire."""
    samples = [make_sample(5), make_sample(-(2**63), run_id=None, entity="gpu:ü")]
    with RemoteWriter(path) as remote:
        assert remote.save_plan(make_plan()) == make_plan()
        remote.save_run(make_run())
        remote.save_phases([make_phase(), make_phase(name="decode", ended_ns=None)])
        remote.save_devices([make_device()])
        remote.write_samples(samples)
    assert writer.saved == [
        make_plan(),
        make_run(),
        [make_phase(), make_phase(name="decode", ended_ns=None)],
        [make_device()],
    ]
    assert writer.batches == [samples]


def test_a_batch_larger_than_a_request_goes_in_parts(server, path, writer, monkeypatch):
    """No frame is larger than what the server takes."""
    monkeypatch.setattr("memplan.store.remote.SAMPLES_PER_REQUEST", 3)
    with RemoteWriter(path) as remote:
        remote.write_samples([make_sample(i) for i in range(7)])
    assert [len(batch) for batch in writer.batches] == [3, 3, 1]


@pytest.mark.parametrize("kept", [StoreError, StoreLockedError])
def test_the_stores_own_error_comes_back_with_its_hint(server, path, writer, kept):
    """The class, the message and the hint are the same on both sides."""
    with RemoteWriter(path) as remote:
        writer.error = kept("the disk is full", hint="free some space")
        with pytest.raises(kept, match="the disk is full") as caught:
            remote.save_run(make_run())
        assert type(caught.value) is kept
        assert caught.value.hint == "free some space"
        writer.error = None
        remote.save_run(make_run())
    assert writer.saved == [make_run()]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        b"[" * 100_000,
        b"null",
        b"[]",
        b'{"op": 5}',
        b'{"op": ["ping"]}',
        b'{"op": "erase"}',
        b'{"op": "save_plan"}',
        b'{"op": "save_run", "run": {"schema": "memplan.run/1"}}',
        b'{"op": "save_run", "run": {"schema": "memplan.plan/1"}}',
        b'{"op": "save_run", "run": {"schema": "memplan.run/99"}}',
        b'{"op": "ping\xc3"}',
        b'{"op": "save_phases", "phases": {}}',
        b'{"op": "save_devices", "devices": [1]}',
        b'{"op": "write_samples", "samples": [["r", "tree", "rss_bytes", 1]]}',
        b'{"op": "write_samples", "samples": [["r", "tree", "rss_bytes", 1, true]]}',
        b'{"op": "write_samples", "samples": [[5, "tree", "rss_bytes", 1, 2]]}',
        b'{"op": "write_samples", "samples": [["r", "t", "m", 1, 9223372036854775808]]}',
        b'{"op": "write_samples", "samples": [["r", "t", "m", 1, 1.5]]}',
        b'{"op": "watch", "pid": "1", "run_id": "r"}',
        b'{"op": "watch", "pid": 2147483647, "run_id": "r"}',
        b'{"op": "watch", "pid": 99999999999999999999, "run_id": "r"}',
        b'{"op": "unwatch", "run_id": 5}',
    ],
)
def test_a_request_that_makes_no_sense_gets_an_error_and_the_next_one_an_answer(raw, writer, body):
    """The connection stays open; nothing is written."""
    raw.sendall(struct.pack(">I", len(body)) + body)
    answer = reply(raw)
    assert answer["ok"] is False
    assert answer["error"]["message"]
    raw.sendall(encode_frame({"op": "ping"}))
    assert reply(raw)["ok"] is True
    assert writer.saved == writer.batches == []


def test_a_bug_in_a_writer_does_not_end_the_server(raw, writer):
    """Whatever is raised comes back as an error."""
    writer.save_devices = None
    raw.sendall(encode_frame({"op": "save_devices", "devices": []}))
    assert "failed" in reply(raw)["error"]["message"]
    raw.sendall(encode_frame({"op": "ping"}))
    assert reply(raw)["ok"] is True


def test_random_frames_are_answered_with_errors_and_the_next_one_as_ever(raw, writer):
    """Noise, and requests of which one byte is another one."""
    noise = random.Random(21)
    good = json.dumps({"op": "save_devices", "devices": [to_dict(make_device())]}).encode()
    for number in range(600):
        body = bytearray(noise.randbytes(noise.randrange(200)) if number % 2 else good)
        if body:
            body[noise.randrange(len(body))] = noise.randrange(256)
        raw.sendall(struct.pack(">I", len(body)) + body)
        answer = reply(raw)
        assert answer["ok"] or answer["error"]["message"]
    raw.sendall(encode_frame({"op": "ping"}))
    assert reply(raw)["ok"] is True


@pytest.mark.parametrize("size", [MAX_FRAME_BYTES + 1, 2**30, 2**32 - 1])
def test_a_huge_request_gets_an_error_and_its_connection_is_closed(raw, client, size):
    """Nothing of it is read; others go on."""
    raw.sendall(struct.pack(">I", size) + b"x")
    assert "larger than" in reply(raw)["error"]["message"]
    assert raw.recv(10) == b""
    assert client.status()["kind"] == "daemon"


def test_a_request_in_single_bytes_and_two_in_one_are_answered(raw):
    """Frames are cut by length, however they arrive."""
    frame = encode_frame({"op": "ping"})
    for byte in frame:
        raw.sendall(bytes([byte]))
    assert reply(raw)["ok"] is True
    raw.sendall(frame + frame)
    data = b""
    while data.count(b'"ok":true') < 2:
        data += raw.recv(65536)


def test_a_client_that_leaves_in_the_middle_harms_nobody(server, path, client):
    """A hundred of them come and go."""
    for _ in range(100):
        with socket.socket(socket.AF_UNIX) as leaving:
            leaving.connect(str(path))
            leaving.sendall(struct.pack(">I", 1000) + b"half")
    assert client.status()["kind"] == "daemon"


def test_a_request_that_never_arrives_is_given_up(server, path, monkeypatch):
    """A slow client cannot hold memory for ever."""
    monkeypatch.setattr("memplan_daemon.server.SLOWEST_REQUEST_S", 0.0)
    with socket.socket(socket.AF_UNIX) as slow:
        slow.settimeout(10)
        slow.connect(str(path))
        slow.sendall(struct.pack(">I", 1000) + b"half")
        assert slow.recv(10) == b""


def test_a_request_that_drips_is_given_up_though_it_never_pauses(server, path, monkeypatch):
    """A byte every twentieth of a second: the time counts from the first one."""
    monkeypatch.setattr("memplan_daemon.server.SLOWEST_REQUEST_S", 0.5)
    with socket.socket(socket.AF_UNIX) as slow:
        slow.connect(str(path))
        slow.sendall(struct.pack(">I", 1000))
        begin = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() - begin < 10:
                slow.sendall(b"x")
                time.sleep(0.05)
    took_s = time.monotonic() - begin
    assert 0.3 < took_s < 10


def test_unfinished_requests_may_not_fill_the_memory(server, path, client, monkeypatch):
    """Above the limit for all together a connection is closed."""
    monkeypatch.setattr("memplan_daemon.server.MAX_BUFFERED_BYTES", 1000)
    with socket.socket(socket.AF_UNIX) as greedy:
        greedy.settimeout(10)
        greedy.connect(str(path))
        greedy.sendall(struct.pack(">I", 5000) + b"x" * 2000)
        assert greedy.recv(10) == b""
    assert client.status()["kind"] == "daemon"


def test_a_client_over_the_limit_is_turned_away(server, path, client, monkeypatch):
    """Those who are in stay in."""
    client.request("ping")
    monkeypatch.setattr("memplan_daemon.server.MAX_CONNECTIONS", 1)
    with pytest.raises(DaemonError, match="nobody answers"), DaemonClient(path) as late:
        late.request("ping")
    client.request("ping")


def test_the_run_of_a_broken_connection_is_lost(server, path, writer, until):
    """Whoever sampled it is dead; a run that was ended properly stays as it is."""
    running = make_run(id="r-2", status="running", ended_ns=None, exit_code=None)
    with RemoteWriter(path) as remote:
        remote.save_run(make_run(status="running"))
        remote.save_run(make_run())
        remote.save_run(running)
    until(lambda: len(writer.saved) == 4)
    lost = writer.saved[-1]
    assert (lost.id, lost.status) == ("r-2", "lost")
    assert lost.ended_ns is not None


def test_watch_and_unwatch_change_what_is_sampled(client):
    """A process that lives is watched until that is taken back."""
    client.watch(os.getpid(), "r-1")
    assert client.status()["watching"] == {"r-1": os.getpid()}
    client.unwatch("r-1")
    assert client.status()["watching"] == {}


@pytest.mark.parametrize("kind", ["run"])
def test_a_run_that_listens_cannot_be_stopped_as_a_daemon(client):
    """It ends with its command."""
    with pytest.raises(DaemonError, match="no daemon but a `memplan run`"):
        client.stop()


def listen(path, writer):
    clock = SystemClock()
    loop = Loop(Sampler(clock=clock, collectors=(), writer=writer, interval_s=1))
    try:
        return Server(path=path, service=None, loop=loop, clock=clock)
    finally:
        loop.close()


def test_a_dead_socket_is_replaced_and_a_file_is_not(path, writer):
    """What somebody else put there is not ours to delete."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    listen(path, writer)._listener.close()
    path.unlink()
    path.write_text("precious")
    with pytest.raises(DaemonError, match="in the way"):
        listen(path, writer)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("target", ["file", "socket", "nothing"])
def test_a_link_where_the_socket_should_be_is_not_followed(path, writer, target):
    """Somebody could lead us anywhere by it; what it leads to stays as it is."""
    place = path.with_name("elsewhere")
    with socket.socket(socket.AF_UNIX) as other:
        if target == "socket":
            other.bind(str(place))
        elif target == "file":
            place.write_text("precious")
        path.symlink_to(place)
        with pytest.raises(DaemonError, match="in the way"):
            listen(path, writer)
    assert path.is_symlink()
    assert place.exists() == (target != "nothing")


def test_a_process_of_another_user_is_not_watched_for_somebody(proc, writer, monkeypatch):
    """By the owner that the kernel names; the daemon's own user may watch its own, root all."""
    proc.add(4711, rss=1, uid=1001)
    proc.add(4712, rss=1, uid=1000)
    clock = SystemClock()
    sampler = Sampler(clock=clock, collectors=(), writer=writer, interval_s=1, proc=proc.folder)
    service = Service(
        writer=writer,
        sampler=sampler,
        clock=clock,
        database="x",
        kind="daemon",
        stop=None,
        proc=proc.folder,
    )
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    owner, root = Session(Peer(pid=1, uid=1000)), Session(Peer(pid=1, uid=0))
    with pytest.raises(DaemonError, match="belongs to another user"):
        service.handle({"op": "watch", "pid": 4711, "run_id": "r-1"}, owner)
    service.handle({"op": "watch", "pid": 4712, "run_id": "r-2"}, owner)
    service.handle({"op": "watch", "pid": 4711, "run_id": "r-3"}, root)
    assert sampler.watched == {"r-2": 4712, "r-3": 4711}
    sampler.close()


GUEST = """
import json, os, socket, struct, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for body in ({"op": "ping"}, {"op": "snapshot"}, {"op": "stop"}):
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(sys.argv[1])
        data = json.dumps(body).encode()
        peer.sendall(struct.pack(">I", len(data)) + data)
        answer = peer.recv(65536)[4:]
        print(json.loads(answer)["ok"])
with socket.socket(socket.AF_UNIX) as peer:
    peer.connect(sys.argv[1])
    peer.settimeout(10)
    peer.sendall(struct.pack(">I", 10**6) + b"x" * 300_000)
    print(peer.recv(10))
"""


def test_a_member_of_the_group_may_look_and_no_more(writer):
    """Another user, by the kernel's word: mode 0660, small requests, nothing that changes."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    clock = SystemClock()
    sampler = Sampler(clock=clock, collectors=(), writer=writer, interval_s=0.05)
    loop = Loop(sampler)
    service = Service(
        writer=writer, sampler=sampler, clock=clock, database="x", kind="daemon", stop=loop.stop
    )
    path = folder / "t.sock"
    server = Server(path=path, service=service, loop=loop, clock=clock, gid=65534)
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        command = [sys.executable, "-c", GUEST, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.stdout.split(), done.stderr) == (["True", "True", "False", "b''"], "")
    finally:
        loop.stop()
        thread.join()
        server.close()
        loop.close()
        folder.rmdir()
