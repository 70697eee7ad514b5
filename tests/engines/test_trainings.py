"""The scripts of trainings, started by their own launchers on gloo: each rank holds its plan."""

from __future__ import annotations

import json
import sys

import pytest
from plans import needs, planned

from memplan.cli.emit import write_files, written_for
from memplan.emit.launch import ignored

pytestmark = [pytest.mark.engines, pytest.mark.filterwarnings("ignore")]  # theirs

WORK = ("--task", "train", "--seq", "16", "--device", "1GiB", "--precision", "fp32")


def carried_out(run_program, folder, target, plan, *arguments):
    """Start the launch script that was written for a plan; return what each rank reported."""
    write_files(written_for(target, plan), folder, force=False)
    run_program("sh", folder / "launch.sh", "--steps", 1, "--report", folder / "r", *arguments)
    files = sorted((folder / "r").glob("*.json"))
    return [json.loads(file.read_text()) for file in files]


def held(report, part):
    return sum(report[part].values())


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_fully_sharded_ranks_hold_what_is_planned(run_program, tmp_path, llama, ranks):
    """Weights, gradients and AdamW's states of every rank, to the byte."""
    gpus = ("--gpus", ranks, "--strategy", "fsdp2") if ranks > 1 else ()
    plan = planned(llama, *WORK, *gpus)
    reports = carried_out(run_program, tmp_path / "out", "torchrun", plan)
    assert len(reports) == ranks
    assert ignored(plan, reports) is None
    for report in reports:
        ledger = plan.devices[report["rank"]].parts
        for part in ("weights", "gradients", "optimizer"):
            assert held(report, part) == ledger[part], part


def test_bf16_arithmetic_over_float32_parts(run_program, tmp_path, llama):
    """MixedPrecisionPolicy leaves what is kept as it is."""
    work = [word if word != "fp32" else "bf16-mixed" for word in WORK]
    plan = planned(llama, *work, "--gpus", 2, "--strategy", "fsdp2", "--checkpointing", "full")
    reports = carried_out(run_program, tmp_path / "out", "torchrun", plan)
    assert ignored(plan, reports) is None
    assert held(reports[0], "weights") == plan.devices[0].parts["weights"]


def test_divided_layers_follow_transformers_own_plan(run_program, tmp_path, llama):
    """--strategy tp: local weights are exact."""
    plan = planned(llama, *WORK, "--gpus", 2, "--strategy", "tp")
    reports = carried_out(run_program, tmp_path / "out", "torchrun", plan)
    assert [held(r, "weights") for r in reports] == [
        plan.devices[i].parts["weights"] for i in range(2)
    ]


def test_a_compiled_model_is_evaluated_between_steps(run_program, tmp_path, llama):
    """--compile and --eval-batch: both happen on each rank, which holds what is planned."""
    more = ("--gpus", 2, "--strategy", "fsdp2", "--compile", "--eval-batch", 3)
    plan = planned(llama, *WORK, *more)
    write_files(written_for("torchrun", plan), tmp_path / "out", force=False)
    done = run_program(
        *("sh", tmp_path / "out" / "launch.sh", "--steps", 2, "--report", tmp_path / "r"),
        environment={"TORCH_LOGS": "output_code"},
    )
    assert done.stdout.count("evaluation loss") == 2
    assert "Output code" in done.stderr
    report = json.loads((tmp_path / "r" / "0.json").read_text())
    for part in ("weights", "gradients", "optimizer"):
        assert held(report, part) == plan.devices[0].parts[part], part


def test_a_script_that_does_something_else_is_found_out(run_program, tmp_path, llama):
    """A plan for two ranks against the reports of one: the check can fail."""
    plan = planned(llama, *WORK)
    reports = carried_out(run_program, tmp_path / "out", "torchrun", plan)
    other = planned(llama, *WORK, "--gpus", 2, "--strategy", "fsdp2")
    assert "1 processes reported" in ignored(other, reports)
    assert "weights, planned" in ignored(other, [reports[0], {**reports[0], "rank": 1}])


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_deepspeed_takes_its_config_and_holds_what_is_planned(
    run_program, tmp_path, llama, strategy
):
    """Its strict config parses, and a real step of two processes keeps the planned states."""
    needs("deepspeed")
    plan = planned(llama, *WORK, "--gpus", 2, "--strategy", strategy)
    folder = tmp_path / "out"
    write_files(written_for("deepspeed", plan), folder, force=False)
    run_program(
        *("torchrun", "--standalone", "--nproc-per-node", 2, folder / "train.py"),
        *("--steps", 1, "--report", folder / "r"),
    )
    for rank in range(2):
        report = json.loads((folder / "r" / f"{rank}.json").read_text())
        for part in ("weights", "optimizer"):
            planned_bytes = plan.devices[rank].parts[part]
            assert held(report, part) == pytest.approx(planned_bytes, rel=0.05, abs=4096), part


def test_deepspeed_would_refuse_a_typo(run_program, tmp_path, llama):
    """The check of its config can fail."""
    needs("deepspeed")
    plan = planned(llama, *WORK, "--gpus", 2, "--strategy", "zero2")
    config = json.loads(written_for("deepspeed", plan)["ds_config.json"])
    config["zero_optimization"]["reduce_bucket"] = 1
    program = (
        "import json, sys, deepspeed.runtime.zero.config as c;"
        "c.DeepSpeedZeroConfig(**json.loads(sys.argv[1]))"
    )
    text = json.dumps(config["zero_optimization"])
    done = run_program(sys.executable, "-c", program, text, check=False)
    assert done.returncode != 0
    assert "reduce_bucket" in done.stderr


@pytest.mark.parametrize("method", [(), ("--method", "lora", "--lora-rank", "4")])
def test_trl_takes_the_arguments(tmp_path, llama, method):
    """SFTConfig of sft_config.json, and it names the plan."""
    needs("trl")
    from trl import SFTConfig

    target = "peft" if method else "fsdp2"
    more = method or ("--gpus", "2", "--strategy", "fsdp2")
    plan = planned(llama, *WORK, *more)
    arguments = json.loads(written_for(target, plan)["sft_config.json"])
    config = SFTConfig(output_dir=str(tmp_path), use_cpu=True, **arguments)
    assert config.max_length == 16
    assert "plan not saved" in config.run_name
    with pytest.raises(TypeError):
        SFTConfig(output_dir=str(tmp_path), max_seq_length=16)
