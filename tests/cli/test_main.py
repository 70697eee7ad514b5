"""The program as a whole: help, start-up, errors, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from memplan.cli.main import COMMANDS, run
from memplan.store.writer import LocalWriter

HEAVY = {"torch", "transformers", "accelerate", "sqlalchemy", "textual", "numpy", "alembic"}


def modules_of(*arguments):
    """Run memplan with -X importtime and return the top-level modules that it imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "memplan", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("plan", "--help")])
def test_help_loads_nothing_heavy(arguments):
    """So that it answers in a blink."""
    assert not modules_of(*arguments) & HEAVY


def test_reading_loads_no_sqlalchemy(tmp_path, monkeypatch):
    """Nor what the dashboard's first screen does without."""
    monkeypatch.setenv("MEMPLAN_DATABASE", str(tmp_path / "m.db"))
    LocalWriter(tmp_path / "m.db").close()
    assert not modules_of("runs") & HEAVY
    assert not modules_of("tui", "--plain") & {*HEAVY, "rich", "psutil", "pynvml"}


def test_every_command_of_the_table_exists_and_has_help(capsys):
    """With an explanation of its own, and none missing in the list."""
    assert run(["--help"]) == 0
    listing = capsys.readouterr().out
    for name in COMMANDS:
        assert f"\n  {name} " in listing
        assert run([name, "--help"]) == 0
        text = capsys.readouterr().out
        assert text.startswith(f"Usage: memplan {name}")
        assert len(text.split("Options:")[0]) > 60


def test_a_misspelt_command_is_answered_with_the_near_one(capsys):
    """error: and hint: on standard error, exit code 2."""
    assert run(["plam"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "plan" in error
    assert "\nhint: " in error


def test_an_error_is_one_line_and_a_hint_without_traceback(capsys):
    """A model that is not there."""
    assert run(["plan", "/nowhere/at/all"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("error: no model at")
    assert lines[1].startswith("hint: ")


def test_debug_shows_the_traceback(capsys, monkeypatch):
    """For those who ask."""
    monkeypatch.setenv("MEMPLAN_DEBUG", "1")
    assert run(["plan", "/nowhere/at/all"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_closed_pipe_ends_quietly(tmp_path):
    """`memplan --help | head -1` prints no complaint."""
    script = f"{sys.executable} -m memplan --help | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("settings", "arguments", "coloured"),
    [
        ({}, (), False),
        ({"FORCE_COLOR": "1"}, (), True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, (), False),
        ({"FORCE_COLOR": "1", "NO_COLOR": ""}, (), True),
        ({}, ("--color", "always"), True),
        ({"FORCE_COLOR": "1"}, ("--color", "never"), False),
    ],
)
def test_colour_is_for_terminals_and_for_those_who_ask(settings, arguments, coloured):
    """An empty NO_COLOR counts as unset."""
    done = subprocess.run(
        [sys.executable, "-m", "memplan", *arguments, "plan", "/nowhere"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **settings},
    )
    assert ("\x1b[" in done.stderr) == coloured


@pytest.mark.parametrize("group", ["watch", "daemon", "db"])
def test_a_group_without_a_command_prints_its_help(capsys, group):
    """As click does, with its lines, and the exit code of wrong usage."""
    assert run([group]) == 2
    text = capsys.readouterr().err
    assert text.startswith("Usage:")
    assert "\nCommands:" in text
