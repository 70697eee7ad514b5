"""What the training targets share: processes, optimizers, adapters, Trainer's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memplan.emit.text import gpu_ledgers, refuse
from memplan.footprint.defaults import ADAPTER_METHODS
from memplan.types import Plan

__all__ = [
    "TRAINER_OPTIMIZERS",
    "Layout",
    "layout",
    "lora_config",
    "offloaded_to",
    "require_training",
    "trainer_arguments",
]

TRAINER_OPTIMIZERS: Mapping[str, dict[str, Any]] = {
    "adamw": {"optim": "adamw_torch"},
    "adamw-foreach": {"optim": "adamw_torch", "optim_args": "foreach=True"},
    "adamw-for-loop": {"optim": "adamw_torch", "optim_args": "foreach=False"},
    "adamw-fused": {"optim": "adamw_torch_fused"},
    "adamw-8bit": {"optim": "adamw_8bit"},
    "paged-adamw": {"optim": "paged_adamw_32bit"},
    "paged-adamw-8bit": {"optim": "paged_adamw_8bit"},
    "lion": {"optim": "lion_32bit"},
    "lion-8bit": {"optim": "lion_8bit"},
    "adafactor": {"optim": "adafactor"},
    "adagrad": {"optim": "adagrad"},
    "rmsprop": {"optim": "rmsprop"},
    "sgd": {"optim": "sgd"},
    "adam": {"optim": "adamw_torch", "weight_decay": 0.0},
}
"""memplan's optimizer -> transformers' TrainingArguments (5.23, OptimizerNames). Adam is AdamW
without weight decay; Muon and SGD with momentum have no name there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which processes run where."""

    processes: int
    """Ranks in all."""
    nodes: int
    """Machines."""

    @property
    def per_node(self) -> int:
        """Ranks on each machine."""
        return self.processes // self.nodes


def layout(plan: Plan, target: str) -> Layout:
    """Return the processes of a plan, one for each GPU.

    Raises UsageError when the machines would hold different numbers of them, which no launcher
    here can be told by one line.
    """
    processes, nodes = max(len(gpu_ledgers(plan)), 1), plan.workload.nodes
    if processes % nodes:
        raise refuse(
            target,
            plan,
            f"{processes} GPUs are not the same number on each of {nodes} machines",
            hint="plan for a --gpus that --nodes divides",
        )
    return Layout(processes=processes, nodes=nodes)


def require_training(target: str, plan: Plan, *, better: str = "vllm") -> None:
    """Refuse a plan that does not train; `better` is what serves one that does not."""
    if plan.workload.task == "train":
        return
    served = {"vllm": "vllm", "llama.cpp": "llama.cpp", "transformers": "accelerate"}
    raise refuse(
        target,
        plan,
        "it generates, and does not train",
        better=served.get(plan.workload.runtime, better),
    )


def offloaded_to(plan: Plan, part: str) -> str:
    """Return where a rank's part lies beside the GPU: "none", "cpu" or "nvme"."""
    for ledger in plan.devices:
        if ledger.kind != "gpu" and ledger.parts.get(part, 0) > 0 and gpu_ledgers(plan):
            return "cpu" if ledger.kind == "cpu" else "nvme"
    return "none"


def lora_config(plan: Plan) -> dict[str, Any] | None:
    """Return PEFT's LoraConfig of a plan as JSON, or None when nothing is adapted.

    `lora_alpha` is twice the rank, PEFT's examples' choice: it takes no memory.
    """
    work = plan.workload
    if work.task != "train" or work.method not in ADAPTER_METHODS:
        return None
    assert work.lora_rank is not None
    names = work.lora_targets or "all-linear"
    targets: str | list[str] = names
    if names != "all-linear":
        targets = [name.strip() for name in names.split(",")]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": work.lora_rank,
        "lora_alpha": 2 * work.lora_rank,
        "lora_dropout": work.lora_dropout or 0.0,
        "target_modules": targets,
        "bias": "none",
        "use_rslora": work.method == "rslora",
        "use_dora": work.method == "dora",
    }


def trainer_arguments(plan: Plan, target: str) -> dict[str, Any]:
    """Return the arguments of TRL's SFTConfig (and Trainer's) by which the plan was made.

    `run_name` names the plan: a free text of TrainingArguments. What costs no memory (learning
    rate, steps, data) is left to the user.

    Raises UsageError for an optimizer or a checkpointing that the Trainer has no name for.
    """
    work = plan.workload
    assert work.optimizer is not None
    if work.optimizer not in TRAINER_OPTIMIZERS:
        raise refuse(
            target,
            plan,
            f"transformers' Trainer has no optimizer {work.optimizer}",
            hint="plan with --optimizer adamw, or memplan emit PLAN --to torchrun",
        )
    if work.checkpointing == "selective":
        raise refuse(target, plan, "the Trainer has no selective checkpointing", better="torchrun")
    mixed = work.precision or ""
    return {
        "run_name": f"memplan {plan.memplan_version}, plan {plan.id or 'not saved'}",
        "per_device_train_batch_size": work.batch,
        "gradient_accumulation_steps": work.grad_accum or 1,
        **({"per_device_eval_batch_size": work.eval_batch} if work.eval_batch else {}),
        **({"torch_compile": True} if work.compile else {}),
        "max_length": work.seq,
        "packing": work.data == "packed",
        "bf16": mixed == "bf16-mixed",
        "fp16": mixed == "fp16-mixed",
        "gradient_checkpointing": work.checkpointing == "full",
        "use_liger_kernel": work.loss == "chunked",
        **TRAINER_OPTIMIZERS[work.optimizer],
    }
