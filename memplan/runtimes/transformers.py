"""Hugging Face transformers 5 with accelerate: dynamic caches, streaming by hooks.

Every rule was held against transformers 5.23 and torch 2.13. The bands are wide where a formula
stands in for the model's own code.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from memplan.footprint import activations as act
from memplan.footprint.optimizer import split_name
from memplan.footprint.overhead import overhead_line
from memplan.footprint.tower import IMAGE_LAYER, max_with_tower
from memplan.runtimes.transformers_cache import (
    cache_lines,
    is_quantised,
    layer_cache_bytes,
    layer_kv_bytes,
    layer_state_bytes,
    offloaded_lines,
    sliding_surplus_bytes,
)
from memplan.types import Layer, Line, ModelSpec, Workload
from memplan.units import DTYPE_BITS, MIB

__all__ = [
    "NAME",
    "activation_line",
    "cache_lines",
    "evaluation_bytes",
    "layer_cache_bytes",
    "layer_kv_bytes",
    "layer_state_bytes",
    "offloaded_lines",
    "overhead_line",
    "training_line",
    "training_moments",
]

NAME = "transformers"

_SLACK_BYTES = 128 * MIB
"""Kernel scratch and rounding that no formula sees; added to the upper end of each band."""


def activation_line(spec: ModelSpec, workload: Workload) -> Line:
    """Return what prefill or decode holds beyond weights and cache: the largest of four moments.

    Moments: inside the feed-forward part, inside attention (with the mask that sdpa needs where a
    layer slides or a prompt comes in chunks), the logits, and what each new token copies of one
    layer's cache. To each comes what sliding layers hold beyond the tokens that they show
    (`sliding_surplus_bytes`): after a prompt in one pass that is all of it.

    Band: 0.7 to 1.6 times, without and with that surplus, and at the upper end the key and value
    copies of all query heads that a padded batch makes, the largest tensor once more (it is alive
    twice while it is loaded), a quantized layer unpacked, and 128 MiB. Published peaks of
    generation from one token (Qwen2 speed benchmarks) are up to 0.6 GiB above weights and cache.

    With images: the larger of that and the tower's peak (`memplan.footprint.tower`).
    """
    return max_with_tower(spec, workload, _text_line(spec, workload))


def _text_line(spec: ModelSpec, workload: Workload) -> Line:
    assert workload.context is not None
    element = DTYPE_BITS[workload.dtype] // 8
    length = min(workload.prefill_chunk or workload.context, workload.context)
    moments = _moments(spec, workload, length, element)
    held = {
        moment: sum(sliding_surplus_bytes(x, workload, moment=moment) for x in spec.layers)
        for moment in _PASSES
    }
    after = {name: held["decode" if name == "decode" else "prefill"] for name in moments}
    name = max(moments, key=lambda key: moments[key] + after[key])
    value = moments[name]
    repeated = 0
    if workload.batch > 1:
        repeated = 2 * workload.batch * workload.context * spec.heads * spec.head_dim * element
    more = "; sliding layers keep the whole pass" if after[name] else ""
    return Line(
        part="activations",
        bytes=value + after[name],
        low_bytes=int(0.7 * value),
        high_bytes=int(1.6 * value) + after[name] + repeated + _transient(spec) + _SLACK_BYTES,
        basis="formula",
        source=f"{workload.attention}, pass of {length} tokens, moment: {name}{more}",
    )


_PASSES: tuple[Literal["prefill", "decode"], ...] = ("prefill", "decode")


def _moments(spec: ModelSpec, workload: Workload, length: int, element: int) -> dict[str, int]:
    """Return each moment's bytes, those of the layer that has most."""
    tokens = workload.batch * length
    masks = {layer: _mask_elements(layer, workload, length) for layer in set(spec.layers)}
    kept = sum(sorted(set(masks.values())))  # one mask of each kind, bool, for the whole pass
    moments = {"logits": _logits(spec, workload, length, element) + kept}
    for layer, mask in masks.items():
        shape = _shape(spec, layer)
        attention = act.attention_moment_bytes(shape, tokens=tokens, element_bytes=element)
        if workload.attention == "eager":
            attention += _scores(spec, workload, length, element)
        attention += mask * element + _repeated(shape, layer, workload, length, mask)
        mlp = act.mlp_moment_bytes(shape, tokens=tokens, element_bytes=element)
        sizes = {"feed-forward": mlp + kept, "attention": attention + kept}
        sizes["decode"] = _decode_bytes(layer, workload)
        for name, size in sizes.items():
            moments[name] = max(size, moments.get(name, 0))
    return moments


def _keys_seen(layer: Layer, workload: Workload, length: int) -> int:
    """Return the keys that the last pass of a prompt looks at: what is cached, and its own."""
    assert workload.context is not None
    if layer.kind == IMAGE_LAYER:
        return layer.cross_tokens or 0
    past = workload.context - length
    if layer.window and layer.kind in ("sliding_attention", "chunked_attention", "sliding_mla"):
        past = min(past, layer.window - 1)
    return past + length


def _mask_elements(layer: Layer, workload: Workload, length: int) -> int:
    """Return Tq·Tk where sdpa cannot do with `is_causal`, else 0.

    It cannot where a prompt is longer than the window, or comes in chunks. Flash attention needs no
    mask, and eager attention's is counted with its scores.

    Source: transformers 5 masking_utils.py; a bool for the whole pass, and inside sdpa a copy in
    the queries' dtype: 3 bytes in bfloat16, as measured on a Mistral of 512 and 2048 tokens.
    """
    if workload.attention != "sdpa" or layer.kind in ("state", "none") or length == 1:
        return 0
    keys = _keys_seen(layer, workload, length)
    if layer.kind == IMAGE_LAYER:
        return workload.batch * length * keys  # which image each token may see
    beyond = layer.window is not None and keys > layer.window
    return length * keys if beyond or keys > length else 0


def _repeated(
    shape: act.LayerShape, layer: Layer, workload: Workload, length: int, mask: int
) -> int:
    """Return 2·B·Tk·nq·d·b: with a mask sdpa gets keys and values repeated for all query heads."""
    if not mask or shape.heads <= shape.kv_heads:
        return 0
    keys = _keys_seen(layer, workload, length)
    element = DTYPE_BITS[workload.dtype] // 8
    return 2 * workload.batch * keys * shape.heads * shape.head_dim * element


def _decode_bytes(layer: Layer, workload: Workload) -> int:
    """Return what one layer copies of its cache for each new token.

    Dynamic: the new keys, or values, beside the old ones. Static: nothing, or where it slides both
    anew (rolled by one). Quantized: keys and values unpacked, and again with the new token; fp8:
    the keys unpacked, and the values in float32 twice.
    """
    whole = layer_kv_bytes(layer, replace(workload, kv_dtype=workload.dtype))
    wider = max(layer.key_dim, layer.value_dim)
    part = whole * wider // max(layer.key_dim + layer.value_dim, 1)
    if (workload.cache or "").endswith("static"):
        return whole if layer.kind == "sliding_attention" else 0
    if not is_quantised(workload):
        return part
    element = DTYPE_BITS[workload.dtype] // 8
    return part + 8 * part // element if (workload.kv_dtype or "")[:5] == "float" else 2 * whole


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
    own_heads = 0 if layer.kind == "none" else layer.kv_heads
    return act.LayerShape(
        hidden=spec.hidden,
        intermediate=layer.intermediate,
        heads=spec.heads,
        kv_heads=spec.heads if latent else own_heads,
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

    An evaluation between steps (`eval_batch`) is a fourth instant: logits, their float32 copy and
    its log-softmax, or one layer's feed-forward part, beside no gradient.

    Band: 0.6 to 1.6 times the saved tensors, and 128 MiB.
    """
    evaluated = evaluation_bytes(spec, workload)
    kept, loss, temporary = training_moments(spec, workload, gradients=gradients, kind=kind)
    accumulated = (workload.grad_accum or 1) > 1

    def beyond(scale: float, step: int, freed: float) -> int:
        forward = int(scale * (kept + loss)) + (gradients if accumulated else 0)
        backward = gradients + int(scale * kept / max(len(spec.layers), 1))
        stays = int(freed * scale * (kept + loss)) if kind == "cpu" else 0
        peak = max(forward, backward, gradients + step, int(scale * evaluated))
        return peak - gradients + stays

    attention = "eager" if workload.attention == "eager" else "flash"
    return Line(
        part="activations",
        bytes=beyond(1.0, temporary, 0.5),
        low_bytes=beyond(0.6, 0, 0.0),
        high_bytes=beyond(1.6, temporary, 1.0) + _SLACK_BYTES,
        basis="formula",
        source=f"saved tensors ({attention}), logits and the step's temporaries",
    )


def evaluation_bytes(spec: ModelSpec, workload: Workload) -> int:
    """Return T·V·(b + 8), or the widest layer's feed-forward moment: a pass without gradients."""
    if workload.eval_batch is None:
        return 0
    assert workload.seq is not None
    element = 2 if workload.precision != "fp32" else 4
    tokens = workload.eval_batch * workload.seq
    logits = tokens * spec.vocab * (element + 8)
    layers = (
        act.mlp_moment_bytes(_shape(spec, x), tokens=tokens, element_bytes=element)
        for x in set(spec.layers)
    )
    return max(logits, *layers)


def training_moments(
    spec: ModelSpec, workload: Workload, *, gradients: int, kind: Literal["gpu", "cpu"]
) -> tuple[int, int, int]:
    """Return the bytes of what all layers save, of the loss, and of the optimizer's temporaries."""
    assert workload.seq is not None
    element = 2 if workload.precision != "fp32" else 4
    tokens = workload.batch * workload.seq
    kept = _saved(spec, workload, tokens, element)
    loss = act.loss_bytes(tokens=tokens, vocab=spec.vocab, element_bytes=element)
    return kept, loss, _step_bytes(spec, workload, gradients, kind)


def _step_bytes(spec: ModelSpec, workload: Workload, gradients: int, kind: str) -> int:
    """Return the temporaries of one optimizer step (torch.optim 2.13, default implementation)."""
    name, in_backward = split_name(workload.optimizer or "")
    if name in _IN_PLACE:
        return 0
    if kind == "gpu" and name in _ALL_AT_ONCE and not in_backward:
        return gradients
    return 2 * max((t.bytes for t in spec.tensors if t.kind == "parameter"), default=0)


_ALL_AT_ONCE = ("adamw", "adamw-foreach", "adam", "adagrad", "rmsprop")
"""Optimizers that make a temporary like all parameters on a GPU (`foreach`)."""
_IN_PLACE = (
    "adamw-fused",
    "adamw-8bit",
    "paged-adamw",
    "paged-adamw-8bit",
    "lion",
    "lion-8bit",
    "ademamix",
    "ademamix-8bit",
    "torchao-adamw-8bit",
    "torchao-adamw-4bit",
    "torchao-adamw-fp8",
    "sgd",
    "sgd-momentum",
)
"""Optimizers whose kernels make none."""


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
