"""Plan -> accelerate's config file for FSDP2, and the Trainer's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.emit.peft import adapter_file
from memplan.emit.text import comment, json_text, refuse, yaml_text
from memplan.emit.training import (
    Layout,
    layout,
    offloaded_to,
    require_training,
    trainer_arguments,
)
from memplan.errors import UsageError
from memplan.parallel.grid import grid_of
from memplan.parallel.types import ShardOptions
from memplan.types import Plan

__all__ = ["FSDP_KEYS", "PARALLELISM_KEYS", "check", "files"]

FSDP_KEYS: Mapping[str, type | tuple[Any, ...]] = {
    "fsdp_version": (2,),
    "fsdp_auto_wrap_policy": ("TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP"),
    "fsdp_transformer_layer_cls_to_wrap": str,
    "fsdp_min_num_params": int,
    "fsdp_reshard_after_forward": bool,
    "fsdp_offload_params": bool,
    "fsdp_state_dict_type": ("SHARDED_STATE_DICT", "FULL_STATE_DICT"),
    "fsdp_activation_checkpointing": bool,
    "fsdp_cpu_ram_efficient_loading": bool,
}
"""Keys of `fsdp_config` and their values: accelerate 1.15 takes any misspelt key there."""

PARALLELISM_KEYS = frozenset(
    f"parallelism_config_{name}_size" for name in ("dp_replicate", "dp_shard", "tp", "cp", "sp")
)
"""Keys of `parallelism_config` that are written."""


def check(config: Mapping[str, Any]) -> None:
    """Refuse a key or value of `fsdp_config` that FSDP2 does not have. Raises UsageError."""
    for name, value in config.items():
        allowed = FSDP_KEYS.get(name)
        if allowed is None:
            raise UsageError(
                f"fsdp_config has no key {name!r}", hint="one of: " + ", ".join(FSDP_KEYS)
            )
        fits = value in allowed if isinstance(allowed, tuple) else type(value) is allowed
        if not fits:
            raise UsageError(f"fsdp_config: {name} cannot be {value!r}", hint=f"one of: {allowed}")


def files(plan: Plan) -> dict[str, str]:
    """Return file name -> content: fsdp2.yaml and sft_config.json.

    Layers are wrapped by the model's own `_no_split_modules`, which accelerate reads where no
    class is named.

    Raises UsageError for plans of another strategy.
    """
    require_training("fsdp2", plan)
    work = plan.workload
    if work.strategy != "fsdp2":
        better = "deepspeed" if (work.strategy or "").startswith("zero") else "torchrun"
        raise refuse("fsdp2", plan, f"its strategy is {work.strategy or 'one GPU'}", better=better)
    if work.pp > 1 or work.ep > 1:
        raise refuse(
            "fsdp2",
            plan,
            "accelerate has no pipeline and no expert parallelism",
            hint="plan with --tp, --cp or --dp alone",
        )
    own = _fsdp_config(plan)
    check(own)
    ranks = layout(plan, "fsdp2")
    text = comment(
        plan,
        "accelerate",
        f"accelerate launch --config_file fsdp2.yaml train.py   # on each of {ranks.nodes} machines"
        if ranks.nodes > 1
        else "accelerate launch --config_file fsdp2.yaml train.py",
        f"weights are loaded in {work.dtype}; a rank holds the plan's bytes only with the",
        "arguments of sft_config.json (TRL's SFTConfig, or Trainer's)",
    )
    return {
        **adapter_file(plan),
        "fsdp2.yaml": text + yaml_text(_config(plan, ranks, own)),
        "sft_config.json": json_text(
            # FSDP's own switch is on instead: the Trainer refuses both at once.
            trainer_arguments(plan, "fsdp2") | {"gradient_checkpointing": False}
        ),
    }


def _fsdp_config(plan: Plan) -> dict[str, Any]:
    return {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_reshard_after_forward": ShardOptions().reshard_after_forward,
        "fsdp_offload_params": offloaded_to(plan, "weights") == "cpu",
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_activation_checkpointing": plan.workload.checkpointing == "full",
        "fsdp_cpu_ram_efficient_loading": True,
    }


def _config(plan: Plan, ranks: Layout, own: Mapping[str, Any]) -> dict[str, Any]:
    work = plan.workload
    mixed = {"bf16-mixed": "bf16", "fp16-mixed": "fp16"}.get(work.precision or "", "no")
    config: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": "FSDP",
        "downcast_bf16": "no",
        "enable_cpu_affinity": False,
        "fsdp_config": dict(own),
        "machine_rank": 0,
        "main_training_function": "main",
        "mixed_precision": mixed,
        "num_machines": ranks.nodes,
        "num_processes": ranks.processes,
        "rdzv_backend": "c10d" if ranks.nodes > 1 else "static",
        "same_network": True,
        "use_cpu": False,
    }
    grid = grid_of(work)
    if grid.tp > 1 or grid.cp > 1:
        config["parallelism_config"] = {
            "parallelism_config_dp_replicate_size": 1,
            "parallelism_config_dp_shard_size": grid.dp,
            "parallelism_config_tp_size": grid.tp,
            "parallelism_config_cp_size": grid.cp,
        }
        config["use_parallelism_config"] = True
    return config
