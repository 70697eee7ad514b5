"""Plan -> DeepSpeed's ZeRO config, its hostfile and launch line, and the Trainer's arguments."""

from __future__ import annotations

from typing import Any

from memplan.emit.peft import adapter_file
from memplan.emit.text import HERE, comment, json_text, refuse, shell_file, stamp
from memplan.emit.train_settings import script_files
from memplan.emit.training import layout, offloaded_to, require_training, trainer_arguments
from memplan.parallel.grid import grid_of
from memplan.parallel.types import ShardOptions
from memplan.types import Plan

__all__ = ["files"]

_STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}

MAX_GRAD_NORM = 1.0
"""The Trainer's default: both files must agree, and no byte depends on it."""

NVME_FOLDER = "/tmp/deepspeed"  # noqa: S108 - what DeepSpeed's own examples name
"""Where swapped tensors go when the plan puts them on disk; the user sets a fast drive's folder."""


def files(plan: Plan) -> dict[str, str]:
    """Return file name -> content: the config, scripts, the Trainer's arguments, a hostfile.

    Every number that the plan counted with is written out and nothing is "auto": the file is good
    for deepspeed.initialize as it is, and the Trainer refuses arguments that contradict it.

    Raises UsageError for plans of another strategy, and for pipelines and divided layers.
    """
    require_training("deepspeed", plan)
    work = plan.workload
    if work.strategy not in _STAGES:
        better = "fsdp2" if work.strategy == "fsdp2" else "torchrun"
        name = work.strategy or "one GPU"
        raise refuse("deepspeed", plan, f"its strategy is {name}, not ZeRO", better=better)
    if max(work.tp, work.pp, work.cp, work.ep) > 1:
        raise refuse(
            "deepspeed",
            plan,
            "the file says ZeRO alone, no tp, pp, cp or ep",
            hint="plan without --tp, --pp, --cp and --ep, or with --strategy fsdp2",
        )
    ranks = layout(plan, "deepspeed")
    words = ["deepspeed", "--num_nodes", "1", "--num_gpus", str(ranks.per_node)]
    found = {
        **adapter_file(plan),
        "ds_config.json": json_text(_config(plan)),
        "sft_config.json": json_text(
            trainer_arguments(plan, "deepspeed")
            | {"max_grad_norm": MAX_GRAD_NORM, "deepspeed": "ds_config.json"}
        ),
    }
    if ranks.nodes > 1:
        words = ["deepspeed", "--hostfile", HERE + "/hostfile"]
        hosts = "".join(f"node{i} slots={ranks.per_node}\n" for i in range(ranks.nodes))
        head = comment(plan, "deepspeed", "the machines' names: ssh must reach each of them")
        found["hostfile"] = head + hosts
    found |= script_files(plan, ranks, "deepspeed", settings="train.json")
    use = comment(
        plan,
        "deepspeed",
        "train.py takes steps on random tokens; a script of your own takes sft_config.json's",
        "arguments and --deepspeed ds_config.json",
    )
    return found | {"launch.sh": shell_file(use, [*words, HERE + "/train.py"])}


def _config(plan: Plan) -> dict[str, Any]:
    work = plan.workload
    batch, steps = work.batch, work.grad_accum or 1
    return {
        "memplan": stamp(plan, "deepspeed"),
        "train_micro_batch_size_per_gpu": batch,
        "gradient_accumulation_steps": steps,
        "train_batch_size": batch * steps * grid_of(work).dp,
        "gradient_clipping": MAX_GRAD_NORM,
        **_precision(work.precision or ""),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": _zero(plan),
    }


def _precision(name: str) -> dict[str, Any]:
    """Return the arithmetic: "bf16" keeps masters and states in bfloat16, "-mixed" in float32."""
    if name == "bf16":
        both = {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
        return {"bf16": {"enabled": True, **both}}
    if name == "bf16-mixed":
        return {"bf16": {"enabled": True}}
    if name == "fp16-mixed":
        return {"fp16": {"enabled": True}}
    return {"bf16": {"enabled": False}, "fp16": {"enabled": False}}


def _zero(plan: Plan) -> dict[str, Any]:
    stage, options = _STAGES[str(plan.workload.strategy)], ShardOptions()
    zero: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": options.reduce_bucket_size,
        "overlap_comm": stage == 3 if options.overlap_comm is None else options.overlap_comm,
    }
    if stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": options.stage3_prefetch_bucket_size,
            "stage3_param_persistence_threshold": options.stage3_param_persistence_threshold,
            "stage3_max_live_parameters": options.stage3_max_live_parameters,
            "sub_group_size": options.sub_group_size,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    states = offloaded_to(plan, "optimizer")
    if states != "none":
        zero["offload_optimizer"] = _offload(states, buffers=options.swap_buffers)
    weights = offloaded_to(plan, "weights") if stage == 3 else "none"
    if weights != "none":
        zero["offload_param"] = _offload(weights, buffers=options.param_buffers)
        if weights == "nvme":
            zero["offload_param"] |= {
                "buffer_size": options.param_buffer_size,
                "max_in_cpu": options.param_max_in_cpu,
            }
    return zero


def _offload(where: str, *, buffers: int) -> dict[str, Any]:
    section: dict[str, Any] = {"device": where, "pin_memory": True}
    if where == "nvme":
        section |= {"nvme_path": NVME_FOLDER, "buffer_count": buffers}
    return section
