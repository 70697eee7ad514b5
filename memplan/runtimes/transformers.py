"""Hugging Face transformers 5 with accelerate: dynamic caches, streaming by hooks.

Every rule was held against transformers 5.23 and torch 2.13. The bands are wide where a formula
stands in for the model's own code.
"""

from __future__ import annotations

from typing import Literal

from memplan.errors import UnsupportedModelError
from memplan.footprint import activations as act
from memplan.footprint import cache
from memplan.types import Layer, Line, ModelSpec, Workload
from memplan.units import DTYPE_BITS, MIB

__all__ = ["NAME", "activation_line", "cache_line", "layer_cache_bytes", "training_line"]

NAME = "transformers"

_SLACK_BYTES = 64 * MIB
"""Kernel scratch and rounding that no formula sees; added to the upper end of each band."""

_NO_CACHE = ("shared_kv", "encoder_only")


def cache_line(spec: ModelSpec, workload: Workload) -> Line | None:
    """Return the KV cache of a full context: DynamicCache, exact; None where nothing is kept.

    Raises UnsupportedModelError for a layer kind without a rule.
    """
    total = sum(layer_cache_bytes(layer, workload) for layer in spec.layers)
    if not total:
        return None
    kinds = sorted({layer.kind for layer in spec.layers if layer.kind not in _NO_CACHE})
    return Line(
        part="kv_cache",
        bytes=total,
        low_bytes=total,
        high_bytes=total,
        basis="exact",
        source=f"DynamicCache: {', '.join(kinds)}",
    )


def layer_cache_bytes(layer: Layer, workload: Workload) -> int:
    """Return one layer's share of `cache_line`. Raises UnsupportedModelError without a rule."""
    assert workload.context is not None
    element = DTYPE_BITS[workload.kv_dtype or workload.dtype] // 8
    batch, tokens = workload.batch, workload.context
    if layer.kind in _NO_CACHE:
        return 0
    if layer.kind == "mla":
        return cache.latent_cache_bytes(
            batch=batch,
            tokens=tokens,
            latent_dim=layer.key_dim,
            rope_dim=layer.value_dim,
            element_bytes=element,
        )
    if layer.kind == "full_attention":
        return cache.full_cache_bytes(
            batch=batch,
            tokens=tokens,
            kv_heads=layer.kv_heads,
            key_dim=layer.key_dim,
            value_dim=layer.value_dim,
            element_bytes=element,
        )
    if layer.kind in ("sliding_attention", "chunked_attention") and layer.window:
        kept = cache.window_cache_bytes(
            batch=batch,
            tokens=tokens,
            window=layer.window,
            kv_heads=layer.kv_heads,
            key_dim=layer.key_dim,
            value_dim=layer.value_dim,
            element_bytes=element,
        )
        return kept + cache.SLIDING_COUNTER_BYTES
    raise UnsupportedModelError(
        f"memplan has no cache rule for layers of kind {layer.kind!r} in transformers",
        hint="attention layers are covered: full, sliding, chunked and MLA",
    )


def activation_line(spec: ModelSpec, workload: Workload) -> Line:
    """Return what prefill or decode holds beyond weights and cache: the largest of four moments.

    Moments: inside the feed-forward part, inside attention, the last token's logits, and the copy
    of one layer's keys that each new token makes. Band: 0.7 to 1.6 times, and at the upper end
    the key and value copies of all query heads that a padded batch makes, and 64 MiB.
    """
    assert workload.context is not None
    element = DTYPE_BITS[workload.dtype] // 8
    length = min(workload.prefill_chunk or workload.context, workload.context)
    tokens = workload.batch * length
    moments = {"logits": _logits(spec, workload, element)}
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
        high_bytes=int(1.6 * value) + repeated + _SLACK_BYTES,
        basis="formula",
        source=f"{workload.attention}, pass of {length} tokens, moment: {name}",
    )


def _logits(spec: ModelSpec, workload: Workload, element: int) -> int:
    return act.last_logits_bytes(batch=workload.batch, vocab=spec.vocab, element_bytes=element)


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

    Band: 0.6 to 1.6 times the saved tensors, and 64 MiB.
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
