"""Plan -> torchrun's argument line and a script that divides the model as planned."""

from __future__ import annotations

import re

from memplan.emit.text import (
    HERE,
    comment,
    refuse,
    shell_file,
)
from memplan.emit.train_settings import OPTIMIZER_CLASSES, script_files
from memplan.emit.training import (
    Layout,
    layout,
    lora_config,
    require_training,
)
from memplan.errors import UsageError
from memplan.footprint.estimate import trained_tensors
from memplan.parallel.grid import grid_of
from memplan.parallel.groups import Groups, fsdp_groups
from memplan.parallel.model import unit_of
from memplan.types import ModelSpec, Plan
from memplan.units import format_bytes

__all__ = ["PORT", "files", "launch_words"]

PORT = 29500
"""Of the rendezvous on the first machine: torchrun's own default."""

_WHOLE_TENSORS = ("bitsandbytes.", "torch.optim.Adafactor")
"""Classes that do not take the parts of a divided tensor (DTensor)."""

_STRATEGIES = (None, "ddp", "fsdp2", "tp")


def files(plan: Plan, spec: ModelSpec) -> dict[str, str]:
    """Return file name -> content: launch.sh, train.py and torchrun.json.

    Args:
        plan: of a training on one GPU, or by DDP, FSDP2 or tensor parallelism.
        spec: the built model (`exact_modules`): its layers are named in torchrun.json.

    Raises UsageError for what the script does not do.
    """
    require_training("torchrun", plan)
    _require(plan)
    ranks = layout(plan, "torchrun")
    groups = _groups(plan, spec)
    names = [*_layers(spec), *groups.modules] if plan.workload.strategy == "fsdp2" else []
    head = comment(plan, "torch", *_remarks(ranks, groups, plan.workload.tp))
    return {
        "launch.sh": shell_file(head, launch_words(ranks, plan.id), environment=_rendezvous(ranks)),
        **script_files(plan, ranks, "torch", settings="torchrun.json", groups=names),
    }


def launch_words(ranks: Layout, plan_id: str | None, script: str = HERE + "/train.py") -> list[str]:
    """Return torchrun's argument line on each machine.

    One machine: a free port of its own (--standalone). Several: each runs the same line, and
    MASTER_ADDR names the first one (c10d rendezvous; ranks follow the order of arrival).
    """
    head = ["torchrun", "--nproc-per-node", str(ranks.per_node)]
    if ranks.nodes == 1:
        return [*head, "--standalone", script]
    return [
        *head,
        *("--nnodes", str(ranks.nodes)),
        *("--rdzv-backend", "c10d"),
        *("--rdzv-endpoint", f"$MASTER_ADDR:{PORT}"),
        *("--rdzv-id", plan_id or "memplan"),
        script,
    ]


def _rendezvous(ranks: Layout) -> dict[str, str]:
    return {"OMP_NUM_THREADS": "1"} if ranks.processes > 1 else {}


def _remarks(ranks: Layout, groups: Groups, tp: int) -> list[str]:
    found = []
    if tp > ranks.per_node:
        found.append(f"tp {tp} crosses machines of {ranks.per_node} GPUs: every layer waits for it")
    if ranks.nodes > 1:
        found.append(
            f"run on each of {ranks.nodes} machines with MASTER_ADDR set to the first one's name"
        )
    if groups.modules:
        found.append(
            f"{' and '.join(groups.modules)} are groups of their own: a rank gathers "
            f"{format_bytes(groups.bytes)} at most, not {format_bytes(groups.root_bytes)}"
        )
    return found


def _require(plan: Plan) -> None:
    work = plan.workload
    if work.strategy not in _STRATEGIES:
        if (work.strategy or "").startswith("zero"):
            raise refuse("torchrun", plan, f"its strategy is {work.strategy}", better="deepspeed")
        raise _no_script(plan, f"its strategy is {work.strategy}")
    if work.pp > 1 or work.ep > 1 or work.cp > 1:
        raise _no_script(plan, "the script divides by dp and tp, not by pp, ep or cp")
    if work.quant != "none":
        raise refuse("torchrun", plan, f"its base is {work.quant}", better="peft")
    if work.optimizer is None or work.optimizer not in OPTIMIZER_CLASSES:
        raise _no_script(plan, f"the script has no optimizer {work.optimizer}")
    name = OPTIMIZER_CLASSES[work.optimizer][0]
    if work.strategy in ("fsdp2", "tp") and name.startswith(_WHOLE_TENSORS):
        raise _no_script(plan, f"{name} does not take divided tensors")
    if work.precision == "fp16-mixed":
        raise _no_script(plan, "the script does not scale float16 losses")
    if work.loss == "chunked":
        raise _no_script(plan, "the script computes all logits at once")
    _require_adapters(plan)


def _require_adapters(plan: Plan) -> None:
    work, config = plan.workload, lora_config(plan)
    if config is None or work.strategy not in ("fsdp2", "tp"):
        return
    if work.strategy == "tp" or work.tp > 1:
        raise _no_script(plan, "the script puts no adapters on divided layers")
    if work.lora_dtype != work.dtype:
        raise refuse(
            "torchrun",
            plan,
            f"FSDP2 takes one dtype in a group, and adapters are {work.lora_dtype}",
            hint="plan with --lora-dtype bf16, or memplan emit PLAN --to peft",
        )


def _no_script(plan: Plan, why: str) -> UsageError:
    return refuse(
        "torchrun", plan, why, hint="plan with --strategy fsdp2 and adamw, or see docs/engines.md"
    )


def _layers(spec: ModelSpec) -> list[str]:
    """Return the numbered layers, each once: the model's stack, and a tower's where it has one."""
    names = (unit_of(t.name) for t in spec.tensors if t.kind == "parameter")
    return list(dict.fromkeys(re.sub(r"^base_model\.model\.", "", n) for n in names if n))


def _groups(plan: Plan, spec: ModelSpec) -> Groups:
    work = plan.workload
    if work.strategy != "fsdp2" or grid_of(work).tp > 1:
        return Groups(modules=(), bytes=0, root_bytes=0)
    trained = frozenset(tensor.name for tensor in trained_tensors(spec, work))
    mixed = "bfloat16" if work.precision == "bf16-mixed" else None
    return fsdp_groups(spec.tensors, work, trainable=trained, mixed=mixed)
