"""`memplan runs`, `show`, `compare`, `export`, `devices`, `doctor`, `config`."""

from __future__ import annotations

import csv
import io
import json

import pytest
from factories import T0, make_phase, make_plan, make_run, make_sample
from goldens import check_golden

from memplan.cli.main import run
from memplan.store.reader import StoreReader
from memplan.store.writer import LocalWriter
from memplan.units import MIB


@pytest.fixture
def stored(home, monkeypatch):
    """A database with one plan, one run, two phases and samples."""
    monkeypatch.setenv("TZ", "UTC")
    with LocalWriter(home / "memplan.db") as writer:
        writer.save_plan(make_plan())
        writer.save_run(make_run())
        writer.save_phases([make_phase()])
        for i, value in enumerate((100, 620, 300)):
            writer.write_samples(
                [
                    make_sample(value * MIB, seconds=i),
                    make_sample(value * MIB, seconds=i, metric="hwm_bytes"),
                ]
            )


def test_runs_are_listed_with_their_peak(stored, capsys):
    """One line each."""
    assert run(["runs", "--unit", "MiB"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["run", "started", "seconds"]
    assert "r-1" in line
    assert "620.00 MiB" in line
    assert "python train.py" in line


def test_no_runs_yet_says_how_to_make_one(home, capsys):
    """An empty database teaches; a missing one is an error with the same hint."""
    assert run(["runs"]) == 2
    LocalWriter(home / "memplan.db").close()
    assert run(["runs"]) == 0
    assert capsys.readouterr().err.count("memplan run -- COMMAND") == 2


def test_a_run_is_deleted_when_that_is_meant(stored, home, capsys):
    """Nobody to ask: refused; by the beginning of its id; a second time it is not there."""
    assert run(["runs", "delete", "last"]) == 2
    assert "--yes" in capsys.readouterr().err
    assert run(["runs", "delete", "r-", "r-1", "--yes"]) == 0
    assert capsys.readouterr().out == "deleted r-1\n"
    assert run(["runs", "delete", "r-1", "--yes"]) == 2
    assert "no run 'r-1'" in capsys.readouterr().err
    with StoreReader(home / "memplan.db") as reader:
        assert reader.runs() == ()
        assert reader.peaks("r-1") == ()
        assert len(reader.plans()) == 1


@pytest.mark.parametrize(("answer", "left"), [("n\n", 1), ("y\n", 0)])
def test_who_is_there_is_asked_before_a_run_is_deleted(stored, home, monkeypatch, answer, left):
    """With what it is about in sight."""
    keyboard = io.StringIO(answer)
    keyboard.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", keyboard)
    assert run(["runs", "delete", "last"]) == (130 if left else 0)
    with StoreReader(home / "memplan.db") as reader:
        assert len(reader.runs()) == left


def test_a_run_is_shown(stored, capsys):
    """Phases and peaks."""
    assert run(["show", "last", "--unit", "MiB"]) == 0
    check_golden("cli_show.txt", capsys.readouterr().out)


def test_a_run_is_compared_with_its_own_plan(stored, capsys):
    """And the comparison is the contract's JSON."""
    assert run(["compare", "r-1", "--unit", "MiB"]) == 0
    check_golden("cli_compare.txt", capsys.readouterr().out)
    assert run(["compare", "r-1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "memplan.comparison/1"
    assert document["plan_id"] == "p-1"
    names = {
        "name",
        "planned_bytes",
        "low_bytes",
        "high_bytes",
        "peak_bytes",
        "peak_reserved_bytes",
        "gap_bytes",
        "within_band",
        "parts",
        "unaccounted_bytes",
    }
    assert names <= document["devices"][0].keys()
    assert document["devices"][0]["peak_bytes"] == 620 * MIB
    assert document["verdict"] == "within"


def test_a_peak_above_the_plan_is_a_finding(stored, home, capsys):
    """Exit code 1."""
    with LocalWriter(home / "memplan.db") as writer:
        writer.write_samples([make_sample(5000 * MIB, metric="hwm_bytes")])
    assert run(["compare", "last"]) == 1
    assert "OVER" in capsys.readouterr().out


def test_every_sample_is_exported(stored, capsys):
    """CSV with a head, and JSON lines: the same rows."""
    assert run(["export", "last"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 6
    assert rows[0] == {
        "t_ns": str(T0),
        "entity": "tree",
        "metric": "rss_bytes",
        "value": str(100 * MIB),
    }
    assert run(["export", "last", "--format", "json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [{k: str(v) for k, v in line.items()} for line in lines] == rows


@pytest.mark.parametrize("command", ["show", "compare", "export"])
def test_a_run_that_is_not_there_is_one_clear_line(stored, capsys, command):
    """Exit code 2."""
    assert run([command, "r-none"]) == 2
    assert capsys.readouterr().err.startswith("error: no run 'r-none'")


def test_devices_are_listed_with_where_they_were_read(capsys):
    """Host and disk are always there; sizes are bytes in JSON."""
    assert run(["devices"]) == 0
    assert "cpu" in capsys.readouterr().out
    assert run(["devices", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["devices"]
    assert {"cpu", "disk"} <= {row["name"] for row in rows}
    assert all(isinstance(row["capacity_bytes"], int) for row in rows)


def test_the_doctor_names_versions_and_what_is_missing(capsys):
    """Nothing is broken where the tests run."""
    assert run(["doctor", "--json"]) == 0
    checks = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"python", "torch", "sqlite", "database", "gpu", "processes"} <= checks.keys()
    assert all(row["state"] != "broken" for row in checks.values())
    assert run(["doctor"]) == 0


def test_the_doctor_finds_a_damaged_database(home, capsys):
    """And says what to do: exit code 1."""
    (home / "memplan.db").write_bytes(b"no database at all, but long enough to look at" * 50)
    assert run(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "broken" in out
    assert "mend it:" in out


def test_settings_are_shown_with_where_they_were_set(tmp_path, monkeypatch, capsys, home):
    """Environment before project before user file before default."""
    (home / "config" / "memplan").mkdir(parents=True)
    (home / "config" / "memplan" / "config.toml").write_text('unit = "GB"\ninterval = 5\n')
    (tmp_path / "pyproject.toml").write_text('[tool.memplan]\nunit = "MiB"\ntheme = "x"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEMPLAN_THEME", "y")
    assert run(["config", "show", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows["unit"]["value"] == "MiB"
    assert rows["unit"]["origin"].endswith("pyproject.toml")
    assert rows["interval"]["value"] == "5"
    assert rows["interval"]["origin"].endswith("config.toml")
    assert rows["theme"] == {"value": "y", "origin": "MEMPLAN_THEME"}
    assert rows["run_interval"]["origin"] == "default"


@pytest.mark.parametrize("text", ["unit = ", "[unit]", 'units = "GiB"'])
def test_a_bad_settings_file_is_one_clear_line(home, capsys, text):
    """Broken TOML, and a name that is no setting."""
    (home / "config" / "memplan").mkdir(parents=True)
    (home / "config" / "memplan" / "config.toml").write_text(text)
    code = run(["config", "show"])
    err = capsys.readouterr().err
    assert (code, err.startswith("error: ")) == (2, True)
