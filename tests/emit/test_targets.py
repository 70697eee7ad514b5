"""Each target's files: what they say, that they name the plan, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml
from plans import arguments_of, emitted, planned

from memplan.emit.fsdp2 import check
from memplan.emit.targets import TARGETS, Gpu, engine_of, write
from memplan.emit.text import command_text, yaml_text
from memplan.errors import UsageError
from memplan.types import FrozenMap

pytestmark = pytest.mark.models

MODEL = "llama-3.1-8b"
SERVE = ("--runtime", "vllm", "--device", "24GiB", "--host-memory", "64GiB", "--context", "4096")
TRAIN = ("--task", "train", "--device", "h100", "--host-memory", "64GiB", "--seq", "2048")
SHARDED = (*TRAIN, "--gpus", "8", "--strategy", "fsdp2")


def test_yaml_is_read_back_as_it_was_written():
    """Nested mappings, lists, strings that look like something else, and blocks of text."""
    value = {
        "a": {"b": [1, 2.5, True, None, "no", "on: off", "x y", ""], "c": {}},
        "script": 'echo "$A"\nexit 1\n',
        "list": [{"x": 1, "y": [1]}, {"z": "1"}],
    }
    assert yaml.safe_load(yaml_text(value)) == value


def test_a_command_can_be_read_and_is_the_same_command():
    """An option with its value a line; a variable of the shell stays one."""
    words = ["run", "sub", "--a", "b c", "--flag", "--n", "1", "$HOST:1", "it's"]
    text = command_text(words)
    assert arguments_of("\nexec " + text) == words
    assert '"$HOST:1"' in text
    assert "\n  --n 1" in text


def test_vllm_is_told_every_size_of_the_plan():
    """Lengths, the cache's bytes with one page that it keeps for itself, and the share to claim."""
    plan = planned(MODEL, *SERVE, "--batch", "4")
    text = write("vllm", plan, None)["vllm.sh"]
    words = arguments_of(text)
    given = dict(zip(words[3::2], words[4::2], strict=True))
    cache = plan.devices[0].parts["kv_cache"]
    assert words[:3] == ["vllm", "serve", "meta-llama/Meta-Llama-3.1-8B"]
    assert given["--max-model-len"] == "4096"
    assert given["--max-num-seqs"] == "4"
    assert int(given["--kv-cache-memory-bytes"]) == cache + cache // (4 * 4096 // 16)
    capacity = plan.devices[0].capacity_bytes
    assert float(given["--gpu-memory-utilization"]) >= plan.devices[0].total_bytes / capacity
    assert text.splitlines()[1].startswith("# memplan ")


def test_a_training_is_refused_by_servers_and_a_server_by_trainings():
    """Each with the target that can do it."""
    train, serve = planned(MODEL, *SHARDED), planned(MODEL, *SERVE)
    expected = {"vllm": "fsdp2", "sglang": "fsdp2", "accelerate": "fsdp2"}
    for target, better in expected.items():
        with pytest.raises(UsageError, match="it trains") as caught:
            write(target, train, None) if target != "accelerate" else emitted(
                target, MODEL, *SHARDED
            )
        assert caught.value.hint == f"memplan emit PLAN --to {better}"
    for target in ("fsdp2", "deepspeed"):
        with pytest.raises(UsageError, match="does not train") as caught:
            write(target, serve, None)
        assert caught.value.hint == "memplan emit PLAN --to vllm"


@pytest.mark.parametrize(
    ("target", "strategy", "better"),
    [
        ("fsdp2", "zero3", "deepspeed"),
        ("fsdp2", "ddp", "torchrun"),
        ("deepspeed", "fsdp2", "fsdp2"),
        ("deepspeed", "tp", "torchrun"),
        ("torchrun", "zero2", "deepspeed"),
    ],
)
def test_another_strategy_is_sent_to_its_target(target, strategy, better):
    """By name."""
    with pytest.raises(UsageError, match=f"strategy is {strategy}") as caught:
        emitted(target, MODEL, *TRAIN, "--gpus", "8", "--strategy", strategy)
    assert caught.value.hint.endswith(f"--to {better}")


def test_a_quantization_that_is_made_offline_is_refused_with_the_tool():
    """GPTQ weights do not come from plain ones while loading."""
    with pytest.raises(UsageError, match="made offline") as caught:
        emitted("transformers", MODEL, "--device", "24GiB", "--quant", "gptq-4bit-g128")
    assert "GPTQModel" in caught.value.hint


def test_accelerates_file_for_fsdp2():
    """Processes, machines and arithmetic; checkpointing by FSDP's own switch alone."""
    files = emitted(
        *("fsdp2", MODEL, *TRAIN, "--gpus", "16", "--nodes", "2"),
        *("--precision", "bf16-mixed", "--checkpointing", "full"),
    )
    config = yaml.safe_load(files["fsdp2.yaml"])
    assert (config["num_processes"], config["num_machines"]) == (16, 2)
    assert config["mixed_precision"] == "bf16"
    assert config["fsdp_config"]["fsdp_activation_checkpointing"] is True
    assert json.loads(files["sft_config.json"])["gradient_checkpointing"] is False
    assert files["fsdp2.yaml"].startswith("# memplan ")


def test_accelerates_plugin_takes_the_keys_and_the_file_loads():
    """FullyShardedDataParallelPlugin by each key; the loader of the file by the whole of it."""
    import inspect

    from accelerate.utils import FullyShardedDataParallelPlugin

    config = yaml.safe_load(emitted("fsdp2", MODEL, *SHARDED)["fsdp2.yaml"])["fsdp_config"]
    names = {"fsdp_offload_params": "cpu_offload", "fsdp_version": "fsdp_version"}
    arguments = {names.get(k, k.removeprefix("fsdp_")): value for k, value in config.items()}
    taken = inspect.signature(FullyShardedDataParallelPlugin).parameters
    assert arguments.keys() <= taken.keys()
    plugin = FullyShardedDataParallelPlugin(**arguments)
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True


def test_accelerates_own_loader_reads_the_file(tmp_path):
    """It refuses unknown keys at the top."""
    from accelerate.commands.config.config_args import load_config_from_file

    path = tmp_path / "fsdp2.yaml"
    text = emitted("fsdp2", MODEL, *SHARDED)["fsdp2.yaml"]
    path.write_text(text)
    assert load_config_from_file(str(path)).num_processes == 8
    path.write_text(text + "numprocesses: 8\n")
    with pytest.raises(ValueError, match="numprocesses"):
        load_config_from_file(str(path))


@pytest.mark.parametrize("typo", [{"fsdp_ofload_params": True}, {"fsdp_version": 7}])
def test_what_accelerate_would_swallow_is_refused(typo):
    """Misspelt keys and versions inside fsdp_config."""
    with pytest.raises(UsageError, match=next(iter(typo))):
        check(typo)


def test_zero_says_every_number_and_nothing_is_auto():
    """DeepSpeed's defaults would move with its version; the plan counted with these."""
    plan = planned(MODEL, *TRAIN, "--gpus", "8", "--strategy", "zero3", "--grad-accum", "2")
    files = write("deepspeed", plan, None)
    config = json.loads(files["ds_config.json"])
    assert config["train_batch_size"] == 16
    assert config["zero_optimization"]["stage"] == 3
    assert config["bf16"]["bf16_optimizer_states"] is True
    assert "auto" not in files["ds_config.json"]
    assert config["memplan"]["plan"] == "not saved"


def test_what_lies_beside_the_gpus_becomes_an_offload_section():
    """Optimizer states in host memory, weights on disk."""
    plan = planned(MODEL, *TRAIN, "--gpus", "2", "--strategy", "zero3")
    books = list(plan.devices)
    for kind, part in (("cpu", "optimizer"), ("disk", "weights")):
        index = next(i for i, x in enumerate(books) if x.kind == kind)
        books[index] = replace(books[index], parts=FrozenMap({part: 1 << 30}))
    moved = replace(plan, devices=tuple(books))
    zero = json.loads(write("deepspeed", moved, None)["ds_config.json"])["zero_optimization"]
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert zero["offload_param"]["device"] == "nvme"
    assert zero["offload_param"]["buffer_count"] == 5


def test_torchrun_on_several_machines():
    """The same line on each, a rendezvous at the first one, as many ranks on each."""
    files = emitted("torchrun", MODEL, *TRAIN, "--gpus", "16", "--nodes", "2")
    words = arguments_of(files["launch.sh"])
    assert words[words.index("--nproc-per-node") + 1] == "8"
    assert words[words.index("--nnodes") + 1] == "2"
    assert words[words.index("--rdzv-endpoint") + 1] == "$MASTER_ADDR:29500"
    settings = json.loads(files["torchrun.json"])
    assert settings["groups"][-2:] == ["model.embed_tokens", "lm_head"]
    assert len(settings["groups"]) == 34
    compile(files["train.py"], "train.py", "exec")


def test_ranks_that_machines_share_unequally_are_refused():
    """No launcher takes one line for both."""
    plan = planned(MODEL, *TRAIN, "--gpus", "6", "--strategy", "zero2")
    with pytest.raises(UsageError, match="not the same number"):
        write("deepspeed", replace(plan, workload=replace(plan.workload, nodes=4)), None)


def test_adapters_in_two_dtypes_are_no_fsdp_group():
    """Float32 adapters on a bfloat16 base; bfloat16 ones are taken."""
    options = (*SHARDED, "--method", "lora")
    with pytest.raises(UsageError, match="one dtype") as caught:
        emitted("torchrun", MODEL, *options)
    assert "--lora-dtype bf16" in caught.value.hint
    files = emitted("torchrun", MODEL, *options, "--lora-dtype", "bf16")
    assert json.loads(files["torchrun.json"])["lora"]["target_modules"] == "all-linear"


def test_a_containers_resources():
    """Requests equal limits; the resource's name is that of the maker's plugin."""
    plan = planned(MODEL, *TRAIN, "--gpus", "8")
    gpu = Gpu(vendor="AMD", label="MI300X", name="mi300x")
    block = yaml.safe_load(write("kubernetes", plan, None, gpu)["kubernetes.yaml"])["resources"]
    assert block["requests"] == block["limits"]
    assert block["limits"]["amd.com/gpu"] == 8
    host = next(x for x in plan.devices if x.kind == "cpu")
    assert int(block["limits"]["memory"].removesuffix("Mi")) * 2**20 >= host.high_bytes
    with pytest.raises(UsageError, match="Apple"):
        write("kubernetes", plan, None, replace(gpu, vendor="Apple"))


def test_bundles_of_one_and_of_several_machines():
    """A bundle a GPU on one node, or a bundle a machine, each on a node of its own."""
    one = json.loads(emitted("ray", MODEL, *TRAIN, "--gpus", "4")["ray.json"])
    assert (one["strategy"], len(one["bundles"]), one["bundles"][0]["GPU"]) == ("STRICT_PACK", 4, 1)
    two = json.loads(emitted("ray", MODEL, *TRAIN, "--gpus", "16", "--nodes", "2")["ray.json"])
    assert (two["strategy"], len(two["bundles"]), two["bundles"][0]["GPU"]) == (
        "STRICT_SPREAD",
        2,
        8,
    )


def test_a_task_for_clouds_needs_a_products_name():
    """A size alone cannot be rented."""
    files = emitted("skypilot", MODEL, *TRAIN, "--gpus", "16", "--nodes", "2")
    task = yaml.safe_load(files["sky.yaml"])
    assert task["num_nodes"] == 2
    assert task["resources"]["accelerators"] == "H100:8"
    assert "launch.sh" in task["run"]
    assert "launch.sh" in files
    with pytest.raises(UsageError, match="by name"):
        emitted("skypilot", MODEL, *SERVE)


def test_every_target_is_offered_and_every_plan_has_an_engine():
    """The command's list is the registry's."""
    from memplan.cli.emit import emit

    target = next(p for p in emit.params if p.name == "target")
    assert tuple(target.type.choices) == tuple(TARGETS)
    assert engine_of(planned(MODEL, *SERVE)) == "vllm"
    assert engine_of(planned(MODEL, *SHARDED)) == "torchrun"


def test_a_model_that_the_catalogue_has_no_address_of_is_named_at_the_end():
    """--model says what the files load; without it the hint does."""
    from memplan.cli.emit import written_for

    plan = planned("gemma3-1b", *SERVE)
    assert plan.model.path is None
    with pytest.raises(UsageError, match="which folder or Hub id") as caught:
        written_for("vllm", plan)
    assert "--model FOLDER" in caught.value.hint
    words = arguments_of(written_for("vllm", plan, model="google/gemma-3-1b-it")["vllm.sh"])
    assert words[2] == "google/gemma-3-1b-it"
