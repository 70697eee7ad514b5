"""`memplan run` as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from factories import make_plan

from memplan.serialize import dumps, loads
from memplan.types import Comparison, FrozenMap
from memplan.units import GIB, MIB


@pytest.fixture
def memplan(tmp_path):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "memplan", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            timeout=60,
        )

    return run


@pytest.fixture
def plan_file(tmp_path):
    """A plan whose host takes something between two sizes."""

    def write(low, high):
        ledger = replace(
            make_plan().devices[0],
            parts=FrozenMap({"overhead": (low + high) // 2}),
            low_bytes=low,
            high_bytes=high,
        )
        path = tmp_path / "plan.json"
        path.write_text(dumps(make_plan(id=None, devices=(ledger,))))
        return str(path)

    return write


def test_the_commands_own_output_is_untouched(memplan):
    """Standard output is the command's; what memplan says goes to standard error."""
    done = memplan("run", "--", "sh", "-c", "echo out; echo err >&2; sleep 0.2; exit 3")
    assert done.returncode == 3
    assert done.stdout == "out\n"
    assert done.stderr.startswith("err\n")
    assert "exit code 3" in done.stderr
    assert "rss_bytes" in done.stderr


def test_options_after_the_command_are_the_commands(memplan):
    """Nothing behind it is taken for an option of ours, with or without dashes."""
    done = memplan("run", "--", "sh", "-c", 'echo "$@"', "sh", "--json", "--strict", "--help")
    assert done.stdout == "--json --strict --help\n"


@pytest.mark.parametrize("given", [(), ("--",), ("--json",)])
def test_without_a_command_it_is_a_usage_error(memplan, given):
    """Exit code 2 and one line."""
    done = memplan("run", *given)
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_that_is_not_there_has_the_shells_exit_code(memplan):
    """127, in one line."""
    done = memplan("run", "--", "nosuchprogram")
    assert done.returncode == 127
    assert "error: nosuchprogram: command not found" in done.stderr


def test_json_is_a_comparison_on_standard_output(memplan):
    """After the command's own output, which is empty here."""
    done = memplan("run", "--json", "--", "sleep", "0.2")
    comparison = loads(done.stdout, Comparison)
    assert comparison.run.command == ("sleep", "0.2")
    assert comparison.run.exit_code == 0
    assert comparison.devices[0].name == "cpu"
    assert comparison.devices[0].peak_bytes > 0
    assert comparison.verdict is None
    assert json.loads(done.stdout)["schema"] == "memplan.comparison/1"


def test_a_plan_from_a_file_is_compared_and_kept(memplan, plan_file):
    """Within its band: exit code 0, also when strict."""
    path = plan_file(0, GIB)
    done = memplan("run", "--plan", path, "--strict", "--json", "--", "sleep", "0.2")
    comparison = loads(done.stdout, Comparison)
    assert done.returncode == 0, done.stderr
    assert comparison.verdict == "within"
    assert comparison.plan_id is not None
    assert memplan("run", "--plan", "last", "--", "true").returncode == 0


def test_over_the_plan_is_exit_1_only_when_strict(memplan, plan_file):
    """A finding must be asked for: the exit code belongs to the command."""
    path = plan_file(0, MIB // 2)
    command = ("--", "sleep", "0.2")
    done = memplan("run", "--plan", path, *command)
    assert done.returncode == 0
    assert "ABOVE" in done.stderr
    assert memplan("run", "--plan", path, "--strict", *command).returncode == 1
    failing = ("--", "sh", "-c", "sleep 0.2; exit 7")
    assert memplan("run", "--plan", path, "--strict", *failing).returncode == 7


def test_an_unknown_plan_is_said_before_the_command_starts(memplan, tmp_path):
    """Nothing is run for a comparison that cannot be."""
    done = memplan("run", "--plan", "p-nothing", "--", "touch", "started")
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("interval", ["0", "-1", "nan", "soon"])
def test_an_interval_that_makes_no_sense_is_a_usage_error(memplan, tmp_path, interval):
    """Before the command starts."""
    done = memplan("run", "--interval", interval, "--", "touch", "started")
    assert done.returncode == 2
    assert not (tmp_path / "started").exists()


def test_a_setting_that_is_no_number_is_named(memplan, monkeypatch):
    """So that it can be found."""
    monkeypatch.setenv("MEMPLAN_RUN_INTERVAL", "often")
    done = memplan("run", "--", "true")
    assert done.returncode == 2
    assert "run_interval is not a number of seconds: 'often'" in done.stderr
