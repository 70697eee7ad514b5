"""Plan -> what accelerate takes: a device_map, max_memory, an offload folder, and a loader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.emit.loader import TRIAL
from memplan.emit.text import json_text, model_and_revision, refuse, stamp
from memplan.errors import UsageError
from memplan.placement.mapping import uncovered
from memplan.types import ModelSpec, Plan

__all__ = ["ATTENTION", "complete_map", "files", "native_map"]

ATTENTION = {"sdpa": "sdpa", "eager": "eager", "flash": "flash_attention_2"}
"""memplan's attention -> transformers' `attn_implementation`."""

_LOADER = '''\
"""Loads {name} the way plan {plan_id} says (written by memplan {version}).

    from load import load
    model = load()
"""

import argparse
import json
from pathlib import Path

import torch
import transformers
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

HERE = Path(__file__).resolve().parent
SETTINGS = json.loads((HERE / "accelerate.json").read_text(encoding="utf-8"))


def load(**options):
    """Return the model, dispatched by the plan's device_map; options go to from_pretrained."""
    cls = getattr(transformers, SETTINGS["architecture"])
    model = cls.from_pretrained(
        SETTINGS["model"],
        revision=SETTINGS["revision"],
        dtype=getattr(torch, SETTINGS["dtype"]),
        attn_implementation=SETTINGS["attn_implementation"],
        device_map=SETTINGS["device_map"],
        offload_folder=str(HERE / SETTINGS["offload_folder"]),
        **options,
    )
    for name in SETTINGS["host_lookup"]:
        look_up_on_host(model.get_submodule(name))
    return model.eval()


def look_up_on_host(embedding):
    """Let the host look tokens up, and send their rows back instead of copying the whole table."""
    remove_hook_from_module(embedding)
    add_hook_to_module(embedding, AlignDevicesHook("cpu", io_same_device=True))
'''


def native_map(mapping: Mapping[str, str]) -> dict[str, int | str]:
    """Return a device_map as from_pretrained takes it: GPUs by number, "cpu", "disk"."""
    return {
        name: int(device.removeprefix("cuda:")) if device.startswith("cuda:") else device
        for name, device in mapping.items()
    }


def files(plan: Plan, spec: ModelSpec) -> dict[str, str]:
    """Return file name -> content: accelerate.json and load.py.

    Args:
        plan: the plan.
        spec: the built model (`exact_modules`), against which the map's coverage is checked:
            accelerate accepts an incomplete map without a word and then fails late.

    Raises UsageError when the map does not cover a parameter or names a module and its parent, and
    for plans of another engine, of a training or with a quantization.
    """
    _require(plan)
    if plan.model.architecture is None:
        raise UsageError("the plan does not say which model class to load")
    model, revision = model_and_revision(plan)
    said = stamp(plan, "accelerate")
    settings = {
        "memplan": said,
        "model": model,
        "revision": revision,
        "architecture": plan.model.architecture,
        "dtype": plan.workload.dtype,
        "attn_implementation": ATTENTION[plan.workload.attention],
        "device_map": complete_map(plan, spec),
        "max_memory": _max_memory(plan),
        "offload_folder": "offload",
        "host_lookup": list(plan.placement.host_lookup),
        "batch": plan.workload.batch,
    }
    loader = (_LOADER + TRIAL).format(
        name=plan.model.name, plan_id=said["plan"], version=said["version"]
    )
    return {"accelerate.json": json_text(settings), "load.py": loader}


def _require(plan: Plan) -> None:
    work = plan.workload
    if work.task != "infer":
        better = {"fsdp2": "fsdp2", "zero1": "deepspeed", "zero2": "deepspeed"}
        better |= {"zero3": "deepspeed"}
        name = better.get(work.strategy or "", "torchrun")
        raise refuse("accelerate", plan, "it trains, and a device_map generates", better=name)
    if work.runtime != "transformers":
        name = work.runtime if work.runtime in ("vllm", "llama.cpp") else ""
        raise refuse("accelerate", plan, f"it is a plan for {work.runtime}", better=name)
    if work.quant != "none":
        raise refuse(
            "accelerate", plan, f"its files carry no --quant {work.quant}", better="transformers"
        )


def complete_map(plan: Plan, spec: ModelSpec) -> dict[str, int | str]:
    """Return the plan's device_map as from_pretrained takes it, completed and checked.

    Modules that hold buffers alone, which a file's names do not show, are added on the main
    device. Raises UsageError when a tensor is not covered or a key lies below another.
    """
    mapping = dict(plan.placement.device_map)
    missing = set(uncovered(mapping, spec))
    for tensor in spec.tensors:
        if tensor.kind == "buffer" and tensor.name in missing:
            mapping[tensor.name.rpartition(".")[0]] = plan.devices[0].name
    if lost := uncovered(mapping, spec):
        raise UsageError(
            f"the plan's map does not cover {lost[0]!r} and {len(lost) - 1} other tensors",
            hint="plan the model again: its files or the rules have changed",
        )
    if inner := _below_another(mapping):
        raise UsageError(
            f"the plan's map names {inner!r} and a module that holds it",
            hint="plan the model again: accelerate cannot load such a map",
        )
    return native_map(mapping)


def _below_another(mapping: Mapping[str, str]) -> str | None:
    """Return a key with an ancestor among the keys, or None."""
    for name in mapping:
        parent = name
        while parent:
            parent = parent.rpartition(".")[0]
            if parent in mapping and parent != name:
                return name
    return None


def _max_memory(plan: Plan) -> dict[str, Any]:
    """Return bytes of weights per device, as the map uses them ("auto" would then agree)."""
    return {
        ledger.name.removeprefix("cuda:"): ledger.parts.get("weights", 0)
        for ledger in plan.devices
        if ledger.kind != "disk"
    }
