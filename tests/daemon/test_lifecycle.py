"""Real daemons: start, stop, a second one, and kill -9 in the middle."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import old_database
import pytest
from factories import make_run, make_sample
from memplan_daemon import lifecycle
from memplan_daemon.lifecycle import daemon_status, start_daemon, stop_daemon

from memplan.errors import DaemonError, StoreLockedError
from memplan.store.reader import StoreReader
from memplan.store.readonly import is_older
from memplan.store.remote import DaemonClient, socket_path
from memplan.store.writer import LocalWriter


@pytest.fixture
def database(home):
    return str(home / "memplan.db")


@pytest.fixture
def running(daemons, database, until):
    """A daemon in the foreground of another process that has stored its first samples."""

    def start():
        process = daemons("--interval", "0.05")
        until(lambda: daemon_status(database).pid == process.pid)
        until(lambda: (daemon_status(database).samples_written or 0) > 0)
        return process

    return start


def count(database):
    with StoreReader(database) as reader:
        return len(reader.samples(None).samples)


def test_sigterm_ends_it_cleanly(running, database, until):
    """Exit code 0, the socket is gone, the lock is free, what was written is there."""
    process = running()
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=20)
    assert process.returncode == 0, log
    assert "ended after" in log
    assert not socket_path(database).exists()
    assert count(database) > 0
    LocalWriter(database).close()


def test_kill_9_loses_no_committed_sample_and_a_new_daemon_starts(running, database):
    """What a reader saw before is there after, the file is sound, and sampling goes on."""
    process = running()
    seen = count(database)
    process.kill()
    process.wait()
    assert count(database) >= seen > 0
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    before = count(database)
    running()
    assert count(database) > before


def test_a_second_daemon_is_refused_in_one_line(running, daemons, database):
    """Exit code 2, and the first one's process id."""
    first = running()
    second = daemons()
    _, text = second.communicate(timeout=30)
    assert second.returncode == 2
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert str(first.pid) in errors[0]
    assert "Traceback" not in text
    assert daemon_status(database).pid == first.pid


def test_start_waits_until_it_answers_and_stop_until_it_has_let_go(database):
    """Between the two it samples; after them the database is free."""
    status = start_daemon(database, 0.5)
    try:
        assert status.running
        assert status.kind == "daemon"
        assert status.interval_s == 0.5
        assert status.database_bytes > 0
        with pytest.raises(StoreLockedError, match=f"pid {status.pid}"):
            start_daemon(database, 0.5)
    finally:
        assert stop_daemon(database) == status.pid
    assert not daemon_status(database).running
    assert stop_daemon(database) is None
    LocalWriter(database).close()
    log = socket_path(database).with_suffix(".log")
    assert log.stat().st_mode & 0o777 == 0o600
    assert "ended after" in log.read_text()


def test_start_says_why_it_did_not(home):
    """The daemon's own error, not a time-out."""
    (home / "memplan.db").write_text("this is no database, whatever its name says" * 100)
    with pytest.raises(DaemonError, match="ended at once: ") as caught:
        start_daemon(str(home / "memplan.db"), 1.0)
    assert "Traceback" not in str(caught.value)


def test_a_daemon_that_does_not_answer_is_ended_by_sigterm(running, database, monkeypatch, until):
    """It is stopped; the signal waits until it goes on, and then ends it."""
    monkeypatch.setattr("memplan_daemon.lifecycle.STOP_S", 0.3)
    monkeypatch.setattr("memplan_daemon.lifecycle._ASK_S", 0.3)
    process = running()
    process.send_signal(signal.SIGSTOP)
    assert daemon_status(database).pid == process.pid
    assert not daemon_status(database).running
    with pytest.raises(DaemonError, match="does not end"):
        stop_daemon(database)
    process.send_signal(signal.SIGCONT)
    assert process.wait(20) == 0


def test_a_process_that_is_no_daemon_is_not_ended(database, monkeypatch):
    """Whoever else holds the database is left alone."""
    monkeypatch.setattr("memplan_daemon.lifecycle.STOP_S", 0.3)
    with LocalWriter(database):
        assert daemon_status(database).pid == os.getpid()
        with pytest.raises(DaemonError, match="is no daemon"):
            stop_daemon(database)


def test_a_daemon_loads_neither_torch_nor_the_dashboard(running):
    """It is to stay small."""
    process = running()
    maps = Path(f"/proc/{process.pid}/maps").read_text().lower()
    assert "libtorch" not in maps
    status = Path(f"/proc/{process.pid}/status").read_text()
    rss = int(status.split("VmRSS:")[1].split()[0])
    assert rss < 90 * 1024, f"{rss} KiB"


def test_a_full_disk_is_told_and_survived(home, monkeypatch, until):
    """Under a file size limit samples wait; the daemon stays up and says so."""
    script = (
        "import resource, signal, sys\n"
        "from memplan.store.writer import LocalWriter\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "LocalWriter(sys.argv[1]).close()\n"
        "import os\n"
        "size = os.path.getsize(sys.argv[1]) + 4096\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n"
        "from memplan_daemon.daemon import run_daemon\n"
        "from memplan_daemon.settings import DaemonSettings\n"
        "run_daemon(sys.argv[1], lambda: DaemonSettings(interval_s=0.01))\n"
    )
    database = str(home / "memplan.db")
    monkeypatch.setenv("MEMPLAN_FLUSH", "0")
    process = subprocess.Popen([sys.executable, "-c", script, database], stderr=subprocess.PIPE)
    try:
        until(lambda: daemon_status(database).store_error)
        assert process.poll() is None
        with DaemonClient(socket_path(database)) as client:
            client.stop()
        process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_status_can_be_read_by_programs(database):
    """Plain values only."""
    found = asdict(daemon_status(database))
    assert json.loads(json.dumps(found))["running"] is False
    assert found["database_bytes"] is None


def test_a_run_is_deleted_by_the_daemon_that_holds_the_database(running, database, until):
    """By its socket and in parts: ticks go on between them, and the host's samples stay."""
    with LocalWriter(database) as writer:
        for i in range(400):
            writer.write_samples([make_sample(i, seconds=i)])
        writer.save_run(make_run())
    process = running()
    command = [sys.executable, "-m", "memplan", "runs", "delete", "r-1", "--yes"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "deleted r-1\n"), done.stderr
    assert daemon_status(database).pid == process.pid
    before = daemon_status(database).samples_written
    until(lambda: daemon_status(database).samples_written > before)
    with StoreReader(database) as reader:
        assert reader.runs() == ()
        assert reader.peaks("r-1") == ()
        assert reader.samples("r-1").samples == ()
        assert reader.samples(None).samples
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        query = "SELECT count(*) FROM series WHERE run_id = 'r-1'"
        assert connection.execute(query).fetchone() == (0,)


def test_a_daemon_that_migrates_for_long_is_waited_for(database, monkeypatch):
    """Killing it would roll everything back, and the next start would begin anew."""
    old_database.make(database)
    assert is_older(database)
    begun = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, "START_S", 0.3)
        patch.setattr(lifecycle, "is_older", lambda _: time.monotonic() < begun + 1.5)
        patch.setattr(lifecycle, "_spawn", lambda *_: subprocess.Popen(["sleep", "60"]))
        with pytest.raises(DaemonError, match="did not answer"):
            start_daemon(database)
    assert time.monotonic() > begun + 1.5
    assert start_daemon(database, 0.05).running
    assert not is_older(database)
    stop_daemon(database)
