"""llama.cpp's compute buffers, one on each device that has a part of the model.

Each holds the highest moment of one micro-batch of its own layers. Symbols: T tokens of a
micro-batch, h hidden size, f inner size of the feed-forward part (of all chosen experts), e chosen
experts, V vocabulary; everything in float32 but the masks of flash attention.

Fitted to the dry run of llama.cpp 0c1e570 on devices of ggml-rpc-server: nine models, 1 and 2 GPUs,
contexts of 8k to 128k, micro-batches of 512 and 2048, flash attention on and off; see
benchmarks/llamacpp_fit.py for what is held today.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memplan.footprint.lines import band_line
from memplan.runtimes.llamacpp import attention_bytes, mask_bytes, micro_batch
from memplan.types import Layer, Line, ModelSpec, Workload
from memplan.units import MIB

__all__ = ["Share", "buffer_line", "host_buffer_line"]

_FLOAT = 4
_INDEX = 8
_PIPELINED = 4
"""Copies of the inputs that GGML_SCHED_MAX_COPIES keeps when GPUs work at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What of a model one GPU computes."""

    layers: tuple[Layer, ...]
    """Shapes of its layers, each once."""
    output: bool = False
    """True when the logits are computed there."""
    copied_bytes: int = 0
    """Largest weight in host memory that is copied there for a large batch."""
    cache_bytes: int = 0
    """Largest cache of a layer in host memory, copied for the same reason."""
    gaps: bool = False
    """True where tensors of different life lie so that a second copy can be needed."""
    hosted: bool = False
    """True when the host computes a part of the model."""
    pipelined: bool = False
    """True when several GPUs work on different micro-batches at the same time."""


def buffer_line(spec: ModelSpec, workload: Workload, share: Share) -> Line:
    """Return the compute buffer of a GPU.

    Its highest moment; where GPUs take turns on micro-batches (all layers on several GPUs), three
    more copies of the masks and up to 8·T·h for the hidden states that wait. Where large batches
    of what the host has are computed here (--op-offload), a copy of the largest weight beside the
    feed-forward part, and of a layer's cache. The upper end is what gaps between tensors cost: with
    several GPUs and with recurrent layers (Qwen3-Next) two copies of experts, and with a dense
    model one beside the highest moment, were seen.
    """
    inner = max((_inner(spec, workload, layer) for layer in share.layers), default=0)
    attention = max((_attention(spec, workload, layer) for layer in share.layers), default=0)
    logits = _wide(workload, spec.vocab + spec.hidden) if share.output else 0
    beside = 0
    if share.pipelined:
        beside = (_PIPELINED - 1) * _inputs(spec, workload) + _wide(workload, 8 * spec.hidden)
    copied, cached = share.copied_bytes, share.cache_bytes
    experts = spec.experts_per_token or 0
    highest = max(logits, inner, attention)
    size = max(highest, inner + copied if copied else 0) + beside
    top = max(logits, attention + cached, inner + copied + cached)
    if copied and not experts:
        top = max(top, highest + copied)
    elif copied and share.gaps:
        top = max(highest + copied, inner + 2 * copied) + cached
    slack = _wide(workload, (2 + (experts if share.hosted else 0)) * spec.hidden)
    copies = ", with room for a weight copied for prompts" if copied else ""
    return band_line(
        "activations",
        size,
        low=highest * 9 // 10,
        high=int(1.02 * (top + beside)) + slack + MIB,
        source=f"compute buffer, micro-batch {micro_batch(workload)}{copies}",
    )


def host_buffer_line(spec: ModelSpec, workload: Workload, layers: Sequence[Layer]) -> Line:
    """Return the host's compute buffer and logits: the inputs, and its own layers' moments.

    Inputs are 2·T·h and the masks. One sequence's logits are V float32.
    """
    inputs = _wide(workload, 2 * spec.hidden) + _inputs(spec, workload)
    moments = (max(_inner(spec, workload, x), _attention(spec, workload, x)) for x in layers)
    own = max(moments, default=0)
    output = spec.vocab * _FLOAT * workload.batch
    size = inputs + own + output
    pipelined = _wide(workload, 5 * spec.hidden) + _PIPELINED * _inputs(spec, workload)
    return band_line(
        "activations",
        size,
        low=inputs,
        high=int(1.1 * max(size, pipelined + output)) + 8 * MIB,
        source=f"host's compute buffer and logits, micro-batch {micro_batch(workload)}",
    )


def _wide(workload: Workload, width: int) -> int:
    """Return T rows of so many float32."""
    return micro_batch(workload) * _FLOAT * width


def _inputs(spec: ModelSpec, workload: Workload) -> int:
    """Return the masks and, without flash attention, where to put V's values (int64 each)."""
    size = mask_bytes(spec, workload)
    if workload.attention == "eager":
        widths = {layer.window or 0: layer.kv_heads * layer.value_dim for layer in spec.layers}
        size += micro_batch(workload) * _INDEX * sum(widths.values())
    return size


def _inner(spec: ModelSpec, workload: Workload, layer: Layer) -> int:
    """Return the feed-forward part, T·(3f + (e + 2)·h), or a recurrent one if that is higher."""
    width = 3 * layer.intermediate + ((spec.experts_per_token or 0) + 2) * spec.hidden
    channels = max((s.elements for s in layer.states if s.kind == "conv"), default=0)
    width = max(width, 5 * channels + 2 * spec.hidden if channels else 0)
    return _wide(workload, width) + _inputs(spec, workload)


def _attention(spec: ModelSpec, workload: Workload, layer: Layer) -> int:
    size = attention_bytes(spec, layer, workload)
    return size + _inputs(spec, workload) if size else 0
