"""What one decoder layer keeps between tokens, in bytes. Ints in, int bytes out.

Symbols: B sequences, S cached tokens per sequence, n cached heads, dk/dv elements of one key/value
head, b bytes of one element, W window.
"""

from __future__ import annotations

__all__ = [
    "SLIDING_COUNTER_BYTES",
    "full_cache_bytes",
    "latent_cache_bytes",
    "pooled_cache_bytes",
    "window_cache_bytes",
]

SLIDING_COUNTER_BYTES = 8
"""transformers keeps one int64 tensor, the tokens seen so far, for each sliding layer
(cache_utils.py, DynamicSlidingWindowLayer.cumulative_length; measured with 5.23)."""


def full_cache_bytes(
    *, batch: int, tokens: int, kv_heads: int, key_dim: int, value_dim: int, element_bytes: int
) -> int:
    """Return B·S·n·(dk + dv)·b: keys and values of every token (MHA, GQA and MQA by n).

    Source: transformers 5 cache_utils.py, DynamicLayer; equal to measured caches to the byte.
    """
    return batch * tokens * kv_heads * (key_dim + value_dim) * element_bytes


def window_cache_bytes(
    *,
    batch: int,
    tokens: int,
    window: int,
    kv_heads: int,
    key_dim: int,
    value_dim: int,
    element_bytes: int,
) -> int:
    """Return B·min(S, W-1)·n·(dk + dv)·b: a window keeps W-1 tokens and adds the next one.

    Source: transformers 5 cache_utils.py, DynamicSlidingWindowLayer.update.
    """
    kept = min(tokens, max(window - 1, 0))
    return full_cache_bytes(
        batch=batch,
        tokens=kept,
        kv_heads=kv_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        element_bytes=element_bytes,
    )


def latent_cache_bytes(
    *, batch: int, tokens: int, latent_dim: int, rope_dim: int, element_bytes: int
) -> int:
    """Return B·S·(kv_lora_rank + qk_rope_head_dim)·b: MLA keeps one latent for all heads.

    Source: transformers 5 modeling_deepseek_v3.py (the cache holds the compressed latent and the
    rotary key; DeepSeek-V3: 70,272 B a token).
    """
    return batch * tokens * (latent_dim + rope_dim) * element_bytes


def pooled_cache_bytes(
    *, batch: int, tokens: int, rate: int, dim: int, index_dim: int, element_bytes: int
) -> int:
    """Return what DeepSeek V4 keeps beside its window: one pooled entry for each `rate` tokens.

    Entries B·⌊S/r⌋·(d + di)·b, and the tokens of the unfinished entry twice (values and gates):
    B·(S mod r)·2·d·b. A layer with an indexer (di > 0) pools overlapping windows, so that its
    unfinished tokens are twice as wide and the last finished window, r tokens of (d + di), stays
    twice too. Source: transformers 5.23 modeling_deepseek_v4.py, DeepseekV4HCACache and
    DeepseekV4CSACache; equal to the caches of the meta model to the byte.
    """
    entries = tokens // rate * (dim + index_dim)
    if index_dim:
        unfinished = tokens % rate * 4 * (dim + index_dim)
        overlap = 2 * rate * (dim + index_dim) if tokens >= rate else 0
    else:
        unfinished, overlap = tokens % rate * 2 * dim, 0
    return batch * (entries + unfinished + overlap) * element_bytes
