"""Tensor parallelism that answers: what of a model one rank loads, and what its caches hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from memplan.errors import UsageError
from memplan.parallel.model import resized, style_of, tensor_part
from memplan.types import Layer, ModelSpec, Tensor, Workload

__all__ = ["ENGINES", "rank_spec"]

ENGINES = ("transformers", "vllm")
"""Engines whose division is known here."""

_MORE: Mapping[str, str] = {
    **dict.fromkeys(("c_attn", "query_key_value", "Wqkv", "qkv_proj"), "colwise"),
    **dict.fromkeys(("c_fc", "fc1", "dense_h_to_4h", "w1", "w3", "gate_up_proj"), "colwise"),
    **dict.fromkeys(("c_proj", "fc2", "dense_4h_to_h", "w2", "out_proj", "dense"), "rowwise"),
    **dict.fromkeys(("in_proj", "in_proj_qkvz", "in_proj_ba", "conv1d", "dt_proj"), "colwise"),
    **dict.fromkeys(("wte", "word_embeddings", "embed_in"), "embedding_rowwise"),
    "x_proj": "rowwise",
    "embed_out": "colwise",
}
"""Last parts of names that vLLM divides beside those of `DEFAULT_PLAN`: other families' linears
and Mamba's (model_executor/models of vLLM 0.33). What neither names is whole on every rank."""

_KEYS = ("k_proj", "v_proj")
_FUSED = ("qkv_proj", "query_key_value", "c_attn", "Wqkv")
_VOCABULARY = ("embed_tokens", "lm_head", "wte", "word_embeddings", "embed_in", "embed_out")
_PADDING = 64
"""vLLM rounds the vocabulary up to a multiple of this (DEFAULT_VOCAB_PADDING_SIZE)."""


def rank_spec(spec: ModelSpec, workload: Workload) -> ModelSpec:
    """Return the model as the fullest rank of tensor parallelism loads it.

    Linears, experts, embedding and output matrix are divided by tp; norms, routers and MLA's
    down-projections are on every rank, and so is MLA's latent cache. vLLM keeps one key/value head
    on each rank where there are fewer heads than ranks, and pads the vocabulary to 64 rows.
    transformers' caches are those of heads / tp; vLLM's rules (`memplan.runtimes.vllm`) divide by
    tp themselves.

    Args:
        spec: whole.
        workload: runtime and tp are read.

    Raises UsageError for an engine without rules, and for heads that tp does not divide.
    """
    tp, engine = workload.tp, workload.runtime
    if engine not in ENGINES:
        raise UsageError(
            f"tensor parallelism is planned for {' and '.join(ENGINES)}, not for {engine}",
            hint="leave --tp out: --gpus shares whole layers, or add --runtime vllm",
        )
    _check_heads(spec, tp, engine)
    heads = max((layer.kv_heads for layer in spec.layers), default=0)
    tensors = tuple(_part(tensor, spec, tp, engine, heads) for tensor in spec.tensors)
    own = replace(spec, tensors=tensors)
    if engine == "vllm":
        return own
    layers = tuple(_layer(layer, tp) for layer in spec.layers)
    return replace(own, layers=layers, heads=spec.heads // tp)


def _check_heads(spec: ModelSpec, tp: int, engine: str) -> None:
    if spec.heads and spec.heads % tp:
        raise UsageError(
            f"{spec.heads} attention heads do not divide by --tp {tp}",
            hint=f"a divisor of {spec.heads}",
        )
    for count in {layer.kv_heads for layer in spec.layers if layer.kv_heads}:
        uneven = count % tp if count >= tp or engine == "transformers" else tp % count
        latent = all(layer.kind in _LATENT for layer in spec.layers if layer.kv_heads == count)
        if uneven and not latent:
            raise UsageError(
                f"{count} key/value heads do not divide by --tp {tp} on {engine}",
                hint=f"a divisor of {count}",
            )


_LATENT = ("mla", "sliding_mla")


def _layer(layer: Layer, tp: int) -> Layer:
    """Return what a layer keeps on one rank of transformers."""
    kept = layer.kv_heads if layer.kind in _LATENT else layer.kv_heads // tp
    return replace(
        layer, kv_heads=kept, heads=layer.heads // tp, intermediate=-(-layer.intermediate // tp)
    )


def _part(tensor: Tensor, spec: ModelSpec, tp: int, engine: str, kv_heads: int) -> Tensor:
    if tensor.kind != "parameter" or not tensor.shape:
        return tensor
    module = tensor.name.removesuffix(".weight").removesuffix(".bias")
    last = module.rpartition(".")[2]
    style = _style(tensor.name, last, engine)
    if engine == "vllm" and kv_heads and kv_heads < tp and last in (*_KEYS, *_FUSED) and style:
        return _with_whole_heads(tensor, spec, tp, kv_heads, fused=last in _FUSED)
    whole = tensor
    if engine == "vllm" and last in _VOCABULARY and tensor.shape[0] == spec.vocab:
        rows = -(-spec.vocab // _PADDING) * _PADDING
        whole = resized(tensor, (rows, *tensor.shape[1:]))
    return tensor_part(whole, tp, 0, style)


def _style(name: str, last: str, engine: str) -> str:
    style = style_of(name, None)
    if style or engine != "vllm":
        return style
    return _MORE.get(last, "")


def _with_whole_heads(
    tensor: Tensor, spec: ModelSpec, tp: int, kv_heads: int, *, fused: bool
) -> Tensor:
    """Return keys and values of one head, and, of a fused matrix, this rank's queries."""
    parts = spec.heads + 2 * kv_heads if fused else kv_heads
    own = spec.heads // tp + 2 if fused else 1
    rows = max(tensor.shape[0] * own // parts, 1)
    return resized(tensor, (rows, *tensor.shape[1:]))
