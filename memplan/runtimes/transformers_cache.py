"""The caches of Hugging Face transformers 5: dynamic, static, offloaded and quantized.

Every rule was held to the byte against the caches of transformers 5.23 (cache_utils.py), by the
tensors that they show. What a view keeps alive beyond that is `sliding_surplus_bytes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from memplan.errors import UnsupportedModelError
from memplan.footprint import cache
from memplan.footprint.lines import band_line, exact_line
from memplan.footprint.tower import IMAGE_LAYER
from memplan.types import Layer, Line, ModelSpec, Workload
from memplan.units import DTYPE_BITS

__all__ = [
    "QUANTISED_BITS",
    "cache_lines",
    "is_quantised",
    "layer_cache_bytes",
    "layer_kv_bytes",
    "layer_state_bytes",
    "offloaded_lines",
    "quantised_bytes",
    "sliding_surplus_bytes",
]

QUANTISED_BITS = {"int8": 8, "int4": 4, "int2": 2}
"""Cache types of QuantizedCache by groups -> bits of one value (quanto: 4 and 2, HQQ: all)."""

RESIDUAL_TOKENS = 128
GROUP = 64

_COUNTER_BYTES = 8
"""One int64 in each layer of a StaticCache: the tokens that it holds (cumulative_length)."""

_SCALE_BYTES = 4
"""One float32 for all keys of a layer, and one for all values (Fp8QuantizedLayer)."""

_NO_CACHE = ("shared_kv", "encoder_only", "none")
_SLIDING = ("sliding_attention", "chunked_attention", "sliding_mla", "compressed_attention")
_QUANTISABLE = ("full_attention", "broadcast_attention", "mla")


def cache_lines(spec: ModelSpec, workload: Workload) -> list[Line]:
    """Return the keys and values, and the states, of a full context on the computing device.

    Exact, but for an offloaded cache, of which two layers at a time are there
    (`offloaded_lines`), and a quantized one, whose last 0 to 127 tokens wait in full precision.

    Raises UnsupportedModelError for a layer kind without a rule.
    """
    kept = sum(_resident_bytes(layer, workload) for layer in spec.layers)
    fixed = sum(layer_state_bytes(x, workload) for x in spec.layers if not _moves(x, workload))
    states = sorted({state.kind for layer in spec.layers for state in layer.states})
    lines = []
    if kept:
        lines.append(_kv_line(spec, workload, kept))
    moving = offloaded_lines(spec, workload)
    if moving is not None:
        lines.append(moving[0])
    if fixed:
        lines.append(exact_line("state_cache", fixed, f"{_name(workload)}: {', '.join(states)}"))
    return lines


def _kv_line(spec: ModelSpec, workload: Workload, size: int) -> Line:
    kinds = sorted({layer.kind for layer in spec.layers} - {*_NO_CACHE, "state"})
    source = f"{_name(workload)}: {', '.join(kinds)}"
    if workload.kv_dtype not in QUANTISED_BITS:
        return exact_line("kv_cache", size, source)
    packed = sum(quantised_bytes(x, workload, kept=0) for x in spec.layers if _has_kv(x))
    return band_line(
        "kv_cache", size, low=packed, high=size, source=f"{source}, last 127 tokens unpacked"
    )


def layer_cache_bytes(spec: ModelSpec, layer: Layer, workload: Workload) -> int:
    """Return one layer's share of what stays on its device, in bytes.

    Raises UnsupportedModelError without a rule.
    """
    del spec
    states = 0 if _moves(layer, workload) else layer_state_bytes(layer, workload)
    return _resident_bytes(layer, workload) + states


def _resident_bytes(layer: Layer, workload: Workload) -> int:
    """Return the keys and values of a layer that never leave its device.

    A StaticCache offloads keys and values only: an indexer's keys stay (StaticIndexedLayer).
    """
    if not _moves(layer, workload):
        return layer_kv_bytes(layer, workload)
    return _index_bytes(layer, workload) if _is_static(workload) else 0


def _name(workload: Workload) -> str:
    if is_quantised(workload):
        return "QuantizedCache"
    name = "StaticCache" if _is_static(workload) else "DynamicCache"
    return f"{name}, offloaded" if _is_offloaded(workload) else name


def _is_static(workload: Workload) -> bool:
    return workload.cache in ("static", "offloaded-static")


def _is_offloaded(workload: Workload) -> bool:
    return (workload.cache or "").startswith("offloaded")


def is_quantised(workload: Workload) -> bool:
    """Return whether the cache is a QuantizedCache: its values are smaller than 16 bits."""
    name = workload.kv_dtype or ""
    return name in QUANTISED_BITS or name.startswith("float8")


def _has_kv(layer: Layer) -> bool:
    return layer.kind not in (*_NO_CACHE, "state")


def _moves(layer: Layer, workload: Workload) -> bool:
    """Return whether a layer's cache is offloaded (Cache.prefetch and Cache.offload).

    A dynamic cache offloads every layer with keys and values, a static one those that do not
    slide. States alone always stay.
    """
    if not _is_offloaded(workload) or not _has_kv(layer):
        return False
    if layer.kind == "compressed_attention" or layer.cross_tokens is not None:
        raise UnsupportedModelError(
            f"transformers does not bring back all of an offloaded {_odd(layer)}",
            hint="use --cache dynamic",
        )
    if layer.states and (_is_static(workload) or layer.kind in _SLIDING):
        raise UnsupportedModelError(
            "transformers does not bring back the offloaded cache of a layer that has states too",
            hint="use --cache dynamic",
        )
    return not (_is_static(workload) and layer.kind in _SLIDING)


def _odd(layer: Layer) -> str:
    return "pooled cache" if layer.kind == "compressed_attention" else "encoder-decoder cache"


def offloaded_lines(spec: ModelSpec, workload: Workload) -> tuple[Line, Line] | None:
    """Return what an offloaded cache takes on the computing device and in host memory, or None.

    Device: the layer that computes and the next one, which is fetched meanwhile: the largest
    neighbours in the circle of offloaded layers; at the upper end one more, whose copy to the host
    is not finished. Host: everything that is offloaded, pinned: torch rounds each pinned tensor up
    to a power of two (CachingHostAllocator.h), and a growing cache may leave its smaller blocks
    behind (upper end: twice).

    Source: transformers 5.23 cache_utils.py, Cache.update; GPU figures are not measured.
    """
    moving = [layer for layer in spec.layers if _moves(layer, workload)]
    if not moving:
        return None
    sizes = [_moved_bytes(layer, workload) for layer in moving]
    near = _neighbours(sizes)
    pinned = sum(_pinned_bytes(layer, workload) for layer in moving)
    name = _name(workload)
    device = band_line(
        "kv_cache",
        near,
        low=near,
        high=min(near + max(sizes), max(sum(sizes), near)),
        source=f"{name}: two layers at a time, all {len(sizes)} in host memory",
    )
    host = band_line(
        "kv_cache",
        pinned,
        low=sum(sizes),
        high=2 * pinned,
        source=f"{name}: {len(sizes)} layers, pinned, rounded up to powers of two",
    )
    return device, host


def _moved_bytes(layer: Layer, workload: Workload) -> int:
    """Return what moves of one layer; the states of a dynamic one move with it."""
    stays = _index_bytes(layer, workload) if _is_static(workload) else 0
    counter = _COUNTER_BYTES if _is_static(workload) else 0
    return layer_kv_bytes(layer, workload) - stays - counter + layer_state_bytes(layer, workload)


def _neighbours(sizes: Sequence[int]) -> int:
    """Return the largest sum of two that follow one another, the first after the last."""
    if len(sizes) < 2:
        return sum(sizes)
    return max(sizes[i - 1] + sizes[i] for i in range(len(sizes)))


def _pinned_bytes(layer: Layer, workload: Workload) -> int:
    """Return the blocks of one layer: keys and values apart, each a power of two."""
    moved = _moved_bytes(layer, workload)
    width = layer.key_dim + layer.value_dim
    keys = moved * layer.key_dim // width if width else moved
    return sum(1 << (part - 1).bit_length() for part in (keys, moved - keys) if part)


def layer_state_bytes(layer: Layer, workload: Workload) -> int:
    """Return B·Σ elements·kernel·b: what one layer keeps whatever the length, in any cache.

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
    if not _has_kv(layer):
        return 0
    if is_quantised(workload):
        last = min(workload.context - 1, RESIDUAL_TOKENS - 1)
        return quantised_bytes(layer, workload, kept=last)
    element = _element_bytes(workload)
    if layer.kind == IMAGE_LAYER:
        return _image_bytes(layer, workload, element)
    tokens = workload.context + layer.prefix
    size = _self_bytes(layer, workload, tokens, element)
    if _is_static(workload):
        size += _COUNTER_BYTES
    elif layer.kind in _SLIDING and layer.window:
        size += cache.SLIDING_COUNTER_BYTES
    size += _index_bytes(layer, workload)
    if layer.cross_tokens is not None:
        kept = layer.cross_tokens or workload.context
        heads = layer.kv_heads * (layer.key_dim + layer.value_dim)
        size += workload.batch * kept * heads * element
        size += _COUNTER_BYTES if _is_static(workload) else 0
    return size


def _image_bytes(layer: Layer, workload: Workload, element: int) -> int:
    """Return B·Ti·n·(dk + dv)·b: keys and values of all tiles (MllamaTextCrossAttention)."""
    counter = _COUNTER_BYTES if _is_static(workload) else 0
    heads = layer.kv_heads * (layer.key_dim + layer.value_dim)
    return workload.batch * (layer.cross_tokens or 0) * heads * element + counter


def _index_bytes(layer: Layer, workload: Workload) -> int:
    """Return the keys of a sparse layer's indexer, B·S·di·b, and a static one's counter."""
    if not layer.index_dim or layer.kind == "compressed_attention":
        return 0
    width = DTYPE_BITS[layer.index_dtype] // 8 if layer.index_dtype else _element_bytes(workload)
    tokens = (workload.context or 0) + layer.prefix
    counter = _COUNTER_BYTES if _is_static(workload) else 0
    return workload.batch * tokens * layer.index_dim * width + counter


def _element_bytes(workload: Workload) -> int:
    name = workload.dtype if is_quantised(workload) else workload.kv_dtype or workload.dtype
    return DTYPE_BITS[name] // 8


def quantised_bytes(layer: Layer, workload: Workload, *, kept: int) -> int:
    """Return one layer of a QuantizedCache whose last `kept` tokens are in full precision.

    Groups, for keys and values alike: G = B·(S - kept)·n·d / 64 groups, ⌈G·bits/8⌉·64 bytes, and
    a scale and a shift of b bytes each; then B·kept·n·d·b. New tokens wait until there are 128,
    then all are packed anew; a prompt is packed at once. fp8: one byte a value and one float32
    for all keys, one for all values.

    Source: cache_utils.py, QuantizedLayer (q_group_size 64, residual_length 128) and
    Fp8QuantizedLayer; equal to quanto 0.2.7 and HQQ 0.2.8 to the byte where the groups come out
    even; both refuse other lengths.

    Raises UnsupportedModelError for anything but full attention, as transformers does.
    """
    if layer.kind not in _QUANTISABLE or layer.states or layer.cross_tokens is not None:
        raise UnsupportedModelError(
            f"transformers quantizes the cache of full attention only, not of {layer.kind!r}",
            hint="leave --kv-dtype out, or use --runtime llama.cpp with q8_0",
        )
    tokens = workload.context or 0
    heads = {"broadcast_attention": layer.heads, "mla": 1}.get(layer.kind, layer.kv_heads)
    widths = [workload.batch * heads * dim for dim in (layer.key_dim, layer.value_dim)]
    bits = QUANTISED_BITS.get(workload.kv_dtype or "")
    if bits is None:
        return tokens * sum(widths) + 2 * _SCALE_BYTES
    element = _element_bytes(workload)
    groups = [-(-(tokens - kept) * width // GROUP) for width in widths]
    packed = sum(-(-count * bits // 8) * GROUP for count in groups)
    return packed + sum(groups) * 2 * element + kept * sum(widths) * element


def _kept_tokens(layer: Layer, workload: Workload, tokens: int) -> int:
    """Return the tokens that a layer keeps: all, W - 1 where a dynamic one slides, W static."""
    if not layer.window:
        return tokens
    if not _is_static(workload):
        return min(tokens, max(layer.window - 1, 0))
    return min(tokens, layer.window) if layer.kind in _SLIDING else tokens


def _self_bytes(layer: Layer, workload: Workload, tokens: int, element: int) -> int:
    heads = layer.heads if layer.kind == "broadcast_attention" else layer.kv_heads
    kept = _kept_tokens(layer, workload, tokens)
    if layer.kind in ("full_attention", "broadcast_attention", *_SLIDING[:2]):
        return cache.full_cache_bytes(
            batch=workload.batch,
            tokens=kept,
            kv_heads=heads,
            key_dim=layer.key_dim,
            value_dim=layer.value_dim,
            element_bytes=element,
        )
    if layer.kind in ("mla", "sliding_mla"):
        return cache.latent_cache_bytes(
            batch=workload.batch,
            tokens=kept,
            latent_dim=layer.key_dim,
            rope_dim=layer.value_dim,
            element_bytes=element,
        )
    if layer.kind == "compressed_attention" and not _is_static(workload):
        return _pooled_bytes(layer, workload.batch, tokens, element)
    cause = "a StaticCache" if _is_static(workload) else "transformers"
    raise UnsupportedModelError(
        f"memplan has no cache rule for layers of kind {layer.kind!r} in {cause}",
        hint="use --cache dynamic" if _is_static(workload) else "report the model",
    )


def _pooled_bytes(layer: Layer, batch: int, tokens: int, element: int) -> int:
    kept = min(tokens, max((layer.window or 0) - 1, 0)) if layer.window else tokens
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


def sliding_surplus_bytes(
    layer: Layer, workload: Workload, *, moment: Literal["prefill", "decode"]
) -> int:
    """Return what a sliding layer holds beyond the tokens that it shows, in bytes.

    A DynamicSlidingWindowLayer keeps a view of the last W - 1 tokens, and the view keeps alive
    what it was cut from: after a pass of P tokens all min(W - 1, past) + P of them, until the next
    pass; while tokens are generated one by one, W. A StaticCache copies, and keeps nothing.

    Source: cache_utils.py, DynamicSlidingWindowLayer.update; equal to `untyped_storage().nbytes()`
    of real caches.
    """
    if layer.kind not in _SLIDING[:3] or not layer.window or _is_static(workload):
        return 0
    assert workload.context is not None
    shown = min(workload.context, max(layer.window - 1, 0))
    added = 1
    if moment == "prefill":
        added = min(workload.prefill_chunk or workload.context, workload.context)
    held = min(max(layer.window - 1, 0), workload.context - added) + added
    heads = 1 if layer.kind == "sliding_mla" else layer.kv_heads
    width = heads * (layer.key_dim + layer.value_dim)
    return workload.batch * max(held - shown, 0) * width * _element_bytes(workload)
