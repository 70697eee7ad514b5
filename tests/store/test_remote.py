"""The wire format, where the socket is, and opening a database whoever holds it."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from pathlib import Path

import pytest
from factories import make_plan

from memplan.errors import DaemonError, NotStoredError, StoreError, StoreLockedError
from memplan.store import remote
from memplan.store.open import open_writer
from memplan.store.remote import (
    DaemonClient,
    FrameBuffer,
    RemoteWriter,
    encode_frame,
    error_body,
    socket_path,
)
from memplan.store.writer import LocalWriter


def test_the_socket_is_beside_the_database(tmp_path):
    """A name that anyone can find."""
    assert socket_path(tmp_path / "memplan.db") == Path(f"{tmp_path}/memplan.db.sock")
    assert socket_path(str(tmp_path / "memplan.db")) == socket_path(tmp_path / "memplan.db")


def test_a_relative_database_has_an_absolute_socket(tmp_path, monkeypatch):
    """Two processes in two folders mean the same one."""
    monkeypatch.chdir(tmp_path)
    assert socket_path("memplan.db") == socket_path(tmp_path / "memplan.db")


@pytest.mark.parametrize("runtime", [None, "/run/user/1000", "/" + "r" * 200])
def test_a_path_too_long_for_a_socket_has_a_short_stand_in(tmp_path, monkeypatch, runtime):
    """By hash in the runtime folder: the same each time, another for another database."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    if runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    database = tmp_path / ("d" * 100) / "memplan.db"
    found = socket_path(database)
    assert len(os.fsencode(found)) < 108
    assert found == socket_path(database)
    assert found != socket_path(tmp_path / ("e" * 100) / "memplan.db")
    assert found.parent.name.startswith("memplan")


def test_a_url_has_a_socket_that_does_not_show_it():
    """A password in it stays out of file names."""
    found = socket_path("postgresql+psycopg://me:secret@db/memplan")
    assert "secret" not in str(found)
    assert found.suffix == ".sock"


def test_the_limit_is_107_bytes_of_path(tmp_path):
    """The longest path that fits is used as it is; one byte more is not."""
    room = 107 - len(".sock") - len(os.fsencode(tmp_path)) - 1
    assert socket_path(tmp_path / ("x" * room)).parent == tmp_path
    assert socket_path(tmp_path / ("x" * (room + 1))).parent != tmp_path


def test_frames_are_cut_wherever_the_bytes_break():
    """Two frames in pieces of one byte come out as two texts."""
    buffer, found = FrameBuffer(), []
    for byte in encode_frame({"a": "ü"}) + encode_frame([1]):
        buffer.feed(bytes([byte]))
        if (frame := buffer.take()) is not None:
            found.append(json.loads(frame))
    assert found == [{"a": "ü"}, [1]]
    assert len(buffer) == 0


def test_a_frame_that_announces_too_much_is_refused():
    """Before any of it is kept."""
    buffer = FrameBuffer()
    buffer.feed(struct.pack(">I", remote.MAX_FRAME_BYTES + 1))
    with pytest.raises(DaemonError, match="larger than"):
        buffer.take()


def test_a_message_that_is_too_large_is_not_sent(monkeypatch):
    """The sender hears it, not the receiver."""
    monkeypatch.setattr(remote, "MAX_FRAME_BYTES", 10)
    with pytest.raises(StoreError, match="too large"):
        encode_frame("x" * 20)


def answer(path, *replies):
    """Answer the requests of one client with given bytes, in a thread."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)

    def serve():
        with listener:
            peer, _ = listener.accept()
            with peer:
                for reply in replies:
                    peer.recv(65536)
                    peer.sendall(reply)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (
            encode_frame(error_body(NotStoredError("no run x", hint="h"))),
            NotStoredError,
            "no run x",
        ),
        (encode_frame({"ok": False, "error": {"type": "os", "message": "m"}}), DaemonError, "m"),
        (encode_frame({"ok": False, "error": None}), DaemonError, "did not say why"),
        (encode_frame([]), DaemonError, "makes no sense"),
        (struct.pack(">I", 3) + b"{{{", DaemonError, "not JSON"),
        (struct.pack(">I", 2**31), DaemonError, "larger than"),
        (b"", DaemonError, "nobody answers"),
        (struct.pack(">I", 100) + b"half", DaemonError, "nobody answers"),
    ],
)
def test_whatever_comes_back_is_an_error_of_ours(tmp_path, reply, kind, message):
    """A peer that is broken, or something else altogether, raises nothing foreign."""
    path = tmp_path / "s"
    thread = answer(path, reply)
    with DaemonClient(path, timeout_s=5) as client, pytest.raises(kind, match=message) as caught:
        client.request("ping")
    assert type(caught.value) is kind
    thread.join(10)


def test_nobody_there_is_a_daemon_error(tmp_path):
    """With a hint what to look at."""
    with pytest.raises(DaemonError, match="nobody answers") as caught:
        RemoteWriter(tmp_path / "none.sock")
    assert caught.value.hint == "memplan daemon status"


def test_a_client_connects_anew_after_its_peer_came_back(tmp_path):
    """The request that failed is told; the next one goes to the new peer."""
    path = tmp_path / "s"
    first = answer(path)
    client = DaemonClient(path, timeout_s=5)
    with pytest.raises(DaemonError):
        client.request("ping")
    first.join(10)
    path.unlink()
    second = answer(path, encode_frame({"ok": True, "result": 5}))
    assert client.request("ping") == 5
    second.join(10)
    client.close()
    client.close()


def test_a_free_database_is_opened_here(tmp_path):
    """No socket is asked."""
    with open_writer(tmp_path / "t.db") as writer:
        assert isinstance(writer, LocalWriter)


def test_a_database_that_is_held_in_silence_is_locked(tmp_path):
    """The lock's own error, which names the holder."""
    with LocalWriter(tmp_path / "t.db"), pytest.raises(StoreLockedError, match=str(os.getpid())):
        open_writer(tmp_path / "t.db", patience_s=0.1)


def test_a_short_command_that_holds_the_database_is_waited_for(tmp_path):
    """`plan --save` beside another one: the second waits a moment instead of failing."""
    holder = LocalWriter(tmp_path / "t.db")
    timer = threading.Timer(0.3, holder.close)
    timer.start()
    with open_writer(tmp_path / "t.db", patience_s=20) as writer:
        assert writer.save_plan(make_plan(id=None)).id is not None
    timer.join()
