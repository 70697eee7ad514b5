"""The cached widths of one attention layer, from the config as that layer sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.errors import UnsupportedModelError
from memplan.models.numbers import number
from memplan.models.states import attention_states
from memplan.types import Layer, State

__all__ = ["attention_layer"]

_WINDOWS = ("sliding_window", "sliding_window_size", "attention_window_size")
_KINDS = (
    *("full_attention", "sliding_attention", "chunked_attention", "indexed_attention"),
    *("compressed_attention", "hybrid", "hybrid_sliding"),
)


def attention_layer(
    own: Mapping[str, Any],
    model_type: str,
    kind: str,
    *,
    intermediate: int,
    key_width: int | None,
    states: tuple[State, ...],
    cross_tokens: int | None,
) -> Layer:
    """Return the layer of one kind of attention.

    Args:
        own: the language model's config with this layer's own values in it.
        model_type: its model type.
        kind: one of `memplan.models.kinds`.
        intermediate: inner width of the feed-forward part.
        key_width: elements of all key heads as the weights show them, if they do.
        states: what the layer keeps whatever the length (hybrids).
        cross_tokens: see `Layer.cross_tokens`.

    Raises UnsupportedModelError for a kind without a rule and BadModelError for missing numbers.
    """
    if kind not in _KINDS:
        raise UnsupportedModelError(
            f"memplan has no rule for the {kind!r} layers of model type {model_type!r}",
            hint="report the model; a GGUF file of it may be readable",
        )
    slides = kind in ("sliding_attention", "hybrid_sliding")
    window = number(own, *_WINDOWS, default=0) or None if slides else None
    shared: dict[str, Any] = {"intermediate": intermediate, "cross_tokens": cross_tokens}
    if kind == "compressed_attention" or (own.get("compress_ratios") is not None and slides):
        return _compressed(own, shared)
    latent = number(own, "kv_lora_rank", default=0)
    if latent:
        return _latent(own, model_type, latent, window, {**shared, "states": states})
    heads, key_dim, value_dim = _widths(own, model_type, slides=slides, key_width=key_width)
    return Layer(
        kind=_cache_kind(own, model_type, kind, window),
        kv_heads=heads,
        key_dim=key_dim,
        value_dim=value_dim,
        window=number(own, "attention_chunk_size") if kind == "chunked_attention" else window,
        heads=number(own, "num_attention_heads"),
        index_dim=number(own, "index_head_dim") if kind == "indexed_attention" else 0,
        prefix=number(own, "prompt_length", default=0) if model_type == "cpmant" else 0,
        states=(*states, *attention_states(own, model_type, heads * key_dim)),
        **shared,
    )


def _cache_kind(own: Mapping[str, Any], model_type: str, kind: str, window: int | None) -> str:
    if model_type == "falcon" and own.get("new_decoder_architecture"):
        return "broadcast_attention"
    if kind == "chunked_attention":
        return kind
    return "sliding_attention" if window else "full_attention"


def _compressed(own: Mapping[str, Any], shared: dict[str, Any]) -> Layer:
    """DeepSeek V4: one vector a token is key and value; pooled entries stay beside the window.

    A rate of 4 has an indexer and overlapping windows, one of 128 has neither.
    """
    rates = own.get("compress_rates")
    named = rates.get(own.get("layer_types"), 0) if isinstance(rates, Mapping) else 0
    rate = named or number(own, "compress_ratios", default=0)
    return Layer(
        kind="compressed_attention",
        kv_heads=number(own, "num_key_value_heads", default=1),
        key_dim=number(own, "head_dim"),
        window=number(own, "sliding_window"),
        compress=rate,
        index_dim=number(own, "index_head_dim", default=0) if 0 < rate < _NO_INDEXER else 0,
        heads=number(own, "num_attention_heads"),
        **shared,
    )


_NO_INDEXER = 16


def _latent(
    own: Mapping[str, Any],
    model_type: str,
    latent: int,
    window: int | None,
    shared: dict[str, Any],
) -> Layer:
    """MLA: one latent and one rotary key for all heads, and the indexer's key if it has one."""
    index = number(own, "index_head_dim", default=0)
    own_indexer = own.get("indexer_types") != "shared" and window is None
    return Layer(
        kind="sliding_mla" if window else "mla",
        kv_heads=1,
        key_dim=latent,
        value_dim=number(own, "qk_rope_head_dim", default=0),
        window=window,
        heads=number(own, "num_attention_heads"),
        index_dim=index if own_indexer else 0,
        index_dtype="float32" if model_type.startswith("dots3") else None,
        **shared,
    )


def _widths(
    own: Mapping[str, Any], model_type: str, *, slides: bool, key_width: int | None
) -> tuple[int, int, int]:
    """Return cached heads, key and value elements of one head.

    Falcon: the old decoder with multi_query has one head. GPT-BigCode: multi_query = one head.
    MiMo-V2: sliding layers have their own or twice the heads. Gemma-4: global layers are wider.
    """
    queries = number(own, "num_attention_heads")
    keys = ("head_dim", "attention_head_dim", "d_kv", "kv_channels", "dim_head")
    dim = number(own, *keys, default=0) or number(own, "hidden_size") // max(queries, 1)
    heads = _kv_heads(own, queries)
    value = number(own, "v_head_dim", default=0) or dim
    if slides:
        if model_type.startswith("mimo_v2"):
            heads = number(own, "swa_num_key_value_heads", default=0) or 2 * heads
        heads = number(own, "swa_num_key_value_heads", default=0) or heads
        dim = number(own, "swa_head_dim", default=0) or dim
        value = number(own, "swa_v_head_dim", default=0) or (value if "v_head_dim" in own else dim)
        return heads, dim, value
    wide = number(own, "global_head_dim", default=0)
    if wide:
        dim = value = wide
        if own.get("attention_k_eq_v"):
            heads = number(own, "num_global_key_value_heads", default=0) or heads
    return _from_weights(own, key_width, heads, dim, value)


def _from_weights(
    own: Mapping[str, Any], key_width: int | None, heads: int, dim: int, value: int
) -> tuple[int, int, int]:
    """Correct a guess by the key matrix: its rows are heads x head size."""
    stated = any(key in own for key in ("num_key_value_heads", "num_kv_heads", "multi_query"))
    if not key_width or key_width == heads * dim:
        return heads, dim, value
    if not stated and key_width % dim == 0:
        return key_width // dim, dim, value
    if "head_dim" not in own and heads and key_width % heads == 0:
        return heads, key_width // heads, key_width // heads
    return heads, dim, value


def _kv_heads(own: Mapping[str, Any], queries: int) -> int:
    if own.get("multi_query") and not own.get("new_decoder_architecture"):
        return 1
    keys = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_n_heads", "n_head_kv")
    groups = ("num_query_groups", "multi_query_group_num")
    return number(own, *keys, *groups, default=0) or queries
