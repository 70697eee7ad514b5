"""`memplan db`, `record` and `export`: looking after what was measured, and taking it elsewhere."""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing

import pytest
from factories import T0, make_device, make_phase, make_plan, make_run, make_sample
from postgres import new_database

from memplan.cli.main import run
from memplan.errors import UsageError
from memplan.store.open import seconds
from memplan.store.reader import StoreReader
from memplan.store.retention import Policy
from memplan.store.writer import LocalWriter

NS = 10**9


@pytest.fixture
def database(home):
    """A database with two runs, of 130 samples each, and the host's own in their time."""
    path = home / "memplan.db"
    with LocalWriter(path) as writer:
        writer.save_plan(make_plan())
        writer.save_devices([make_device()])
        for number, begin in (("r-1", 0), ("r-2", 1000)):
            writer.save_phases([make_phase(run_id=number)])
            for name in (number, None):
                entity = "tree" if name else "host"
                samples = [
                    make_sample(i, seconds=begin + i, run_id=name, entity=entity)
                    for i in range(130)
                ]
                for start in range(0, 130, 65):
                    writer.write_samples(samples[start : start + 65])
            start = T0 + begin * NS
            writer.save_run(make_run(id=number, started_ns=start, ended_ns=start + 129 * NS))
    return path


def test_a_sound_database_is_called_so(database, capsys):
    """Rows of each table, and 0."""
    assert run(["db", "check"]) == 0
    out = capsys.readouterr().out
    assert "sound" in out
    assert "2 run" in out
    assert run(["db", "check", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == []
    assert found["rows"]["plan"] == 1
    assert run(["db", "repair"]) == 0
    assert "nothing to repair" in capsys.readouterr().out
    assert run(["db", "migrate"]) == 0
    assert "already" in capsys.readouterr().out


def test_a_wrong_checksum_is_found_and_repaired(database, capsys):
    """SQLite itself would not notice; the one column is lost, and nothing else."""
    with closing(sqlite3.connect(database)) as connection, connection:
        change = "UPDATE chunk SET high = high + 1 WHERE block_id = 1"
        assert connection.execute(change).rowcount == 1
    assert run(["db", "check"]) == 1
    said = capsys.readouterr()
    assert "wrong checksum" in said.out
    assert "memplan db repair" in said.err
    assert run(["db", "repair"]) == 0
    assert "put aside" in capsys.readouterr().out
    assert run(["db", "check"]) == 0
    with StoreReader(database) as reader:
        left = sum(len(reader.samples(r).samples) for r in (None, "r-1", "r-2"))
        assert 380 < left < 520


def test_what_is_no_database_of_memplan_is_said_plainly(home, capsys):
    """Text, or an empty file: what it is, and the command that helps, if there is one."""
    path = home / "memplan.db"
    path.write_text("shopping list" * 1000)
    assert run(["db", "repair"]) == 2
    assert "was not made by memplan and is left alone" in capsys.readouterr().err
    assert path.read_text() == "shopping list" * 1000
    path.write_text("")
    assert run(["db", "check"]) == 1
    assert "problem   no tables of memplan are in it" in capsys.readouterr().out
    assert run(["db", "migrate"]) == 0
    assert "made just now" in capsys.readouterr().out


def test_a_backup_is_a_whole_database_in_one_file(database, tmp_path, capsys):
    """While the writer goes on; a file that is there already is not overwritten."""
    copy = tmp_path / "copy.db"
    with LocalWriter(database) as writer:
        writer.write_samples([make_sample(9, seconds=5000, run_id="r-2")])
        assert run(["db", "backup", str(copy)]) == 0
    assert run(["db", "backup", str(copy)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert run(["db", "backup", str(tmp_path / "none" / "copy.db")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert not (tmp_path / "copy.db-wal").exists()
    with StoreReader(copy) as reader:
        assert len(reader.samples("r-2").samples) == 131
        assert len(reader.runs()) == 2


def test_compacting_drops_what_is_too_old(database, capsys):
    """Samples of 2025; their runs and peaks stay."""
    assert run(["db", "compact"]) == 0
    assert "after" in capsys.readouterr().out
    with StoreReader(database) as reader:
        assert reader.samples("r-1").samples == ()
        assert reader.peaks("r-1")[0].value == 129
        assert len(reader.runs()) == 2


def test_a_run_is_recorded_with_the_host_in_its_time(database, tmp_path, capsys):
    """And nothing of the other run."""
    file = tmp_path / "one.memplan"
    assert run(["record", str(file), "--run", "r-2"]) == 0
    assert "1 runs" in capsys.readouterr().out
    with StoreReader(file) as there, StoreReader(database) as here:
        assert [found.id for found in there.runs()] == ["r-2"]
        assert there.plans() == here.plans()
        assert there.devices() == here.devices()
        assert there.phases("r-2") == here.phases("r-2")
        assert there.phases("r-1") == ()
        assert there.samples("r-2").samples == here.samples("r-2").samples
        assert there.samples("r-1").samples == ()
        assert there.peaks("r-2") == here.peaks("r-2")
        late = [s for s in here.samples(None).samples if s.t_ns >= T0 + 1000 * NS]
        assert [s for s in there.samples(None).samples if s.t_ns >= T0 + 1000 * NS] == late
        window = {"since_ns": T0 + 1000 * NS, "until_ns": T0 + 1130 * NS, "buckets": 3}
        assert there.curves("r-2", **window) == here.curves("r-2", **window)
    assert [p.name for p in tmp_path.iterdir()] == ["one.memplan"]


def test_everything_or_a_window_is_recorded(database, tmp_path, monkeypatch, capsys):
    """The last five minutes as of the end of the second run."""
    whole, part = tmp_path / "whole.memplan", tmp_path / "part.memplan"
    assert run(["record", str(whole)]) == 0
    assert "2 runs, 520 samples" in capsys.readouterr().out
    monkeypatch.setattr("time.time_ns", lambda: T0 + 1130 * NS)
    assert run(["record", str(part), "--last", "5m"]) == 0
    assert "1 runs" in capsys.readouterr().out
    assert run(["record", str(part)]) == 2
    assert run(["record", str(part), "--last", "5m", "--run", "last"]) == 2
    assert "hint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "found"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("7d", 604_800)]
)
def test_stretches_of_time_are_read(text, found):
    """A number and a letter."""
    assert seconds(text) == found


@pytest.mark.parametrize("text", ["", "h", "-5m", "soon", "1e9d", "nan"])
def test_what_is_no_stretch_of_time_is_refused(text):
    """With examples."""
    with pytest.raises(UsageError) as caught:
        seconds(text)
    assert "10m" in caught.value.hint


def test_parquet_holds_the_same_rows_as_csv(database, tmp_path, capsys):
    """Typed, and small."""
    pq = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "run.parquet"
    assert run(["export", "r-1", "--format", "parquet", "-o", str(file)]) == 0
    table = pq.read_table(file)
    assert run(["export", "r-1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [",".join(str(value) for value in row.values()) for row in table.to_pylist()]
    assert lines == [",".join(table.column_names), *rows]
    assert table.num_rows == 130


def test_parquet_without_its_package_names_it(database, tmp_path, monkeypatch, capsys):
    """One line, one command."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert run(["export", "r-1", "--format", "parquet", "-o", str(tmp_path / "x")]) == 2
    assert "memplan[parquet]" in capsys.readouterr().err


def test_what_was_rolled_up_is_exported_as_curves(database, tmp_path, capsys):
    """And plain export says that samples are missing."""
    with LocalWriter(database, policy=Policy(raw_ns=NS)) as writer:
        writer.keep_house()
    assert run(["export", "r-1"]) == 0
    assert "--buckets" in capsys.readouterr().err
    assert run(["export", "r-1", "--buckets", "2", "--format", "json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(row["n"] for row in rows) == 130
    assert max(row["high"] for row in rows) == 129
    out = tmp_path / "curves.csv"
    assert run(["export", "r-1", "--buckets", "2", "-o", str(out)]) == 0
    assert out.read_text().splitlines()[0].startswith("t_ns,entity,metric,n,low,high")


def test_shipping_without_a_fleet_says_how(database, capsys):
    """The command with an address."""
    assert run(["db", "ship"]) == 2
    assert "--to postgresql" in capsys.readouterr().err
    assert run(["db", "ship", "--to", "nonsense"]) == 2
    assert "no database URL" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "said", "hint"),
    [
        ("postgresql+psycopg://u:sesame@127.0.0.1:1/x", "cannot reach ", "psql postgresql://u@127"),
        ("postgresql+psycopg://u:sesame@127.0.0.1:port/x", "port is no number", "HOST/NAME"),
        ("mysql://u:sesame@127.0.0.1/x", "no database URL of PostgreSQL", "HOST/NAME"),
    ],
)
def test_shipping_to_where_no_postgresql_is_says_so_though_nothing_waits(
    home, capsys, url, said, hint
):
    """One line and where to look, never the password; an empty outbox needs no connection."""
    pytest.importorskip("psycopg")
    LocalWriter(home / "memplan.db").close()
    assert run(["db", "ship", "--to", url]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    error, help_ = told.err.splitlines()
    assert error.startswith("error: ")
    assert said in error
    assert help_.startswith("hint: ")
    assert hint in help_
    assert "sesame" not in told.err


def test_shipping_says_what_went_and_that_nothing_waits(postgresql, database, capsys):
    """The second time, and never before."""
    url = new_database(postgresql)
    said = []
    for _ in range(2):
        assert run(["db", "ship", "--to", url]) == 0
        said.append(capsys.readouterr().out)
    assert said == ["shipped in 1 transaction\n", "up to date: nothing waits\n"]
