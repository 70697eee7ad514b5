"""`memplan trace`: what is printed, written and refused."""

from __future__ import annotations

import json
import pickle

import pytest
from checkpoints import TINY
from click.testing import CliRunner

from memplan.cli.trace import trace
from memplan.errors import UsageError

pytestmark = pytest.mark.models


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMPLAN_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(TINY), encoding="utf-8")
    return path


def run(*args):
    words = [*map(str, args), "--device", "24GiB"]
    return CliRunner().invoke(trace, words, standalone_mode=False, catch_exceptions=False)


TRAIN = ("--task", "train", "--seq", "64", "--batch", "2")


def test_phases_and_the_largest_shares_are_printed(folder):
    """Who eats it, in words."""
    done = run(folder, *TRAIN, "--top", "3", "--unit", "MiB")
    assert done.return_value == 0
    assert done.output.startswith("peak ")
    for words in ("forward 1", "backward 2", "step 2", "alive at the peak", "reserved in"):
        assert words in done.output


def test_everything_is_there_as_json_and_adds_up(folder):
    """Bytes, with a schema tag."""
    found = json.loads(run(folder, *TRAIN, "--json").output)
    assert found["schema"] == "memplan.trace/1"
    assert sum(found["parts"].values()) == found["peak_bytes"]
    assert found["allocator"]["reserved_bytes"] >= found["allocated_bytes"]
    assert found["allocator"]["oom"] is None


def test_a_capacity_that_does_not_suffice_is_a_finding(folder):
    """With who asked last."""
    done = run(folder, *TRAIN, "--capacity", "2MiB")
    assert done.return_value == 1
    assert "OUT OF MEMORY" in done.output


def test_a_snapshot_is_written_and_bad_settings_are_refused(folder, tmp_path):
    """A pickle for memory_viz; unknown keys of the allocator are no settings."""
    place = tmp_path / "step.pickle"
    run(folder, *TRAIN, "--snapshot", place, "--alloc-conf", "expandable_segments:True")
    with place.open("rb") as file:
        assert pickle.load(file)["device_traces"][0]
    with pytest.raises(UsageError, match="no setting"):
        run(folder, *TRAIN, "--alloc-conf", "expandable:True")


def test_an_inference_is_traced_too(folder):
    """Prompt and tokens."""
    done = run(folder, "--context", "64")
    assert "prefill" in done.output
    assert "decode" in done.output
