"""Every target of `memplan emit`: what it is called, what it writes, what it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from memplan.emit import (
    accelerate,
    cluster,
    deepspeed,
    fsdp2,
    llamacpp,
    peft,
    sglang,
    torchrun,
    transformers,
    vllm,
)
from memplan.emit.text import refuse
from memplan.errors import UsageError
from memplan.types import ModelSpec, Plan

__all__ = ["TARGETS", "Gpu", "Target", "engine_of", "write"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """What the table of devices knows of a plan's GPUs."""

    vendor: str
    """Who makes them."""
    label: str
    """The product's name: "NVIDIA H100 SXM 80 GB"."""
    name: str
    """What people type: "h100"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One target."""

    files: Callable[[Plan, ModelSpec | None, Gpu | None], dict[str, str]]
    """(plan, built model or None, GPU or None) -> file name -> content."""
    needs_model: bool = False
    """Is the model built again, for the names of its modules."""


def _built(spec: ModelSpec | None) -> ModelSpec:
    if spec is None:
        raise UsageError("this target needs the model's modules")
    return spec


TARGETS: Mapping[str, Target] = {
    "accelerate": Target(
        files=lambda plan, spec, _: accelerate.files(plan, _built(spec)),
        needs_model=True,
    ),
    "transformers": Target(
        files=lambda plan, spec, _: transformers.files(plan, _built(spec)),
        needs_model=True,
    ),
    "fsdp2": Target(
        files=lambda plan, *_: fsdp2.files(plan),
    ),
    "deepspeed": Target(
        files=lambda plan, *_: deepspeed.files(plan),
    ),
    "torchrun": Target(
        files=lambda plan, spec, _: torchrun.files(plan, _built(spec)),
        needs_model=True,
    ),
    "peft": Target(
        files=lambda plan, spec, _: peft.files(plan, _built(spec)),
        needs_model=True,
    ),
    "vllm": Target(files=lambda plan, *_: vllm.files(plan)),
    "sglang": Target(files=lambda plan, *_: sglang.files(plan)),
    "llama.cpp": Target(
        files=lambda plan, spec, _: llamacpp.files(plan, _built(spec)),
        needs_model=True,
    ),
    "kubernetes": Target(
        files=lambda plan, _, gpu: cluster.kubernetes_files(plan, gpu.vendor if gpu else None),
    ),
    "ray": Target(files=lambda plan, *_: cluster.ray_files(plan)),
    "skypilot": Target(
        files=lambda *given: _skypilot(*given),  # noqa: PLW0108 - it is defined below
        needs_model=True,
    ),
}
"""Name -> target, in the order of the help text."""

_RUNS = {
    "torchrun": 'MASTER_ADDR=$(echo "$SKYPILOT_NODE_IPS" | head -n1) sh launch.sh',
    "vllm": "sh vllm.sh",
    "transformers": "python load.py",
    "accelerate": "python load.py",
    "deepspeed": "sh launch.sh train.py --deepspeed ds_config.json",
    "peft": "python adapters.py",
}
"""Engine -> what its files are started by on each machine."""

_SKY_NAMES = {"a100-80gb": "A100-80GB", "a100-40gb": "A100"}


def _skypilot(plan: Plan, spec: ModelSpec | None, gpu: Gpu | None) -> dict[str, str]:
    engine = engine_of(plan)
    if engine not in _RUNS:
        raise refuse("skypilot", plan, f"no task starts {engine}", better=engine)
    own = write(engine, plan, spec, gpu)
    name = None if gpu is None else _SKY_NAMES.get(gpu.name, _sky_name(gpu.name))
    return {**cluster.skypilot_files(plan, name, _RUNS[engine]), **own}


def _sky_name(name: str) -> str:
    """Return a product's name as SkyPilot writes it: "RTX4090", "H100", "L40S"."""
    return name.partition("-")[0].upper()


def engine_of(plan: Plan) -> str:
    """Return the target that carries a plan out."""
    work = plan.workload
    if work.task == "train":
        if (work.strategy or "").startswith("zero"):
            return "deepspeed"
        return "peft" if work.quant != "none" else "torchrun"
    if work.runtime != "transformers":
        return work.runtime
    return "accelerate" if work.quant == "none" else "transformers"


def write(
    target: str, plan: Plan, spec: ModelSpec | None, gpu: Gpu | None = None
) -> dict[str, str]:
    """Return file name -> content of one target.

    Args:
        target: a key of `TARGETS`.
        plan: the plan.
        spec: the model, built (`exact_modules`), for targets that need it.
        gpu: what is known of the plan's GPUs.

    Raises UsageError where the target cannot express the plan, with one that can as hint.
    """
    return TARGETS[target].files(plan, spec, gpu)
