"""What a stored plan would be with other choices, at once: the dashboard's planner.

Models, devices and fixed costs are read once and kept; what a key press then costs is formulas and
placement. The closed forms answer here also where the stored plan was traced.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from memplan.errors import MemplanError, UsageError

if TYPE_CHECKING:
    from memplan.devices.parse import Hardware
    from memplan.types import ModelSpec, Plan, Workload

__all__ = ["WhatIf"]

_QUANTS = {
    "transformers": ("none", "int8", "nf4", "gptq-4bit-g128", "awq-4bit-g128", "fp8"),
    "vllm": ("none", "int8", "gptq-4bit-g128", "awq-4bit-g128", "fp8"),
    "llama.cpp": ("none", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "iq4_xs"),
    "exllama": ("exl3-6bpw", "exl3-5bpw", "exl3-4bpw", "exl3-3bpw"),
}
"""What is tried one after another for each engine."""

_KEPT = 200
"""Plans that are kept: going back and forth costs nothing."""

_METHODS = ("full", "lora", "rslora", "dora", "qlora")
_COUNTS = ("1", "2", "4", "8")

_DERIVED = frozenset(
    ("device", "gpus", "assumed", "extra", "estimator", "host_memory", "disk", "reserve")
)
"""Fields of a workload that are no options, or that the devices stand for."""


class WhatIf:
    """Implements `memplan_tui.screens.plan.Planner`."""

    def __init__(self) -> None:
        """Begin with nothing read."""
        self._specs: dict[tuple[Any, ...], ModelSpec] = {}
        self._made: dict[tuple[Any, ...], Plan] = {}
        self._lock = threading.Lock()

    def current(self, plan: Plan) -> Mapping[str, str]:
        """Return the value of each option that can be changed."""
        work = plan.workload
        tokens = ("context", work.context) if work.task == "infer" else ("seq", work.seq)
        values = {"quant": work.quant, tokens[0]: str(tokens[1]), "batch": str(work.batch)}
        if work.task == "train":
            del values["quant"]
            values["method"] = str(work.method)
        values["device"] = work.device[0] if work.device else "local"
        values["gpus"] = str(work.gpus)
        return values

    def choices(self, plan: Plan) -> Mapping[str, Sequence[str]]:
        """Return each option's values, the plan's own among them, in the order of the keys."""
        now = self.current(plan)
        packed = plan.model.weight_format.startswith("gguf")
        wanted: dict[str, Sequence[str]] = {
            "quant": () if packed else _QUANTS.get(plan.workload.runtime, ("none",)),
            "context": _doubled(256, 2**20),
            "seq": _doubled(128, 2**17),
            "batch": _doubled(1, 256),
            "method": _METHODS,
            "device": _ladder(),
            "gpus": _COUNTS,
        }
        return {name: _among(wanted[name], value) for name, value in now.items() if wanted[name]}

    def replan(self, plan: Plan, changes: Mapping[str, str]) -> Plan:
        """Return the plan with other values.

        Raises UsageError and its like where a value does not go with the rest, ModelError when the
        model is no longer where the plan read it.
        """
        key = (plan.id, plan.created_ns, *sorted(changes.items()))
        if key not in self._made:
            made = self._replanned(plan, changes)
            if len(self._made) >= _KEPT:
                self._made.pop(next(iter(self._made)), None)
            self._made[key] = made
        return self._made[key]

    def _replanned(self, plan: Plan, changes: Mapping[str, str]) -> Plan:
        from memplan.footprint.defaults import complete
        from memplan.placement.plan import make_plan

        work = _given(plan.workload, changes)
        with self._lock:
            spec = self._spec(plan, work)
        names = _names(plan.workload, changes)
        hardware = _hardware(names, plan.workload)
        workload = _placed(complete({**work, "device": names}, spec), hardware, plan.workload)
        first = hardware.devices[0]
        made = make_plan(
            spec,
            workload,
            hardware.devices,
            baseline=_baseline(),
            costs=_costs(first.vendor, first.compute, workload.runtime, workload.gpus),
            created_ns=plan.created_ns,
            changes=False,  # a search takes seconds; `memplan fit` is for it
        )
        return replace(made, id=plan.id)

    def prepare(self, plan: Plan) -> None:
        """Read the model in each quantization, and plan once with it."""
        for option in ("quant", "method"):
            for value in self.choices(plan).get(option, ()):
                try:
                    self.replan(plan, {option: value})
                except MemplanError:
                    continue  # said when it is asked for

    def _spec(self, plan: Plan, work: Mapping[str, Any]) -> ModelSpec:
        from memplan.footprint.defaults import weight_dtype
        from memplan.models.load import load_model

        dtype = weight_dtype(work)
        loaded = ("runtime", "task", "method", "lora_rank", "lora_targets", "lora_dtype", "draft")
        argument = _argument(plan)
        key = (argument, dtype, work.get("quant"), *(work.get(name) for name in loaded))
        if key not in self._specs:
            self._specs[key] = load_model(argument, dtype=dtype, options=work)
        return self._specs[key]


def _argument(plan: Plan) -> str:
    """Return the MODEL argument that the plan was made of."""
    if plan.workload.draft not in (None, "mtp"):
        raise UsageError("a plan with a draft model is not changed here")
    if plan.model.source == "catalog":
        return plan.model.name
    if plan.model.path is None:
        raise UsageError(f"this plan does not say where {plan.model.name} was read")
    return plan.model.path


def _given(stored: Workload, changes: Mapping[str, str]) -> dict[str, Any]:
    """Return the options of a plan that somebody set, with changes on top."""
    names = [field.name for field in fields(stored) if field.name not in _DERIVED]
    work = {
        name: value
        for name in names
        if (value := getattr(stored, name)) not in (None, ())
        and (name not in stored.assumed or name in {"task", "runtime"})
    }
    for name, value in changes.items():
        if name in {"context", "seq", "batch"}:
            work[name] = int(value)
        elif name in {"quant", "method"}:
            work[name] = value
    if stored.task != "train":
        for name in ("nodes", "strategy", "tp", "pp", "dp", "ep", "cp"):
            work.pop(name, None)
    return work


def _names(stored: Workload, changes: Mapping[str, str]) -> tuple[str, ...]:
    device = changes.get("device", stored.device[0] if stored.device else "local")
    count = int(changes.get("gpus", stored.gpus))
    return (device,) if device in {"local", "cpu"} else (device,) * count


@lru_cache(maxsize=64)
def _parsed(  # noqa: PLR0917 - a cache takes no names
    names: tuple[str, ...],
    host: int | None,
    disk: int | None,
    reserve: int,
    host_b: int,
    disk_b: int,
) -> Hardware:
    from memplan.devices.parse import parse_hardware

    return parse_hardware(
        names,
        host_memory=host,
        disk=disk,
        reserve=reserve,
        host_bandwidth=host_b or None,
        disk_bandwidth=disk_b or None,
    )


def _hardware(names: tuple[str, ...], stored: Workload) -> Hardware:
    """Return the devices; host memory and disk stay those of the stored plan."""
    shared = not stored.host_memory and "host_memory" in stored.assumed
    return _parsed(
        names,
        None if shared else stored.host_memory,
        stored.disk,
        stored.reserve or 0,
        stored.host_bandwidth or 0,
        stored.disk_bandwidth or 0,
    )


def _placed(workload: Workload, hardware: Hardware, stored: Workload) -> Workload:
    sizes = {device.name: device.capacity_bytes for device in hardware.devices}
    count = max(sum(device.kind == "gpu" for device in hardware.devices), 1)
    if workload.task == "train" and count > 1 and workload.strategy is None:
        workload = replace(workload, strategy="fsdp2")
    return replace(
        workload,
        device=hardware.names,
        host_memory=sizes.get("cpu", 0),
        disk=sizes.get("disk", 0),
        reserve=stored.reserve or 0,
        gpus=count,
        assumed=stored.assumed,
    )


@lru_cache(maxsize=1)
def _baseline() -> int | None:
    from memplan.devices.baseline import known_baseline

    return known_baseline()


@lru_cache(maxsize=64)
def _costs(vendor: str | None, compute: str | None, runtime: str, gpus: int) -> Any:
    from memplan.devices.overhead import fixed_costs

    return fixed_costs(vendor=vendor, compute=compute, runtime=runtime, gpus=gpus)


def _doubled(least: int, most: int) -> tuple[str, ...]:
    values = []
    while least <= most:
        values.append(str(least))
        least *= 2
    return tuple(values)


def _among(values: Sequence[str], value: str) -> tuple[str, ...]:
    """Return values with another one among them: numbers in their order, else at the front."""
    if value in values:
        return tuple(values)
    if value.isdigit():
        return tuple(sorted((*values, value), key=int))
    return (value, *values)


@lru_cache(maxsize=1)
def _ladder() -> tuple[str, ...]:
    """Return one GPU of each memory size, the newest, from the smallest to the largest."""
    from memplan.devices.table import known

    sizes: dict[int, Any] = {}
    for device in known():
        if device.kind == "gpu" and device.vendor == "NVIDIA":
            gib = round(device.memory_bytes / 2**30)
            if gib not in sizes or sizes[gib].year < device.year:
                sizes[gib] = device
    return tuple(sizes[gib].name for gib in sorted(sizes) if gib >= 6)
