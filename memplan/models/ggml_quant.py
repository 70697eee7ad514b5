"""A transformers model -> the tensors of its GGUF file in one of llama.cpp's mixes."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from memplan.errors import UsageError
from memplan.formats.ggml import BY_NAME
from memplan.formats.ggml_mix import MIXES, MixContext, mix_type
from memplan.types import ModelSpec, Tensor

__all__ = ["is_mix", "to_ggml"]

_ROLES = (
    ("skip", r"(norm|layernorm|ln_\w+)\w*\.weight$|\.norm\d?\.|conv1d|short_?conv|\.conv\."),
    ("skip", r"(router|mlp\.gate|block_sparse_moe\.gate|ffn_gate_inp|\.gate_wg)\b.*$"),
    (
        "skip",
        r"(altup|laurel|per_layer_model_projection|relative_attention_bias|indexer\.[kq]_proj)",
    ),
    ("skip", r"(wpe|embed_positions|position_embeddings|token_type_embeddings|A_log|dt_bias)"),
    ("output", r"(lm_head|embed_out)\.weight$|^output\.weight$"),
    (
        "embedding",
        r"(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|embeddings?)\.weight$",
    ),
    ("expert_down", r"experts\..*(down_proj|w2)|experts\.down"),
    ("expert_gate", r"experts\."),
    ("v", r"(v_proj|qkv_proj|query_key_value|c_attn|Wqkv|in_proj_qkvz?|kv_b_proj|\bvalue)\b"),
    ("q", r"\b(q_proj|q_b_proj|query)\b"),
    ("k", r"\b(k_proj|key)\b"),
    ("attn_out", r"(o_proj|self_attn\.dense|attention\.dense|attn\.(c_proj|out_proj)|attn\.wo)\b"),
    ("down", r"(down_proj|fc2|dense_4h_to_h|mlp\.c_proj|\bw2|fc_out)\b"),
    ("gate", r"(gate_proj|gate_up_proj|\bw1)\b"),
    ("up", r"(up_proj|fc1|dense_h_to_4h|c_fc|\bw3|fc_in)\b"),
)
_COMPILED = tuple((role, re.compile(pattern)) for role, pattern in _ROLES)
_LAYER = re.compile(r"\b(?:layers|h|blocks|block)\.(\d+)\.")
_MATRIX = 2
_BIG_LAYERS = 80


def is_mix(name: str) -> bool:
    """Say whether a --quant name is one of llama.cpp's."""
    return name.lower() in MIXES


def to_ggml(spec: ModelSpec, mix: str) -> ModelSpec:
    """Return the model with every tensor in the type that a mix gives it.

    Names and logical shapes stay. 1-D tensors, norms, routers, small convolutions and position
    embeddings are float32, as the converter writes them; biases too. Buffers are not stored.
    Raises UsageError for an unknown mix.
    """
    name = mix.lower()
    if name not in MIXES:
        raise UsageError(f"llama.cpp has no mix {mix!r}", hint="one of: " + ", ".join(MIXES))
    tied = not any("lm_head" in t.name or "embed_out" in t.name for t in spec.tensors)
    tied = tied or any(t.tied_to for t in spec.tensors if "lm_head" in t.name)
    own = max(len(spec.layers), 1)
    context = MixContext(
        layer=0,
        layers=own,
        groups=_groups(spec),
        experts=_experts(spec),
        tied=tied,
        falcon=spec.model_type == "falcon",
        big=own == _BIG_LAYERS and (spec.model_type or "") in ("llama", "qwen2"),
    )
    parameters = [t for t in spec.tensors if t.kind == "parameter"]
    tensors = tuple(_typed(t, name, context, spec.hidden) for t in parameters)
    return replace(
        spec,
        tensors=tensors,
        weight_format=f"ggml {name}",
        dtype=MIXES[name],
        exact_modules=False,
    )


def _typed(tensor: Tensor, mix: str, context: MixContext, hidden: int) -> Tensor:
    role = _role(tensor)
    row = _row(tensor, hidden)
    if role == "skip" or not row:
        kind = BY_NAME["f32"]
    else:
        found = _LAYER.search(tensor.name)
        layer = min(int(found[1]), context.layers - 1) if found else 0
        kind = mix_type(mix, role, row, replace(context, layer=layer))
    count = math.prod(tensor.shape)
    size = count // row * (-(-row // kind.block) * kind.bytes) if row else count * kind.bytes
    return replace(tensor, dtype=kind.name, bytes=size)


def _role(tensor: Tensor) -> str:
    if len(tensor.shape) < _MATRIX or tensor.name.endswith(".bias"):
        return "skip"
    for role, pattern in _COMPILED:
        if pattern.search(tensor.name):
            return role
    return "other"


def _row(tensor: Tensor, hidden: int) -> int:
    """Return the elements of one row: the input dimension (fused experts may have it first)."""
    if len(tensor.shape) < _MATRIX:
        return 0
    if len(tensor.shape) > _MATRIX and tensor.shape[-1] != hidden and "down" not in tensor.name:
        return hidden if hidden in tensor.shape else tensor.shape[-1]
    return tensor.shape[-1]


def _groups(spec: ModelSpec) -> int:
    heads = [layer.kv_heads for layer in spec.layers if layer.kv_heads]
    return spec.heads // max(heads) if heads else 1


def _experts(spec: ModelSpec) -> int:
    names = [re.search(r"experts\.(\d+)\.", t.name) for t in spec.tensors]
    listed = {int(found[1]) for found in names if found}
    if listed:
        return max(listed) + 1
    fused = [t.shape[0] for t in spec.tensors if ".experts." in t.name and len(t.shape) > _MATRIX]
    return max(fused, default=0)
