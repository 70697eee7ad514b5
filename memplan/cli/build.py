"""The options of a plan -> the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memplan.errors import UsageError

if TYPE_CHECKING:
    from memplan.trace.job import Job
    from memplan.types import Device, ModelSpec, Plan

__all__ = ["build_job", "build_plan"]

_WORK = (
    "task",
    "runtime",
    "dtype",
    "quant",
    "context",
    "images",
    "image_size",
    "batch",
    "prefill_chunk",
    "kv_dtype",
    "cache",
    "attention",
    "lora_slots",
    "lora_rank",
    "lora_targets",
    "draft",
    "draft_tokens",
    "logits",
    "method",
    "optimizer",
    "seq",
    "grad_accum",
    "checkpointing",
    "precision",
    "loss",
    "data",
    "eval_batch",
    "compile",
    "lora_dropout",
    "lora_dtype",
    "estimator",
    "offload",
    "pin",
    "host_memory",
    "disk",
    "reserve",
    "host_bandwidth",
    "disk_bandwidth",
    *("offload_optimizer", "offload_params"),
    *("nodes", "strategy", "tp", "pp", "dp", "ep", "cp"),
)


def build_plan(
    options: Mapping[str, Any],
    *,
    exact_modules: bool = False,
    load: Callable[..., ModelSpec] | None = None,
    beside: Sequence[str] = (),
    changes: bool = True,
) -> Plan:
    """Return the plan that a command line asks for.

    Args:
        options: the values of `plan_options` by name.
        exact_modules: build the model where a file's names might not be those of its modules.
        beside: who else is asked: "accelerate", "optimum".
        load: `memplan.models.load.load_model`, or what remembers its answers.
        changes: look for single changes that make it fit.
    """
    import time

    from memplan.devices.baseline import known_baseline
    from memplan.devices.overhead import fixed_costs
    from memplan.devices.parse import parse_hardware
    from memplan.footprint.defaults import complete, weight_dtype
    from memplan.models.load import load_model
    from memplan.placement.plan import make_plan
    from memplan.trace.estimate import TraceEstimator

    work = {name: options[name] or None if name == "pin" else options[name] for name in _WORK}
    _check_parallel(options)
    spec = (load or load_model)(
        options["model"],
        dtype=weight_dtype(work),
        options=work,
        exact_modules=exact_modules or "accelerate" in beside,
        trust_remote_code=options["trust_remote_code"],
    )
    hardware = parse_hardware(
        _devices(options),
        host_memory=options["host_memory"],
        disk=options["disk"],
        reserve=options["reserve"] or 0,
        host_bandwidth=options["host_bandwidth"],
        disk_bandwidth=options["disk_bandwidth"],
    )
    workload = complete({**work, "device": options["device"] or None}, spec)
    sizes = {device.name: device.capacity_bytes for device in hardware.devices}
    count = max(sum(device.kind == "gpu" for device in hardware.devices), 1)
    moved = workload.offload_optimizer or workload.offload_params
    if workload.task == "train" and (count > 1 or moved) and workload.strategy is None:
        kind = "zero3" if moved else "fsdp2"
        workload = replace(workload, strategy=kind, assumed=(*workload.assumed, "strategy"))
    workload = replace(
        workload,
        device=hardware.names,
        host_memory=sizes.get("cpu", 0),
        disk=sizes.get("disk", 0),
        reserve=options["reserve"] or 0,
        gpus=count,
        assumed=(*workload.assumed, *_assumed_hardware(options)),
    )
    first = hardware.devices[0]
    plan = make_plan(
        spec,
        workload,
        hardware.devices,
        draft=_draft(options, workload.runtime),
        baseline=known_baseline(),
        costs=fixed_costs(
            vendor=first.vendor,
            compute=first.compute,
            runtime=workload.runtime,
            gpus=workload.gpus,
        ),
        created_ns=time.time_ns(),
        estimator=TraceEstimator(
            compute=first.compute if first.vendor == "NVIDIA" else None,
            folder=_folder(options),
        ),
        quants=_quants(options, work),
        changes=changes,
    )
    return _with_others(plan, spec, hardware.devices, beside)


def _with_others(
    plan: Plan, spec: ModelSpec, devices: Sequence[Device], names: Sequence[str]
) -> Plan:
    """Return a plan with what others would do beside it."""
    from memplan.models.rivals import accelerate_map
    from memplan.placement.beside import map_beside, optimum_beside, room_for_weights

    if names and (plan.workload.runtime != "transformers" or plan.workload.task == "train"):
        raise UsageError(
            "--beside compares how transformers loads a model to generate",
            hint="leave it out, or use --runtime transformers",
        )
    rows = []
    if "accelerate" in names and any(device.kind == "gpu" for device in devices):
        mapping = accelerate_map(spec, room_for_weights(plan))
        rows.append(map_beside("accelerate", spec, plan, mapping, devices))
    if "optimum" in names:
        rows += [row for row in (optimum_beside(spec, plan, devices),) if row is not None]
    return replace(plan, placement=replace(plan.placement, beside=tuple(rows)))


_MILDER = ("int8", "nf4")
"""What is tried where an unquantized model does not fit, the mildest first."""


def _quants(options: Mapping[str, Any], work: dict[str, Any]) -> dict[str, Callable[[], ModelSpec]]:
    """Return what makes the model anew in other quantizations that its runtime has."""
    from memplan.footprint.defaults import weight_dtype
    from memplan.models.load import load_model

    plain = options["quant"] in (None, "none") and options["task"] != "train"
    names = _MILDER if plain and options["runtime"] in (None, "transformers", "vllm") else ()
    names = ("q8_0", "q4_k_m") if plain and options["runtime"] == "llama.cpp" else names

    def make(name: str) -> ModelSpec:
        return load_model(
            options["model"],
            dtype=weight_dtype(work),
            options={**work, "quant": name},
            trust_remote_code=options["trust_remote_code"],
        )

    return {name: partial(make, name) for name in names}


def build_job(options: dict[str, Any]) -> Job:
    """Return what a trace of a command line's workload runs, on its first device."""
    from memplan.devices.parse import parse_hardware
    from memplan.footprint.defaults import complete, weight_dtype
    from memplan.models.load import load_model
    from memplan.trace.estimate import job_of

    work = {name: options[name] for name in _WORK if name != "pin"}
    spec = load_model(
        options["model"],
        dtype=weight_dtype(work),
        options=work,
        trust_remote_code=options["trust_remote_code"],
    )
    first = parse_hardware(tuple(options["device"])).devices[0]
    return job_of(
        spec,
        complete(work, spec),
        kind="gpu" if first.kind == "gpu" else "cpu",
        compute=first.compute if first.vendor == "NVIDIA" else None,
        folder=_folder(options),
    )


_TRAIN_PARALLEL = ("nodes", "strategy", "pp", "dp", "ep", "cp")


def _check_parallel(options: Mapping[str, Any]) -> None:
    """Refuse what only trainings have: an engine that answers is planned with --tp alone."""
    if options["task"] == "train":
        return
    for name in _TRAIN_PARALLEL:
        if options[name] is not None:
            raise UsageError(
                f"--{name} is planned for training alone so far",
                hint="add --task train, or plan an engine's tensor parallelism with --tp",
            )


def _devices(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return one name for each GPU: --gpus repeats the only --device."""
    names: tuple[str, ...] = tuple(options["device"])
    count: int | None = options["gpus"]
    if count is None and options["task"] != "train" and len(names) == 1:
        count = options["tp"]
    if count is None:
        return names
    if count > MOST_GPUS:
        raise UsageError(f"{count} GPUs are too many to list", hint=f"at most {MOST_GPUS}")
    if not names:
        raise UsageError("--gpus counts devices that --device names", hint="add --device h100")
    if len(names) == 1 and names[0] not in ("local", "cpu"):
        return names * count
    if len(names) != count:
        raise UsageError(
            f"--gpus says {count} and {len(names)} devices are named", hint="leave --gpus out"
        )
    return names


MOST_GPUS = 4096
"""How many GPUs a plan lists at most."""


def _folder(options: Mapping[str, Any]) -> str | None:
    """Return the folder whose Python code may be run, or None."""
    path = Path(options["model"])
    if not options["trust_remote_code"] or not path.exists():
        return None
    return str(path if path.is_dir() else path.parent)


def _draft(options: Mapping[str, Any], engine: str) -> ModelSpec | None:
    """Return the draft model that an option names, as the target's engine loads it."""
    from memplan.footprint.draft import MTP
    from memplan.models.load import load_model

    name = options["draft"]
    if name in (None, MTP):
        return None
    return load_model(
        name,
        dtype=None,
        options={"runtime": engine},
        trust_remote_code=options["trust_remote_code"],
    )


def _assumed_hardware(options: Mapping[str, Any]) -> tuple[str, ...]:
    names = ("host_memory", "disk", "reserve")
    return tuple(name for name in names if options[name] is None)
