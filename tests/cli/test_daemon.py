"""`memplan daemon` as a user types it."""

from __future__ import annotations

import json
import os
import re
import signal

import pytest

from memplan.cli.main import run
from memplan.store.reader import StoreReader
from memplan.store.writer import LocalWriter


@pytest.fixture
def started(home):
    """A daemon in the background, ended after the test."""
    assert run(["daemon", "start", "--interval", "0.05"]) == 0
    yield
    run(["daemon", "stop"])


def test_start_status_stop(started, home, capsys):
    """The whole life, with exit codes."""
    capsys.readouterr()
    assert run(["daemon", "status"]) == 0
    text = capsys.readouterr().out
    assert "every 0.05 s" in text
    assert str(home / "memplan.db") in text
    assert re.search(r"samples   \d+ written, \d+ wait, 0 dropped\n", text)
    assert run(["daemon", "start"]) == 2
    assert "already" in capsys.readouterr().err
    assert run(["daemon", "stop"]) == 0
    assert "stopped, pid was " in capsys.readouterr().out
    assert run(["daemon", "status"]) == 1


def test_status_as_json(started, home, capsys):
    """For programs."""
    capsys.readouterr()
    assert run(["daemon", "status", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["running"] is True
    assert found["kind"] == "daemon"
    assert found["database"] == str(home / "memplan.db")


def test_status_calls_written_only_what_survives_a_kill(home, capsys, monkeypatch):
    """What is held back to be written together waits."""

    def told():
        capsys.readouterr()
        run(["daemon", "status", "--json"])
        return json.loads(capsys.readouterr().out)

    monkeypatch.setenv("MEMPLAN_FLUSH", "3600")
    assert run(["daemon", "start", "--interval", "0.05"]) == 0
    try:
        status = told()
        assert status["samples_waiting"] > 0
        assert status["samples_written"] == 0
    finally:
        os.kill(status["pid"], signal.SIGKILL)
    with StoreReader(home / "memplan.db") as reader:
        assert reader.samples(None).samples == ()


def test_without_a_daemon_status_is_1_and_stop_is_no_error(home, capsys):
    """It says what to type."""
    assert run(["daemon", "status"]) == 1
    assert "not running: memplan daemon start" in capsys.readouterr().out
    assert run(["daemon", "stop"]) == 0
    assert capsys.readouterr().out == "not running\n"


def test_what_a_daemon_that_does_not_start_has_said_is_shown_with_its_hint(home, capsys):
    """Its own words, and the way out."""
    (home / "memplan.db").write_text("shopping list" * 1000)
    assert run(["daemon", "start"]) == 2
    said = capsys.readouterr().err
    assert "error: the daemon ended at once: " in said
    assert "hint: memplan db repair; or name another place" in said


def test_another_holder_is_named(home, capsys):
    """Whoever keeps the daemon from starting."""
    with LocalWriter(home / "memplan.db"):
        assert run(["daemon", "status"]) == 1
        assert f"a process that does not answer, pid {os.getpid()}" in capsys.readouterr().out
        assert run(["daemon", "run"]) == 2
        assert f"process {os.getpid()}" in capsys.readouterr().err


@pytest.mark.parametrize("interval", ["0", "nan", "-1"])
def test_an_interval_that_makes_no_sense_is_refused(home, capsys, interval):
    """In one line."""
    assert run(["daemon", "run", "--interval", interval]) == 2
    assert "makes no sense" in capsys.readouterr().err


def test_the_settings_interval_must_be_a_number(home, capsys, monkeypatch):
    """It is named with its value."""
    monkeypatch.setenv("MEMPLAN_INTERVAL", "often")
    assert run(["daemon", "run"]) == 2
    assert "interval is not a number: 'often'" in capsys.readouterr().err
