"""Low-rank adapters beside the linears of a model that serves them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from memplan.errors import UsageError
from memplan.footprint.defaults import ADAPTER_METHODS, DEFAULT_RANK, compute_dtype
from memplan.models.linears import linear_kind, module_of, output_matrix
from memplan.types import ModelSpec, Tensor
from memplan.units import DTYPE_BITS, dtype_name

__all__ = ["ALL_LINEAR", "with_adapters"]

PEFT_EXPERTS = frozenset(
    {
        "afmoe",
        "cohere2_moe",
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v32",
        "dots1",
        "ernie4_5_moe",
        "exaone_moe",
        "flex_olmo",
        "glm4_moe",
        "glm4_moe_lite",
        "glm_moe_dsa",
        "hunyuan_v1_moe",
        "longcat_flash",
        "minimax",
        "minimax_m2",
        "mixtral",
        "olmoe",
        "qwen2_moe",
        "qwen3_moe",
        "qwen3_next",
        "solar_open",
    }
)
"""Model types whose fused experts and router PEFT adapts too (0.21 with transformers 5.23,
peft/utils/transformers_weight_conversion.py): rank r for each expert, twice r where gate and up are
one matrix. The experts of other types are left alone."""
ALL_LINEAR = "all-linear"
"""Every linear but the output matrix: PEFT's word, and what vLLM reserves room for."""


def with_adapters(spec: ModelSpec, options: Mapping[str, Any]) -> ModelSpec:
    """Return a model with the adapters that a training or an inference asks for.

    A linear of (in, out) gets N·r·(in + out) elements. transformers with PEFT keeps loaded
    adapters in float32 (`autocast_adapter_dtype`); vLLM reserves max_loras slots of max_lora_rank
    in the model's dtype for every linear when it starts, whatever is loaded later
    (vllm/lora/layers, create_lora_weights).

    Args:
        spec: as loaded.
        options: "lora_slots", "lora_rank", "lora_targets" and "runtime" count here.

    Raises UsageError where a number is missing, an engine has no such slots, or no linear is
    meant.
    """
    if options.get("task") == "train":
        return _trained(spec, options)
    slots, rank = options.get("lora_slots"), options.get("lora_rank")
    targets = options.get("lora_targets")
    if slots is None and rank is None and targets is None:
        return spec
    engine = options.get("runtime") or "transformers"
    if slots is None or rank is None:
        raise UsageError(
            "adapters need a number and a rank", hint="such as --lora-slots 4 --lora-rank 16"
        )
    if engine not in ("transformers", "vllm"):
        raise UsageError(
            f"{engine} keeps adapters as their files are: memplan cannot know their size",
            hint="leave --lora-slots out and --reserve the size of the files",
        )
    if engine == "vllm" and targets not in (None, ALL_LINEAR):
        raise UsageError(
            "vLLM reserves room for adapters of every linear", hint="leave --lora-targets out"
        )
    dtype = compute_dtype(spec) if engine == "vllm" else "float32"
    added = _adapters(spec, slots, rank, targets or ALL_LINEAR, dtype)
    if not added:
        raise UsageError(
            f"{spec.name} has no linear called {targets}", hint=f"--lora-targets {ALL_LINEAR}"
        )
    origin = f"{spec.origin or spec.source} and {slots} adapters of rank {rank} in {dtype}"
    return replace(spec, tensors=(*spec.tensors, *added), origin=origin)


def _trained(spec: ModelSpec, options: Mapping[str, Any]) -> ModelSpec:
    """Return a model with one set of adapters; DoRA has a magnitude for each output, too.

    Source: peft 0.21, tuners/lora (in float32 unless `autocast_adapter_dtype` is off).
    """
    method = options.get("method")
    if method not in ADAPTER_METHODS:
        return spec
    rank = options.get("lora_rank") or DEFAULT_RANK
    targets = options.get("lora_targets") or ALL_LINEAR
    if targets == ALL_LINEAR and spec.source == "module" and not spec.layers:
        raise UsageError(
            f"nothing says which parameters of {spec.name} are linears",
            hint="name them by --lora-targets",
        )
    dtype = dtype_name(options.get("lora_dtype") or "float32")
    added = tuple(
        replace(tensor, shape=tensor.shape[1:])  # one set: no dimension of slots
        for tensor in _adapters(spec, 1, rank, targets, dtype)
    )
    if not added:
        raise UsageError(
            f"{spec.name} has no linear called {targets}", hint=f"--lora-targets {ALL_LINEAR}"
        )
    if method == "dora":
        added += tuple(_magnitude(x) for x in added if x.name.endswith("lora_B.weight"))
    origin = f"{spec.origin or spec.source} and adapters of rank {rank} in {dtype}"
    return replace(spec, tensors=(*spec.tensors, *added), origin=origin)


def _magnitude(side: Tensor) -> Tensor:
    name = side.name.replace("lora_B.weight", "lora_magnitude_vector.weight")
    size = side.bytes // side.shape[-1]
    return Tensor(name=name, shape=side.shape[:-1], dtype=side.dtype, bytes=size)


def _adapters(
    spec: ModelSpec, slots: int, rank: int, targets: str, dtype: str
) -> tuple[Tensor, ...]:
    wanted = {name.strip() for name in targets.split(",")}
    fused = dtype == "float32" and spec.model_type in PEFT_EXPERTS
    added: list[Tensor] = []
    for tensor in spec.tensors:
        module, last = module_of(tensor.name), tensor.name.rpartition(".")[2]
        if targets != ALL_LINEAR and module.rpartition(".")[2] not in wanted:
            continue
        if targets == ALL_LINEAR and (output_matrix(module) or tensor.tied_to):
            continue
        kind = linear_kind(tensor, spec.model_type)
        if kind in ("linear", "conv1d", "subclass"):
            rows, columns = tensor.shape if kind != "conv1d" else tensor.shape[::-1]
            added += _pair(module, (rows, columns), rank, slots, dtype)
        elif fused and kind == "experts" and targets == ALL_LINEAR:
            count, rows, columns = tensor.shape
            each = 2 * rank if last == "gate_up_proj" else rank
            added += _pair(tensor.name, (rows, columns), each * count, slots, dtype)
        elif fused and module.endswith(".gate") and len(tensor.shape) == 2:
            added += _pair(module, (tensor.shape[0], tensor.shape[1]), rank, slots, dtype)
    return tuple(added)


def _pair(
    module: str, shape: tuple[int, int], rank: int, slots: int, dtype: str
) -> tuple[Tensor, ...]:
    rows, columns = shape
    sides = (("A", (slots, rank, columns)), ("B", (slots, rows, rank)))
    return tuple(
        Tensor(
            name=f"{module}.lora_{side}.weight",
            shape=size,
            dtype=dtype,
            bytes=math.prod(size) * DTYPE_BITS[dtype] // 8,
        )
        for side, size in sides
    )
