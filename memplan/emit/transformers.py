"""Plan -> what from_pretrained and generate take: quantization_config, dtype, map, cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.emit.accelerate import ATTENTION, complete_map
from memplan.emit.loader import TRIAL
from memplan.emit.text import gpu_ledgers, json_text, model_and_revision, refuse, stamp
from memplan.errors import UsageError
from memplan.formats.quantized import Scheme, parse_scheme
from memplan.types import ModelSpec, Plan

__all__ = ["files", "quantization_config"]

_FOUR_BIT = {
    "nf4": ("nf4", False),
    "nf4-dq": ("nf4", True),
    "fp4": ("fp4", False),
    "fp4-dq": ("fp4", True),
}

_READY_MADE = {
    "gptq": "quantize it with GPTQModel",
    "awq": "quantize it with llm-compressor",
    "packed": "quantize it with llm-compressor",
    "nvfp4": "quantize it with llm-compressor",
    "exl3": "convert it with exllamav3",
    "fp8-channel": "quantize it with llm-compressor",
    "mx-packed": "quantize it with llm-compressor",
}
"""Families that are made offline: from_pretrained does not make them of plain weights."""

_LOADER = '''\
"""Loads {name} the way plan {plan_id} says (written by memplan {version}).

    from load import load, generate_options
    model = load()
    model.generate(tokens, **generate_options())
"""

import argparse
import json
from pathlib import Path

import torch
import transformers

HERE = Path(__file__).resolve().parent
SETTINGS = json.loads((HERE / "transformers.json").read_text(encoding="utf-8"))


def load(**options):
    """Return the model as planned; options go to from_pretrained."""
    arguments = dict(SETTINGS["from_pretrained"])
    arguments["dtype"] = getattr(torch, arguments["dtype"])
    if "offload_folder" in arguments:
        arguments["offload_folder"] = str(HERE / arguments["offload_folder"])
    cls = getattr(transformers, SETTINGS["architecture"])
    return cls.from_pretrained(SETTINGS["model"], **arguments | options)


def generate_options():
    """Return the arguments of generate that the plan rests on."""
    return dict(SETTINGS["generate"])

'''


def quantization_config(quant: str, dtype: str, *, offload: bool = False) -> dict[str, Any] | None:
    """Return from_pretrained's `quantization_config` of a --quant name as JSON; None for "none".

    Args:
        quant: as the command line has it.
        dtype: torch's name of the dtype that is computed in (bitsandbytes' 4-bit kinds).
        offload: some modules lie on the host or on disk: bitsandbytes must be told, and keeps
            those in 16 bits.

    Raises UsageError for one that is made offline, or that transformers has no config for.
    Source: transformers 5.23, utils/quantization_config.py.
    """
    scheme = parse_scheme(quant)
    if scheme.family == "none":
        return None
    if scheme.family in _READY_MADE:
        raise UsageError(
            f"{quant} weights are made offline: from_pretrained loads a checkpoint that has them",
            hint=f"{_READY_MADE[scheme.family]}, then plan that folder without --quant",
        )
    maker = _CONFIGS.get(scheme.family)
    if maker is None:
        raise UsageError(
            f"transformers 5.23 has no config that makes {quant} while loading",
            hint="such as --quant nf4, int8, fp8, torchao-int8 or quanto-int8",
        )
    found: dict[str, Any] = maker(scheme, dtype)
    if offload and scheme.family in ("int8", "bnb4"):
        found["llm_int8_enable_fp32_cpu_offload"] = True
    return found


def _bnb4(scheme: Scheme, dtype: str) -> dict[str, Any]:
    kind, nested = _FOUR_BIT[scheme.name]
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": nested,
        "bnb_4bit_compute_dtype": dtype,
        "bnb_4bit_quant_storage": "uint8",
    }


def _torchao(kind: str, **data: Any) -> dict[str, Any]:
    config = {"_type": kind, "_version": 2, "_data": data}
    return {"quant_method": "torchao", "quant_type": {"default": config}}


_CONFIGS: Mapping[str, Any] = {
    "int8": lambda *_: {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "bnb4": _bnb4,
    "fp8": lambda *_: {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "torchao-int8": lambda *_: _torchao("Int8WeightOnlyConfig"),
    "torchao-float8": lambda *_: _torchao("Float8WeightOnlyConfig"),
    "torchao-int4": lambda scheme, _: _torchao("Int4WeightOnlyConfig", group_size=scheme.group),
    "hqq": lambda scheme, _: {
        "quant_method": "hqq",
        "nbits": int(scheme.bits),
        "group_size": scheme.group,
    },
    "quanto-int8": lambda *_: {"quant_method": "quanto", "weights": "int8"},
    "quanto": lambda scheme, _: {"quant_method": "quanto", "weights": f"int{int(scheme.bits)}"},
    "eetq": lambda *_: {"quant_method": "eetq", "weights": "int8"},
    "fbgemm": lambda *_: {"quant_method": "fbgemm_fp8"},
    "mxfp4": lambda *_: {"quant_method": "mxfp4"},
    "bitnet": lambda *_: {"quant_method": "bitnet"},
}
"""Family of `memplan.formats.quantized` -> (scheme, dtype) -> the config as a dict."""


def files(plan: Plan, spec: ModelSpec) -> dict[str, str]:
    """Return file name -> content: transformers.json and load.py.

    Args:
        plan: of runtime transformers; of a training, how its base model is loaded.
        spec: the built model (`exact_modules`), against which a map's coverage is checked.

    Raises UsageError for a plan of another engine, or a quantization that is made offline.
    """
    work = plan.workload
    if work.runtime != "transformers":
        better = work.runtime if work.runtime in ("vllm", "llama.cpp") else ""
        raise refuse("transformers", plan, f"it is a plan for {work.runtime}", better=better)
    if plan.model.architecture is None:
        raise UsageError("the plan does not say which model class to load")
    model, revision = model_and_revision(plan)
    settings = {
        "memplan": stamp(plan, "transformers"),
        "model": model,
        "architecture": plan.model.architecture,
        "from_pretrained": {"revision": revision, **_arguments(plan, spec)},
        "generate": _generate(plan),
        "batch": work.batch,
    }
    loader = (_LOADER + TRIAL).format(
        name=plan.model.name,
        plan_id=plan.id or "(not saved)",
        version=settings["memplan"]["version"],  # type: ignore[index]
    )
    return {"transformers.json": json_text(settings), "load.py": loader}


def _arguments(plan: Plan, spec: ModelSpec) -> dict[str, Any]:
    work = plan.workload
    mapping = complete_map(plan, spec) if plan.placement.device_map else {}
    offload = bool({"cpu", "disk"} & set(mapping.values())) and len(set(mapping.values())) > 1
    arguments: dict[str, Any] = {
        "dtype": work.dtype,
        "attn_implementation": ATTENTION[work.attention],
    }
    config = quantization_config(work.quant, work.dtype, offload=offload)
    if config is not None:
        arguments["quantization_config"] = config
    if mapping and work.task == "infer":
        arguments["device_map"] = mapping
        if "disk" in mapping.values():
            arguments["offload_folder"] = "offload"
    elif len(gpu_ledgers(plan)) == 1:
        arguments["device_map"] = {"": 0}
    return arguments


_CACHES = {
    "dynamic": "dynamic",
    "static": "static",
    "offloaded": "offloaded",
    "offloaded-static": "offloaded_static",
}
_QUANTISED = {"int8": 8, "int4": 4, "int2": 2}


def _generate(plan: Plan) -> dict[str, Any]:
    """Return generate's arguments: the cache's kind and type, the prompt's pieces, the length."""
    work = plan.workload
    if work.task != "infer":
        return {}
    found: dict[str, Any] = {"max_length": work.context}
    if str(work.kv_dtype).startswith("float8"):
        found |= {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
    elif work.kv_dtype in _QUANTISED:
        bits = _QUANTISED[work.kv_dtype]
        found |= {
            "cache_implementation": "quantized",
            "cache_config": {"backend": "hqq" if bits == 8 else "quanto", "nbits": bits},
        }
    elif work.cache not in (None, "dynamic"):
        found["cache_implementation"] = _CACHES[str(work.cache)]
    if work.prefill_chunk and work.context and work.prefill_chunk < work.context:
        found["prefill_chunk_size"] = work.prefill_chunk
    return found
