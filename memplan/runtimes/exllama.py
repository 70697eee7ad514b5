"""ExLlama v3: pages of 256 tokens, packed caches of 2 to 8 bits, windows in rings.

Rules: exllamav3, exllamav3/cache (quant.py, fp16.py, mla.py, recurrent.py) and
modules/sliding_attn.py, read in 2026; nothing was measured here. v2 has the same pages, caches of
8, 6 and 4 bits in the same layout, and no rings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from memplan.errors import UnsupportedModelError, UsageError
from memplan.footprint.lines import band_line, exact_line
from memplan.footprint.overhead import Cost, cost_line
from memplan.footprint.tower import max_with_tower
from memplan.types import Layer, Line, ModelSpec, Workload
from memplan.units import GIB, MIB

__all__ = [
    "CHUNK_TOKENS",
    "NAME",
    "PAGE_TOKENS",
    "activation_line",
    "cache_bits",
    "cache_lines",
    "layer_cache_bytes",
    "overhead_line",
]

NAME = "exllama"

PAGE_TOKENS = 256
"""Tokens in one page (constants.py, PAGE_SIZE); the cache is a whole number of pages."""

CHUNK_TOKENS = 2048
"""Prompt tokens in one pass where nobody sets them (max_chunk_size of v3, max_input_len of v2)."""

_RING_TYPES = ("gpt_oss", "gemma4", "gemma4_text", "mimo_v2_flash")
"""transformers' types whose windows lie in rings; all others keep the whole context in pages and
mask it (Gemma 2 and 3, Mistral, Cohere 2)."""

_RING_EXTRA = 2 * PAGE_TOKENS
"""Tokens beside the window, for rolling back drafts (sliding_window_overp)."""

_SLOTS = 16
"""Sequences that Cache allocates rings and states for where nobody sets max_batch_size."""

_GROUP = 32
_HALF = 2
_FLOAT = 4
_NO_CACHE = ("shared_kv", "encoder_only", "none", "state")
_PAGED = ("full_attention", "sliding_attention", "broadcast_attention", "mla")


def cache_lines(spec: ModelSpec, workload: Workload) -> list[Line]:
    """Return the pages of all sequences, exact, and the rings and states of their slots.

    Rings and states: of as many slots as there are sequences; at the upper end of 16, which is
    what a Cache allocates unless max_batch_size is set.

    Raises UnsupportedModelError for a layer without a rule and UsageError for a cache type that
    ExLlama does not have.
    """
    paged = sum(_paged_bytes(spec, layer, workload) for layer in spec.layers)
    fixed = sum(_slot_bytes(spec, layer) for layer in spec.layers)
    keys, values = cache_bits(workload)
    lines = []
    if paged:
        source = f"pages of {PAGE_TOKENS} tokens, keys in {keys} bits, values in {values}"
        lines.append(exact_line("kv_cache", paged, source))
    if fixed:
        slots = max(workload.batch, _SLOTS)
        size = workload.batch * fixed
        source = f"windows and states of {workload.batch} slots ({_SLOTS} by default)"
        lines.append(band_line("state_cache", size, low=size, high=slots * fixed, source=source))
    return lines


def layer_cache_bytes(spec: ModelSpec, layer: Layer, workload: Workload) -> int:
    """Return one layer's share of `cache_lines`, in bytes."""
    return _paged_bytes(spec, layer, workload) + workload.batch * _slot_bytes(spec, layer)


def cache_bits(workload: Workload) -> tuple[int, int]:
    """Return the bits of a key's and of a value's element: 16, or 2 to 8 without their scales.

    Names: fp16; q2 ... q8 for both; k8v4 for keys in 8 and values in 4 bits (TabbyAPI: 8,4).
    Raises UsageError for another name.
    """
    name = workload.kv_dtype or "fp16"
    if name in ("fp16", "f16", "float16"):
        return 16, 16
    found = re.fullmatch(r"q([2-8])|k([2-8])v([2-8])", name)
    if found is None:
        raise UsageError(
            f"exllama has no cache of type {name!r}", hint="fp16, q2 to q8, or a pair such as k8v4"
        )
    keys = int(found[1] or found[2])
    return keys, int(found[1] or found[3])


def _row_bytes(elements: int, bits: int) -> int:
    """Return the bytes of one token's elements: n·2, or ⌊n/32⌋·(4·bits + 2).

    32 values are packed in `bits` int32 with one float16 scale (quant.py): bits + 0.5 each.
    """
    return elements * _HALF if bits == 16 else elements // _GROUP * (4 * bits + _HALF)


def _pages(workload: Workload) -> int:
    return workload.batch * -(-(workload.context or 0) // PAGE_TOKENS)


def _rings(spec: ModelSpec, layer: Layer) -> bool:
    return layer.kind == "sliding_attention" and (spec.model_type or "") in _RING_TYPES


def _paged_bytes(spec: ModelSpec, layer: Layer, workload: Workload) -> int:
    """Return the pages of one layer: keys and values alike as wide as a head of the keys.

    MLA: the latent in the keys' bits, its rope in float16.
    """
    if layer.kind in _NO_CACHE or _rings(spec, layer):
        return 0
    if layer.kind not in _PAGED or layer.cross_tokens is not None or layer.index_dim:
        raise UnsupportedModelError(
            f"memplan has no rule for layers of kind {layer.kind!r} in exllama",
            hint="use --runtime transformers",
        )
    keys, values = cache_bits(workload)
    if layer.kind == "mla":
        row = _row_bytes(layer.key_dim, keys) + _row_bytes(layer.value_dim, 16)
    else:
        width = _width(layer)
        row = _row_bytes(width, keys) + _row_bytes(width, values)
    return _pages(workload) * PAGE_TOKENS * row


def _width(layer: Layer) -> int:
    """Return the elements of one token's keys, or of its values: n·max(dk, dv)."""
    return layer.kv_heads * max(layer.key_dim, layer.value_dim)


def _slot_bytes(spec: ModelSpec, layer: Layer) -> int:
    """Return the window's ring and the states of one sequence.

    Ring: ⌈(W - 1 + 512) / 256⌉·256 tokens in float16, whatever the cache's type. States: d_conv
    inputs in 16 bits, the recurrent state in float32 (gated_delta_net.py).
    """
    size = 0
    if _rings(spec, layer):
        tokens = (layer.window or 1) - 1 + _RING_EXTRA
        row = 2 * _width(layer) * _HALF
        size += -(-tokens // PAGE_TOKENS) * PAGE_TOKENS * row
    for state in layer.states:
        width = _FLOAT if state.kind == "recurrent" else _HALF
        size += state.elements * state.kernel * width
    return size


def activation_line(spec: ModelSpec, workload: Workload) -> Line:
    """Return what one chunk of a prompt holds in the widest layer.

    T·(h·(4 + 4 + 2) + 6·i) + 2·h·i: the residual and a block's output in float32, the normed input
    in float16, gate, up and product in float16, and one matrix unpacked to float16, as longer
    inputs are multiplied (exl3.py, reconstruct). Or the logits of 32 tokens (max_output_size),
    twice in float32.

    A formula that was not measured: band 0.4 to 2.5 times, and at the upper end one layer of a
    packed cache in float16 (get_kv, as version 0.0.3 called it) and 128 MiB.
    """
    if not spec.hidden:
        raise UnsupportedModelError(
            f"{spec.name}: its shapes are not known", hint="add config.json"
        )
    chunk = workload.prefill_chunk or CHUNK_TOKENS
    tokens = min(chunk, _pages(workload) * PAGE_TOKENS)
    inner = max((layer.intermediate for layer in spec.layers), default=0)
    block = tokens * (10 * spec.hidden + 6 * inner) + 2 * spec.hidden * inner
    size = max(block, 2 * 32 * spec.vocab * _FLOAT)
    unpacked = 0
    if cache_bits(workload) != (16, 16):
        widest = max((_width(layer) for layer in spec.layers), default=0)
        unpacked = _pages(workload) * PAGE_TOKENS * 2 * widest * _HALF
    text = band_line(
        "activations",
        size,
        low=int(0.4 * size),
        high=int(2.5 * size) + unpacked + 128 * MIB,
        source=f"chunk of {tokens} tokens, one matrix unpacked",
    )
    return max_with_tower(spec, workload, text)


def overhead_line(
    kind: Literal["gpu", "cpu"], baseline: int | None = None, costs: Sequence[Cost] = ()
) -> Line:
    """Return context, cuBLAS and the extension's buffers on a GPU.

    What v3 leaves free on each card (0.5 GiB; v2: 192 MiB on the first) is an allowance for it.
    Raises UsageError where no GPU computes.
    """
    del baseline
    if kind == "cpu":
        raise UsageError(
            "exllama runs on GPUs only", hint="add --device, or use --runtime llama.cpp"
        )
    if costs:
        return cost_line(costs)
    return band_line(
        "overhead",
        GIB // 2,
        low=192 * MIB,
        high=int(1.56 * GIB),
        source="CUDA context and buffers: what v2 and v3 leave free, published range",
        basis="assumed",
    )
