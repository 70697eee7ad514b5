"""`memplan fit` as a user types it."""

from __future__ import annotations

import json

import pytest
from checkpoints import TINY, write_config
from goldens import check_golden

from memplan.cli.main import run
from memplan.cli.typed import plan_command, typed_text

BIG = ("fit", "qwen2.5-7b", "--device", "rtx3060", "--host-memory", "16GiB", "--disk", "0")


SMALL = ("fit", "qwen3-0.6b", "--device", "3GiB", "--host-memory", "16GiB", "--disk", "0")


def test_an_answer_reads_like_this(capsys):
    """A 7 B model on 12 GB."""
    assert run([*BIG, "--jobs", "1", "--plain"]) == 0
    check_golden("cli_fit.txt", capsys.readouterr().out)


def test_a_training_reads_like_this(capsys):
    """The same model's fine-tuning, by closed forms."""
    words = ["--task", "train", "--estimator", "formula", "--seq", "1024", "--gpus", "1"]
    words += ["--jobs", "1"]
    assert run([*BIG, *words, "--plain"]) == 0
    check_golden("cli_fit_train.txt", capsys.readouterr().out)


def test_the_json_is_this(capsys):
    """Keys of the schema."""
    assert run([*SMALL, "--jobs", "1", "--limit", "2", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == "memplan.fit/1"
    assert len(data["alternatives"]) == 2
    assert data["constraints"] == {
        "device": "3GiB",
        "host_memory": "16GiB",
        "disk": "0",
    }
    check_golden("cli_fit_keys.txt", "\n".join(sorted(_keys(data))) + "\n")


def _keys(value, where=""):
    if isinstance(value, dict):
        for key, item in value.items():
            if where in (".asked.workload", ".model", ".constraints") or key == "settings":
                continue
            yield f"{where}.{key}"
            yield from _keys(item, f"{where}.{key}")
    elif isinstance(value, list):
        for item in value:
            yield from set(_keys(item, f"{where}[]"))


def test_nothing_fits_is_exit_code_1_with_what_is_nearest(capsys):
    """The part that is too large, and constraints to let go of."""
    words = ["--quant", "none", "--runtime", "vllm", "--gpus", "1"]
    model = ["fit", "qwen3-0.6b", "--device", "1GiB", "--host-memory", "1GiB", "--disk", "0"]
    assert run([*model, *words, "--jobs", "1"]) == 1
    out = capsys.readouterr().out
    assert "DOES NOT FIT AS ASKED" in out
    assert "most of " in out
    assert "with one of them let go" in out


def test_quiet_prints_the_best_command_and_nothing_else(capsys):
    """For a script."""
    assert run([*SMALL, "--jobs", "1", "--limit", "1", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    assert captured.out.startswith("memplan plan qwen3-0.6b ")
    assert captured.err == ""


def test_the_chosen_plan_is_kept(capsys):
    """--save keeps line 1, --pick another; `emit` finds it as the last."""
    assert run([*SMALL, "--jobs", "1", "--limit", "2", "--save", "--pick", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["alternatives"]
    assert rows[0]["plan_id"] is None
    assert rows[1]["plan_id"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--pick", "2"], "add --save"),
        (["--sequences", "8"], "add --task train"),
        (["--save", "--pick", "9", "--limit", "1", "--jobs", "1"], "no line 9"),
        (["--runtime", "vllm", "--cache", "offloaded"], "belongs to transformers"),
        (["--limit", "0"], "not between 1"),
    ],
)
def test_what_does_not_go_together_is_said(words, text, capsys):
    """One line, one hint, exit code 2."""
    assert run([*SMALL, *words]) == 2
    assert text in capsys.readouterr().err


def test_a_model_that_is_not_there_is_an_error(capsys):
    """The error of `plan`."""
    assert run(["fit", "no-such-model", "--device", "8GiB"]) == 2
    assert "no model at" in capsys.readouterr().err


@pytest.mark.models
def test_what_is_printed_of_a_training_was_traced(tmp_path, capsys):
    """A tiny model on a GPU that its libraries nearly fill."""
    config = str(write_config(tmp_path / "tiny", {**TINY, "vocab_size": 4000}))
    words = ["--task", "train", "--device", "640MiB", "--seq", "128", "--limit", "1"]
    words += ["--method", "full", "--optimizer", "adamw", "--checkpointing", "none"]
    words += ["--loss", "full-logits"]
    assert run(["fit", config, *words, "--gpus", "1", "--jobs", "1", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    row = data["alternatives"][0]
    assert row["basis"] == "trace"
    batch = next(room["value"] for room in row["rooms"] if room["option"] == "batch")
    assert batch > 1
    command = row["command"].split()
    assert run([*command[1:], "--batch", str(batch), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert any(line["basis"] == "trace" for line in plan["footprint"]["lines"])


def test_commands_are_written_as_one_types_them():
    """Sizes get units, several devices repeat the option, None leaves it out."""
    given = {"device": ("24GiB", "8GiB"), "host_memory": 64 * 2**30, "quant": "nf4"}
    text = plan_command("./my model", given, {"quant": None, "batch": 4, "trust_remote_code": True})
    assert text == (
        "memplan plan './my model' --device 24GiB --device 8GiB --host-memory 64GiB --batch 4 "
        "--trust-remote-code"
    )
    assert typed_text("disk", 12345) == "12345"
    assert typed_text("reserve", 512 * 2**20) == "512MiB"
