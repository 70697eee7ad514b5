"""Which tensors are the weights of linears, told by name and shape.

A spec does not know module classes, and quantizers ask for them: bitsandbytes takes what is
exactly nn.Linear (or Conv1D), others take subclasses too, and fused experts are 3-D parameters of
no linear at all. The rules here were held against every causal language model that transformers
5.23 builds (tests/models/test_linears.py); a table lists what a name cannot tell.
"""

from __future__ import annotations

import re
from typing import Literal

from memplan.types import Tensor

__all__ = ["FP32_MODULES", "LinearKind", "is_router", "linear_kind", "module_of", "output_matrix"]

LinearKind = Literal["linear", "conv1d", "subclass", "grouped", "experts", "none"]
"""nn.Linear itself; Conv1D, whose weight is (in, out); a subclass of nn.Linear; DeepSeek-V4's
grouped subclass; a stack of expert matrices; anything else."""

_EMBEDDING = re.compile(
    r"embed_(tokens|positions|in|tokens_per_layer)|w[tp]e|(?!relative_pos_)\w*embeddings?|\w+_embed"
    r"|relative_attention_bias|bias_values"
)
_ROUTER = re.compile(r"gate|router")
_EXPERTS = re.compile(r"(\.|^)(shared_)?experts\.|\.(input|output)_linear\.weight$")
_ROUTERS_ABOVE = ("router",)
_CONV1D_TYPES = ("gpt2", "gpt-sw3", "openai-gpt", "imagegpt", "decision_transformer", "ctrl")
_CONV1D = re.compile(r"(c_attn|q_attn|c_proj|c_fc)")
_FALCON = re.compile(r"(query_key_value|dense|dense_h_to_4h|dense_4h_to_h)")
_ROUTER_LINEARS = ("llama4", "llama4_text", "phimoe")
"""Types whose router is a subclass of nn.Linear (others keep a bare parameter)."""
_OUTPUT = re.compile(
    r"(?<!patcher)(^|\.)(lm_head|embed_out|output_projection|generator_lm_head|pred_layer\.proj|lm_loss"
    r"|lm_head\.decoder|cls\.predictions\.decoder)$|^(decoder|head|output|proj_out)$"
)

FP32_MODULES = {
    "axk2": ("indexer.weights_proj",),
    "deepseek_v32": ("indexer.weights_proj",),
    "glm_moe_dsa": ("indexer.weights_proj",),
    "deepseek_v4": (
        "self_attn.compressor.indexer.scorer.weights_proj",
        "self_attn.compressor.gate_proj",
        "self_attn.compressor.kv_proj",
        "self_attn.compressor.indexer.kv_proj",
        "self_attn.compressor.indexer.gate_proj",
    ),
}
"""Linears that transformers never quantizes, by model type (`_keep_in_fp32_modules`)."""


def module_of(name: str) -> str:
    """Return the module of a tensor's name: "a.b.weight" -> "a.b"."""
    return name.rpartition(".")[0]


def output_matrix(module: str) -> bool:
    """Say whether a module is the output embedding, by its name in transformers."""
    return bool(_OUTPUT.search(module))


def is_router(module: str) -> bool:
    """Say whether a module chooses experts, or is a part of what does."""
    last = module.rpartition(".")[2]
    return bool(_ROUTER.fullmatch(last) or ".router" in module or last == "shared_expert_gate")


def linear_kind(tensor: Tensor, model_type: str | None) -> LinearKind:
    """Return what kind of linear's weight a tensor is.

    Args:
        tensor: with its logical shape.
        model_type: transformers' name; tells Conv1D and subclasses, None = neither.
    """
    if tensor.kind != "parameter":
        return "none"
    if len(tensor.shape) == 3:
        return "experts" if _EXPERTS.search(tensor.name) else "none"
    if len(tensor.shape) != 2 or not tensor.name.endswith(".weight"):
        return "none"
    module = module_of(tensor.name)
    parent, _, last = module.rpartition(".")
    if _EMBEDDING.fullmatch(last) or "norm" in last or (model_type == "ctrl" and last == "w"):
        return "none"
    if _ROUTER.fullmatch(last) and parent.rpartition(".")[2] not in _ROUTERS_ABOVE:
        return "subclass" if model_type in _ROUTER_LINEARS else "none"
    return _class(parent, last, model_type)


def _class(parent: str, last: str, model_type: str | None) -> LinearKind:
    if model_type in _CONV1D_TYPES and _CONV1D.fullmatch(last):
        return "conv1d"
    if model_type == "falcon" and _FALCON.fullmatch(last):
        return "subclass"
    if model_type == "deepseek_v4" and last == "o_a_proj":
        return "grouped"
    if parent.endswith("head.attention") and last == "out_proj":
        return "subclass"
    return "linear"
