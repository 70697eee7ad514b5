"""The settings of the script that trains: what torchrun.json and train.json say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memplan.emit.accelerate import ATTENTION
from memplan.emit.text import json_text, model_and_revision, refuse, stamp
from memplan.emit.torchrun_script import SCRIPT
from memplan.emit.training import Layout, lora_config, offloaded_to
from memplan.parallel.grid import grid_of
from memplan.parallel.types import ShardOptions
from memplan.types import Plan

__all__ = ["OPTIMIZER_CLASSES", "script_files"]

OPTIMIZER_CLASSES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "adamw": ("torch.optim.AdamW", {}),
    "adamw-foreach": ("torch.optim.AdamW", {"foreach": True}),
    "adamw-for-loop": ("torch.optim.AdamW", {"foreach": False}),
    "adamw-fused": ("torch.optim.AdamW", {"fused": True}),
    "adam": ("torch.optim.Adam", {}),
    "adagrad": ("torch.optim.Adagrad", {}),
    "rmsprop": ("torch.optim.RMSprop", {}),
    "sgd": ("torch.optim.SGD", {}),
    "sgd-momentum": ("torch.optim.SGD", {"momentum": 0.9}),
    "adafactor": ("torch.optim.Adafactor", {}),
    "adamw-8bit": ("bitsandbytes.optim.AdamW8bit", {}),
    "paged-adamw": ("bitsandbytes.optim.PagedAdamW", {}),
    "paged-adamw-8bit": ("bitsandbytes.optim.PagedAdamW8bit", {}),
    "lion": ("bitsandbytes.optim.Lion", {}),
    "lion-8bit": ("bitsandbytes.optim.Lion8bit", {}),
}
"""memplan's optimizer -> its class and the arguments that the plan rests on."""


def script_files(
    plan: Plan, ranks: Layout, engine: str, *, settings: str, groups: Sequence[str] = ()
) -> dict[str, str]:
    """Return file name -> content: train.py and its settings.

    Args:
        plan: of a training.
        ranks: its processes.
        engine: a key of `VERSIONS`.
        settings: the settings' file name.
        groups: modules that FSDP2 makes groups of, besides the root.

    Raises UsageError for an optimizer that has no class here.
    """
    if plan.workload.optimizer not in OPTIMIZER_CLASSES:
        raise refuse(
            engine,
            plan,
            f"train.py has no optimizer {plan.workload.optimizer}",
            hint="plan with --optimizer adamw",
        )
    model, revision = model_and_revision(plan)
    said = stamp(plan, engine)
    values = {
        "memplan": said,
        "model": model,
        "revision": revision,
        "architecture": plan.model.architecture,
        **_settings(plan),
        "groups": list(groups),
    }
    script = SCRIPT.format(
        name=plan.model.name,
        ranks=ranks.processes,
        plan_id=said["plan"],
        version=said["version"],
        launch="launch.sh",
        settings=settings,
    )
    return {"train.py": script, settings: json_text(values)}


def _settings(plan: Plan) -> dict[str, Any]:
    work, grid, options = plan.workload, grid_of(plan.workload), ShardOptions()
    name, arguments = OPTIMIZER_CLASSES[str(work.optimizer)]
    config = lora_config(plan)
    fsdp = work.strategy == "fsdp2"
    mixed = "bfloat16" if work.precision == "bf16-mixed" else None
    return {
        "dtype": work.dtype,
        "attn_implementation": ATTENTION[work.attention],
        "strategy": work.strategy or "none",
        "tp": grid.tp,
        "dp": grid.dp,
        "gathered_in": mixed if fsdp and grid.tp == 1 else None,
        "reduced_in": options.reduce_dtype,
        "autocast": None if fsdp and grid.tp == 1 else mixed,
        "reshard_after_forward": options.reshard_after_forward,
        "offload": offloaded_to(plan, "weights") == "cpu",
        "checkpointing": work.checkpointing,
        "lora": {k: v for k, v in config.items() if k != "peft_type"} if config else None,
        "lora_dtype": work.lora_dtype,
        "optimizer": {"class": name, "arguments": arguments},
        "batch": work.batch,
        "seq": work.seq,
        "grad_accum": work.grad_accum or 1,
        "eval_batch": work.eval_batch,
        "compile": bool(work.compile),
    }
