"""Hugging Face transformers 5 with accelerate: dynamic caches, streaming by hooks.

Every rule was held against transformers 5.23 and torch 2.13. The bands are wide where a formula
stands in for the model's own code.
"""

from __future__ import annotations

from typing import Literal

from memplan.errors import UnsupportedModelError
from memplan.footprint import activations as act
from memplan.footprint import cache
from memplan.footprint.lines import exact_line
from memplan.footprint.overhead import overhead_line
from memplan.types import Layer, Line, ModelSpec, Workload
from memplan.units import DTYPE_BITS, MIB

__all__ = [
    "NAME",
    "activation_line",
    "cache_lines",
    "layer_cache_bytes",
    "layer_kv_bytes",
    "layer_state_bytes",
    "overhead_line",
    "training_line",
]

NAME = "transformers"

_SLACK_BYTES = 128 * MIB
"""Kernel scratch and rounding that no formula sees; added to the upper end of each band."""

QUANTISED_BITS = {"int8": 8, "int4": 4, "int2": 2}
"""Cache types of QuantizedCache (quanto or HQQ) -> bits of one value."""

RESIDUAL_TOKENS = 128
GROUP = 64

_NO_CACHE = ("shared_kv", "encoder_only", "none")
_SLIDING = ("sliding_attention", "chunked_attention", "sliding_mla", "compressed_attention")


def cache_lines(spec: ModelSpec, workload: Workload) -> list[Line]:
    """Return the keys and values, and the states, of a full context: DynamicCache, exact.

    Raises UnsupportedModelError for a layer kind without a rule.
    """
    grown = sum(layer_kv_bytes(layer, workload) for layer in spec.layers)
    fixed = sum(layer_state_bytes(layer, workload) for layer in spec.layers)
    kinds = sorted({layer.kind for layer in spec.layers} - {*_NO_CACHE, "state"})
    states = sorted({state.kind for layer in spec.layers for state in layer.states})
    lines = []
    if grown:
        lines.append(exact_line("kv_cache", grown, f"DynamicCache: {', '.join(kinds)}"))
    if fixed:
        lines.append(exact_line("state_cache", fixed, f"DynamicCache: {', '.join(states)}"))
    return lines


def layer_cache_bytes(spec: ModelSpec, layer: Layer, workload: Workload) -> int:
    """Return one layer's share of `cache_lines`. Raises UnsupportedModelError without a rule."""
    del spec
    return layer_kv_bytes(layer, workload) + layer_state_bytes(layer, workload)


def layer_state_bytes(layer: Layer, workload: Workload) -> int:
    """Return B·Σ elements·kernel·b: what one layer keeps whatever the length.

    A convolution keeps d_conv inputs, not d_conv - 1 (cache_utils.py, LinearAttentionLayer).
    """
    element = _element_bytes(workload)
    size = 0
    for state in layer.states:
        width = DTYPE_BITS[state.dtype] // 8 if state.dtype else element
        size += state.elements * state.kernel * width
    return workload.batch * size


def layer_kv_bytes(layer: Layer, workload: Workload) -> int:
    """Return the keys and values of one layer. Raises UnsupportedModelError without a rule."""
    assert workload.context is not None
    if layer.kind in (*_NO_CACHE, "state"):
        return 0
    if workload.kv_dtype in QUANTISED_BITS:
        return _quantised_bytes(layer, workload)
    element = _element_bytes(workload)
    tokens = workload.context + layer.prefix
    size = _self_bytes(layer, workload.batch, tokens, element)
    if layer.kind in _SLIDING and layer.window:
        size += cache.SLIDING_COUNTER_BYTES
    if layer.index_dim and layer.kind != "compressed_attention":
        width = DTYPE_BITS[layer.index_dtype] // 8 if layer.index_dtype else element
        size += workload.batch * tokens * layer.index_dim * width
    if layer.cross_tokens is not None:
        kept = layer.cross_tokens or workload.context
        heads = layer.kv_heads * (layer.key_dim + layer.value_dim)
        size += workload.batch * kept * heads * element
    return size


def _element_bytes(workload: Workload) -> int:
    name = workload.kv_dtype or workload.dtype
    return DTYPE_BITS[workload.dtype if name in QUANTISED_BITS else name] // 8


def _quantised_bytes(layer: Layer, workload: Workload) -> int:
    """Return B·n·(dk + dv)·(q·bits/8 + q/64·2·b + r·b) of a QuantizedCache.

    The last r = min(S, 127) tokens stay in full precision, at least; all before are packed in
    groups of 64 with a scale and a shift each (cache_utils.py, QuantizedLayer: nbits, q_group_size
    64, residual_length 128). Only full attention can be so cached.
    """
    if layer.kind != "full_attention" or layer.states or layer.cross_tokens is not None:
        raise UnsupportedModelError(
            f"transformers quantizes the cache of full attention only, not of {layer.kind!r}",
            hint="leave --kv-dtype out, or use --runtime llama.cpp with q8_0",
        )
    element = _element_bytes(workload)
    bits = QUANTISED_BITS[workload.kv_dtype or ""]
    tokens = workload.context or 0
    kept = min(tokens, RESIDUAL_TOKENS - 1)
    width = layer.kv_heads * (layer.key_dim + layer.value_dim)
    packed = (tokens - kept) * width
    groups = -(-packed // GROUP)
    size = -(-packed * bits // 8) + groups * 2 * element + kept * width * element
    return workload.batch * size


def _self_bytes(layer: Layer, batch: int, tokens: int, element: int) -> int:
    heads = layer.heads if layer.kind == "broadcast_attention" else layer.kv_heads
    kept = min(tokens, max(layer.window - 1, 0)) if layer.window else tokens
    if layer.kind in ("full_attention", "broadcast_attention", *_SLIDING[:2]):
        return cache.full_cache_bytes(
            batch=batch,
            tokens=kept,
            kv_heads=heads,
            key_dim=layer.key_dim,
            value_dim=layer.value_dim,
            element_bytes=element,
        )
    if layer.kind in ("mla", "sliding_mla"):
        return cache.latent_cache_bytes(
            batch=batch,
            tokens=kept,
            latent_dim=layer.key_dim,
            rope_dim=layer.value_dim,
            element_bytes=element,
        )
    if layer.kind == "compressed_attention":
        size = batch * kept * layer.kv_heads * layer.key_dim * element
        if not layer.compress:
            return size
        return size + cache.pooled_cache_bytes(
            batch=batch,
            tokens=tokens,
            rate=layer.compress,
            dim=layer.key_dim,
            index_dim=layer.index_dim,
            element_bytes=element,
        )
    raise UnsupportedModelError(
        f"memplan has no cache rule for layers of kind {layer.kind!r} in transformers",
        hint="report the model",
    )


def activation_line(spec: ModelSpec, workload: Workload) -> Line:
    """Return what prefill or decode holds beyond weights and cache: the largest of four moments.

    Moments: inside the feed-forward part, inside attention, the last token's logits, and the copy
    of one layer's keys that each new token makes. Band: 0.7 to 1.6 times, and at the upper end
    the key and value copies of all query heads that a padded batch makes, the largest tensor once
    more (it is alive twice while it is loaded), a quantized layer unpacked, and 128 MiB. Published
    peaks of generation from one token (Qwen2 speed benchmarks) are up to 0.6 GiB above weights and
    cache.
    """
    assert workload.context is not None
    element = DTYPE_BITS[workload.dtype] // 8
    length = min(workload.prefill_chunk or workload.context, workload.context)
    tokens = workload.batch * length
    moments = {"logits": _logits(spec, workload, length, element)}
    repeated = 0
    for layer in set(spec.layers):
        shape = _shape(spec, layer)
        attention = act.attention_moment_bytes(shape, tokens=tokens, element_bytes=element)
        if workload.attention == "eager":
            attention += _scores(spec, workload, length, element)
        copy = act.decode_copy_bytes(
            batch=workload.batch,
            keys=workload.context,
            kv_heads=layer.kv_heads,
            dim=layer.key_dim,
            element_bytes=element,
        )
        mlp = act.mlp_moment_bytes(shape, tokens=tokens, element_bytes=element)
        for name, size in (("feed-forward", mlp), ("attention", attention), ("decode", copy)):
            moments[name] = max(size, moments.get(name, 0))
        if workload.batch > 1:
            repeated = 2 * workload.batch * workload.context * spec.heads * spec.head_dim * element
    name = max(moments, key=lambda key: moments[key])
    value = moments[name]
    return Line(
        part="activations",
        bytes=value,
        low_bytes=int(0.7 * value),
        high_bytes=int(1.6 * value) + repeated + _transient(spec) + _SLACK_BYTES,
        basis="formula",
        source=f"{workload.attention}, pass of {length} tokens, moment: {name}",
    )


def _transient(spec: ModelSpec) -> int:
    """Return the largest tensor, and 2 bytes for each weight of the largest packed one."""
    kinds = {(t.dtype, t.shape, t.bytes) for t in spec.tensors if t.kind == "parameter"}
    largest = max((size for _, _, size in kinds), default=0)
    matrices = (
        2 * shape[-1] * shape[-2]
        for dtype, shape, _ in kinds
        if len(shape) > 1 and DTYPE_BITS.get(dtype, 0) < _PLAIN
    )
    return largest + max(matrices, default=0)


_PLAIN = 16
"""Bits from which a dtype is no packed one."""


def _logits(spec: ModelSpec, workload: Workload, length: int, element: int) -> int:
    """Return the logits of the last token, or of all with the hidden states they come from.

    All: B·T·(V·b + h·b), and B·T·V·4 more where they are copied to float32 (transformers before
    4.45; Llama-3.1-8B at 4096 tokens: 1034 MiB measured for bfloat16).
    """
    if workload.logits in (None, "last"):
        return act.last_logits_bytes(batch=workload.batch, vocab=spec.vocab, element_bytes=element)
    tokens = workload.batch * length
    copy = 4 * spec.vocab if workload.logits == "full-fp32" else 0
    return tokens * ((spec.vocab + spec.hidden) * element + copy)


def _scores(spec: ModelSpec, workload: Workload, queries: int, element: int) -> int:
    keys = workload.context or workload.seq or 0
    return act.scores_bytes(
        batch=workload.batch, heads=spec.heads, queries=queries, keys=keys, element_bytes=element
    )


def _shape(spec: ModelSpec, layer: Layer) -> act.LayerShape:
    """Return a layer's widths; MLA expands its latent to one key and value per query head."""
    latent = layer.kind == "mla"
    return act.LayerShape(
        hidden=spec.hidden,
        intermediate=layer.intermediate,
        heads=spec.heads,
        kv_heads=spec.heads if latent else layer.kv_heads,
        head_dim=spec.head_dim if latent else layer.key_dim or spec.head_dim,
        experts_per_token=spec.experts_per_token or 0,
    )


def training_line(
    spec: ModelSpec, workload: Workload, *, gradients: int, kind: Literal["gpu", "cpu"]
) -> Line:
    """Return what a training step holds at its peak beyond weights, gradients and states.

    The peak is the highest of three instants: the end of the forward pass (saved tensors and
    logits, and no gradient yet unless micro-batches are accumulated), the end of the backward
    pass (one layer's saved tensors beside all gradients), and the optimizer's step (Adam's
    temporaries: on a GPU, where torch's default is `foreach`, one like all parameters; on the
    host, which goes parameter by parameter, two of the largest). Gradients are a line of their
    own, so they are taken off here: this line can be smaller than the saved tensors.

    A host process also keeps part of what was freed: saved tensors come in all sizes, and the C
    library gives back only what lies at the end of its heap. Measured with glibc on
    100 M parameters in float32: 55 % of 580 MiB and 80 % of 290 MiB stayed resident. Half is taken
    for the estimate, none and all for the ends of the band.

    Band: 0.6 to 1.6 times the saved tensors, and 128 MiB.
    """
    assert workload.seq is not None
    element = 2 if workload.precision != "fp32" else 4
    tokens = workload.batch * workload.seq
    kept = _saved(spec, workload, tokens, element)
    loss = act.loss_bytes(tokens=tokens, vocab=spec.vocab, element_bytes=element)
    temporary = _step_bytes(spec, workload, gradients, kind)
    accumulated = (workload.grad_accum or 1) > 1

    def beyond(scale: float, step: int, freed: float) -> int:
        forward = int(scale * (kept + loss)) + (gradients if accumulated else 0)
        backward = gradients + int(scale * kept / max(len(spec.layers), 1))
        stays = int(freed * scale * (kept + loss)) if kind == "cpu" else 0
        return max(forward, backward, gradients + step) - gradients + stays

    attention = "eager" if workload.attention == "eager" else "flash"
    return Line(
        part="activations",
        bytes=beyond(1.0, temporary, 0.5),
        low_bytes=beyond(0.6, 0, 0.0),
        high_bytes=beyond(1.6, temporary, 1.0) + _SLACK_BYTES,
        basis="formula",
        source=f"saved tensors ({attention}), logits and the step's temporaries",
    )


def _step_bytes(spec: ModelSpec, workload: Workload, gradients: int, kind: str) -> int:
    """Return the temporaries of one optimizer step (torch.optim 2.13, default implementation)."""
    if not (workload.optimizer or "").startswith("ada"):
        return 0
    if kind == "gpu":
        return gradients
    return 2 * max((t.bytes for t in spec.tensors if t.kind == "parameter"), default=0)


def _saved(spec: ModelSpec, workload: Workload, tokens: int, element: int) -> int:
    """Return the tensors that all layers keep for the backward pass.

    Full checkpointing keeps each layer's input and, for one layer at a time, everything.
    """
    per_layer = []
    for layer in spec.layers:
        size = tokens * act.saved_bytes_per_token(_shape(spec, layer), element_bytes=element)
        if workload.attention == "eager":
            assert workload.seq is not None
            scores = workload.batch * spec.heads * workload.seq * workload.seq
            size += (4 + element) * scores
        per_layer.append(size)
    if workload.checkpointing == "full":
        return len(per_layer) * tokens * spec.hidden * element + max(per_layer, default=0)
    return sum(per_layer)
