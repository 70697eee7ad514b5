"""Plan -> what accelerate takes: a device_map, max_memory, an offload folder, and a loader."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import memplan
from memplan.errors import UsageError
from memplan.placement.mapping import uncovered
from memplan.types import ModelSpec, Plan

__all__ = ["files", "native_map"]

_ATTENTION = {"sdpa": "sdpa", "eager": "eager", "flash": "flash_attention_2"}

_LOADER = '''\
"""Loads {name} the way plan {plan_id} says (written by memplan {version}).

    from load import load
    model = load()
"""

import json
from pathlib import Path

import torch
import transformers
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

HERE = Path(__file__).resolve().parent


def load(**options):
    """Return the model, dispatched by the plan's device_map; options go to from_pretrained."""
    plan = json.loads((HERE / "accelerate.json").read_text(encoding="utf-8"))
    cls = getattr(transformers, plan["architecture"])
    model = cls.from_pretrained(
        plan["model"],
        revision=plan["revision"],
        dtype=getattr(torch, plan["dtype"]),
        attn_implementation=plan["attn_implementation"],
        device_map=plan["device_map"],
        offload_folder=str(HERE / plan["offload_folder"]),
        **options,
    )
    for name in plan["host_lookup"]:
        look_up_on_host(model.get_submodule(name))
    return model.eval()


def look_up_on_host(embedding):
    """Let the host look tokens up, and send their rows back instead of copying the whole table."""
    remove_hook_from_module(embedding)
    add_hook_to_module(embedding, AlignDevicesHook("cpu", io_same_device=True))


if __name__ == "__main__":
    places = {{str(place) for place in load().hf_device_map.values()}}
    print("loaded on", ", ".join(sorted(places)))
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

    Raises UsageError when the map does not cover a parameter.
    """
    mapping = dict(plan.placement.device_map)
    _cover_buffers(mapping, spec, plan)
    if missing := uncovered(mapping, spec):
        raise UsageError(
            f"the plan's map does not cover {missing[0]!r} and {len(missing) - 1} other tensors",
            hint="plan the model again: its files or the rules have changed",
        )
    if plan.model.path is None or plan.model.architecture is None:
        raise UsageError("the plan does not say which model class and folder to load")
    model, revision = plan.model.path, "main"
    if plan.model.source == "hub":
        model, _, revision = plan.model.path.partition("@")
    settings = {
        "memplan": {"plan": plan.id, "version": memplan.__version__},
        "model": model,
        "revision": revision,
        "architecture": plan.model.architecture,
        "dtype": plan.workload.dtype,
        "attn_implementation": _ATTENTION[plan.workload.attention],
        "device_map": native_map(mapping),
        "max_memory": _max_memory(plan),
        "offload_folder": "offload",
        "host_lookup": list(plan.placement.host_lookup),
    }
    loader = _LOADER.format(name=plan.model.name, plan_id=plan.id, version=memplan.__version__)
    return {"accelerate.json": json.dumps(settings, indent=2) + "\n", "load.py": loader}


def _cover_buffers(mapping: dict[str, str], spec: ModelSpec, plan: Plan) -> None:
    """Add modules that only hold buffers, which a file's names do not show, on the main device."""
    missing = set(uncovered(mapping, spec))
    for tensor in spec.tensors:
        if tensor.kind == "buffer" and tensor.name in missing:
            mapping[tensor.name.rpartition(".")[0]] = plan.devices[0].name


def _max_memory(plan: Plan) -> dict[str, Any]:
    """Return bytes of weights per device, as the map uses them ("auto" would then agree)."""
    return {
        ledger.name.removeprefix("cuda:"): ledger.parts.get("weights", 0)
        for ledger in plan.devices
        if ledger.kind != "disk"
    }
