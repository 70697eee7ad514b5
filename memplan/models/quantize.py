"""A model -> the same model with its linears in a quantized layout, skip rules included.

What stays: embeddings, norms, 1-D tensors and, by default, the output matrix, the module that
owns the last parameter, and every tied weight on both sides (transformers 5.23,
quantizers/base.py). A user's list replaces that default. Fused expert matrices are 3-D parameters
and no nn.Linear: bitsandbytes, HQQ, torchao, quanto and EETQ leave them alone, while checkpoints
made offline (GPTQ, AWQ, FP8, NVFP4, compressed-tensors, EXL3) hold each expert quantized.
"""

from __future__ import annotations

import contextlib
import fnmatch
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from memplan.errors import UnsupportedModelError
from memplan.formats.quantized import Scheme, bytes_of
from memplan.types import ModelSpec, Tensor

__all__ = ["quantize"]

_AT_LOAD = ("int8", "bnb4", "hqq", "torchao", "torchao-int8", "quanto", "eetq")
"""Families that replace nn.Linear modules while loading."""

_BLOCKS_ONLY = ("gptq", "awq", "exl3", "bitnet")
"""Families that quantize only what is inside the decoder layers."""

_NO_LINEAR = re.compile(
    r"(embed|wte|wpe|norm|conv|router|mlp\.gate\.|block_sparse_moe\.gate\.|rotary|relative_att"
    r"|\bln_|A_log|lerp|shared_expert_gate|position)"
)
_OUTPUT = re.compile(r"(lm_head|embed_out|output_projection)")
_LAYER = re.compile(r"\b(?:layers|h|blocks|block)\.\d+\.")
_VISION = re.compile(r"(vision|visual|image_newline|multi_modal_projector|audio)")
_CONV1D_TYPES = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_CONV1D = re.compile(r"\b(c_attn|q_attn|c_proj|c_fc)\.weight$")
"""Modules of transformers' Conv1D, whose weight is (in, out)."""
_MATRIX = 2


def quantize(
    spec: ModelSpec,
    config: Mapping[str, Any] | None,
    scheme: Scheme,
    *,
    skip: Sequence[str] | None = None,
) -> ModelSpec:
    """Return the model as it is stored in a scheme; names and logical shapes stay.

    Args:
        spec: the model with plain weights.
        config: its config.json; only a skip list in it counts.
        scheme: the layout.
        skip: module names that stay; replaces the default list.

    Raises UnsupportedModelError when nothing in the model can be quantized so.
    """
    del config
    kept = _default_skips(spec) if skip is None else tuple(skip)
    turned = spec.model_type in _CONV1D_TYPES
    tensors = tuple(
        _stored(tensor, scheme, kept, spec.hidden, turned=turned) for tensor in spec.tensors
    )
    if tensors == spec.tensors:
        raise UnsupportedModelError(
            f"{spec.name} has no module that {scheme.name} quantizes",
            hint="its experts or layers are not nn.Linear; use another --quant",
        )
    return replace(spec, tensors=tensors, weight_format=scheme.name, dtype=_main(tensors))


def _main(tensors: Sequence[Tensor]) -> str:
    sizes: dict[str, int] = {}
    for tensor in tensors:
        if tensor.kind == "parameter" and not tensor.tied_to:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.bytes
    return max(sizes, key=lambda name: sizes[name])


def _default_skips(spec: ModelSpec) -> tuple[str, ...]:
    parameters = [t for t in spec.tensors if t.kind == "parameter"]
    names = {_module(t.name) for t in parameters if _OUTPUT.search(t.name)}
    if parameters:
        names.add(_module(parameters[-1].name))
    for tensor in parameters:
        if tensor.tied_to:
            names |= {_module(tensor.name), _module(tensor.tied_to)}
    return tuple(sorted(names))


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _stored(
    tensor: Tensor, scheme: Scheme, skip: Sequence[str], hidden: int, *, turned: bool
) -> Tensor:
    if tensor.kind != "parameter" or tensor.tied_to or not _eligible(tensor, scheme):
        return tensor
    module = _module(tensor.name)
    if any(_named(module, name) for name in skip):
        return tensor
    shape = _logical(tensor, hidden)
    if turned and _CONV1D.search(tensor.name):
        shape = (shape[1], shape[0])
    return replace(tensor, bytes=bytes_of(scheme, shape), dtype=scheme.name)


def _named(module: str, name: str) -> bool:
    """Say whether a skip entry means a module: its name, its end, what it is in, glob or "re:"."""
    if name.startswith("re:"):
        with contextlib.suppress(re.error):
            return re.match(name[3:], module) is not None
        return False
    if "*" in name:
        return fnmatch.fnmatchcase(module, name)
    return f".{name}." in f".{module}."


def _eligible(tensor: Tensor, scheme: Scheme) -> bool:
    """Say whether a tensor is the weight of a module that the scheme replaces."""
    if len(tensor.shape) < _MATRIX or _NO_LINEAR.search(tensor.name):
        return False
    experts = ".experts." in tensor.name
    if scheme.family == "mxfp4":
        return experts and "bias" not in tensor.name
    if len(tensor.shape) > _MATRIX:
        return experts and scheme.family not in _AT_LOAD and "bias" not in tensor.name
    if not tensor.name.endswith(".weight") and not experts:
        return False
    if scheme.family in _BLOCKS_ONLY:
        return bool(_LAYER.search(tensor.name)) and not _VISION.search(tensor.name)
    return True


def _logical(tensor: Tensor, hidden: int) -> tuple[int, ...]:
    """Return (out, in) with the experts of a fused matrix in front; gate and up count apart."""
    if len(tensor.shape) == _MATRIX:
        return tensor.shape
    *stack, first, second = tensor.shape
    if "down" in tensor.name:
        return (*stack, hidden, math.prod((first, second)) // hidden)
    rows = math.prod((first, second)) // hidden
    if "gate_up" in tensor.name:
        return (*stack, 2, rows // 2, hidden)
    return (*stack, rows, hidden)
