"""`memplan run --engine`: plans started on their engines, and engines that ignore them."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
from plans import needs, planned

from memplan.serialize import dumps

pytestmark = [pytest.mark.engines, pytest.mark.filterwarnings("ignore")]  # theirs

TRAIN = ("--task", "train", "--seq", "16", "--device", "1GiB", "--precision", "fp32")


@pytest.fixture
def memplan(run_program, tmp_path, monkeypatch):
    """Run memplan with a database of its own."""
    monkeypatch.setenv("MEMPLAN_DATABASE", str(tmp_path / "db.sqlite"))

    def run(*words):
        return run_program(sys.executable, "-m", "memplan", *words, check=False)

    return run


@pytest.fixture
def plan_file(tmp_path):
    def write(plan):
        path = tmp_path / "plan.json"
        path.write_text(dumps(plan))
        return path

    return write


def test_a_model_is_loaded_by_its_map_and_generates(memplan, plan_file, tmp_path, llama):
    """Plain python of the load.py that was written; the files are kept where --output says."""
    path = plan_file(planned(llama, "--device", "cpu", "--context", "64"))
    done = memplan("run", "--engine", "accelerate", "--plan", path, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "generated" in done.stdout
    report = json.loads((tmp_path / "out" / "report" / "0.json").read_text())
    assert set(report["weights"]) == {"cpu"}


def test_an_engine_that_ignores_the_plan_is_exit_1(memplan, plan_file, tmp_path, llama):
    """A GPU was planned, and this machine has none: accelerate puts the model elsewhere, or fails.

    Here the script that was written is made to ignore its map.
    """
    plan = planned(llama, "--device", "cpu", "--context", "64")
    other = json.loads(dumps(plan))
    other["devices"][0]["parts"]["weights"] += 50 * 2**20
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(other))
    done = memplan("run", "--engine", "accelerate", "--plan", path)
    assert done.returncode == 1
    assert "ignored the plan: accelerate: cpu holds" in done.stderr


def test_two_sharded_ranks_under_the_sampler(memplan, plan_file, llama):
    """Torchrun on gloo: the ranks' reports agree with the plan."""
    path = plan_file(planned(llama, *TRAIN, "--gpus", "2", "--strategy", "fsdp2"))
    done = memplan("run", "--engine", "torchrun", "--plan", path, "--", "--steps", "2")
    assert done.returncode == 0, done.stderr
    assert "rank 1 step 1" in done.stdout
    assert "ignored" not in done.stderr


def test_deepspeed_by_its_own_launcher(memplan, plan_file, llama, monkeypatch):
    """Its runner starts a process for each slot."""
    needs("deepspeed")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    path = plan_file(planned(llama, *TRAIN, "--gpus", "2", "--strategy", "zero2"))
    done = memplan("run", "--engine", "deepspeed", "--plan", path, "--", "--steps", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ignored" not in done.stderr


def test_an_engine_that_is_not_there_is_said_with_what_installs_it(memplan, plan_file, monkeypatch):
    """Nothing is started."""
    if importlib.util.find_spec("sglang") is not None:
        pytest.skip("sglang is installed")
    options = ("--runtime", "vllm", "--device", "24GiB", "--host-memory", "64GiB")
    path = plan_file(planned("llama-3.1-8b", *options))
    monkeypatch.setenv("PATH", "/nonexistent")
    done = memplan("run", "--engine", "sglang", "--plan", path)
    assert done.returncode == 2
    assert "error: sglang: sglang is not installed" in done.stderr
    assert "hint: pip install sglang" in done.stderr


def test_an_engine_needs_a_plan(memplan):
    """And says so in one line."""
    done = memplan("run", "--engine", "torchrun")
    assert done.returncode == 2
    assert "error: --engine starts a plan" in done.stderr
