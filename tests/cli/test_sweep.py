"""`memplan sweep` as a user types it."""

from __future__ import annotations

import csv
import io
import json
import sys

import pytest

from memplan.cli.main import run
from memplan.search.grid import COLUMNS, points

BASE = ("--host-memory", "16GiB", "--disk", "0", "--jobs", "1")


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_every_point_is_a_row(capsys):
    """Two models, two contexts, two devices; commas and repeats are the same."""
    words = ["--context", "1024,2048", "--device", "rtx3060", "--device", "24GiB"]
    assert run(["sweep", "qwen3-0.6b", "smollm2-135m", *words, *BASE]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert len(rows) == 8
    assert list(rows[0]) == list(COLUMNS)
    found = {(row["model"], row["context"], row["device"]) for row in rows}
    assert len(found) == 8
    assert {row["fits"] for row in rows} == {"True"}
    assert all(row["error"] == "" for row in rows)


def test_a_row_says_what_the_plan_says(capsys):
    """The same bytes as `plan` with the same options."""
    words = ["--context", "2048", "--device", "rtx3060", "--host-memory", "16GiB", "--disk", "0"]
    assert run(["plan", "qwen3-0.6b", *words, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert run(["sweep", "qwen3-0.6b", *words, "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == "memplan.sweep/1"
    (row,) = data["rows"]
    assert row["total_bytes"] == plan["footprint"]["total_bytes"]
    assert row["weights_bytes"] == plan["devices"][0]["parts"]["weights"]
    assert row["free_bytes"] == plan["devices"][0]["free_bytes"]
    parts = sum(value for name, value in row.items() if name in _PARTS)
    assert parts == row["total_bytes"]


_PARTS = {
    f"{part}_bytes"
    for part in (
        *("weights", "kv_cache", "state_cache", "activations"),
        *("gradients", "optimizer", "buffers", "overhead"),
    )
}


def test_a_point_that_cannot_be_planned_says_why_and_the_rest_goes_on(capsys):
    """llama.cpp has no nf4."""
    words = ["--quant", "nf4,q8_0", "--runtime", "llama.cpp", "--device", "24GiB"]
    assert run(["sweep", "qwen3-0.6b", *words, *BASE]) == 0
    first, second = rows_of(capsys.readouterr().out)
    assert "no quantization 'nf4'" in first["error"]
    assert first["total_bytes"] == ""
    assert (first["quant"], first["device"]) == ("nf4", "24GiB")
    assert second["error"] == ""
    assert second["fits"] == "True"


def test_where_no_point_can_be_planned_it_is_an_error(capsys):
    """Exit code 2; the rows are still written."""
    assert run(["sweep", "no-such-model", "--device", "24GiB", *BASE]) == 2
    captured = capsys.readouterr()
    assert "no point could be planned" in captured.err
    assert len(rows_of(captured.out)) == 1


def test_parquet_has_the_same_rows(tmp_path, capsys):
    """Whole numbers stay whole."""
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "grid.parquet"
    words = ["--batch", "1,2", "--device", "24GiB", "--output", str(path)]
    assert run(["sweep", "qwen3-0.6b", *words, *BASE]) == 0
    assert capsys.readouterr().out == ""
    rows = parquet.read_table(path).to_pylist()
    assert [row["batch"] for row in rows] == [1, 2]
    assert rows[0]["total_bytes"] < rows[1]["total_bytes"]


def test_without_pyarrow_the_hint_names_it(tmp_path, capsys, monkeypatch):
    """Before anything is planned."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = str(tmp_path / "grid.parquet")
    assert run(["sweep", "no-such-model", "--device", "24GiB", "--output", path]) == 2
    captured = capsys.readouterr()
    assert "needs pyarrow" in captured.err
    assert "memplan[parquet]" in captured.err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--output", "grid.xlsx"], "nothing says the format"),
        (["--format", "parquet"], "add --output"),
        (["--batch", "1,x"], "'x' is not a whole number"),
        (["--task", "guess"], "guess"),
    ],
)
def test_what_cannot_be_is_said(words, text, capsys):
    """Exit code 2."""
    assert run(["sweep", "qwen3-0.6b", *words]) == 2
    assert text in capsys.readouterr().err


def test_the_last_axis_changes_first():
    """As one reads a table."""
    found = [tuple(point.values()) for point in points({"model": ("a", "b"), "batch": (1, 2)})]
    assert found == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]


def test_processes_give_the_same_rows(capsys):
    """Two workers, as many points as make them worth while."""
    words = ["--context", ",".join(str(256 * i) for i in range(1, 11)), "--batch", "1,2"]
    words += ["--device", "24GiB", "--host-memory", "16GiB", "--disk", "0"]
    assert run(["sweep", "smollm2-135m", *words, "--jobs", "2"]) == 0
    many = capsys.readouterr().out
    assert run(["sweep", "smollm2-135m", *words, "--jobs", "1"]) == 0
    assert capsys.readouterr().out == many
    assert len(rows_of(many)) == 20
