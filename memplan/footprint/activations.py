"""What a forward or a training step holds beside weights and cache, in bytes.

Ints in, int bytes out. Symbols: T tokens in one pass (batch x length), S tokens that they look
at, h hidden size, i inner size of the feed-forward part that one token uses, nq query heads,
nk cached heads, d elements of one head, V vocabulary, L layers, b bytes of one element.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "LayerShape",
    "attention_moment_bytes",
    "decode_copy_bytes",
    "last_logits_bytes",
    "loss_bytes",
    "mlp_moment_bytes",
    "saved_bytes_per_token",
    "scores_bytes",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """The widths of one decoder layer, in elements."""

    hidden: int
    """h."""
    intermediate: int
    """i."""
    heads: int
    """nq."""
    kv_heads: int
    """nk."""
    head_dim: int
    """d."""
    experts_per_token: int = 0
    """Copies of each token that a mixture of experts makes (0 = dense)."""


def mlp_moment_bytes(shape: LayerShape, *, tokens: int, element_bytes: int) -> int:
    """Return T·(2h + 3i)·b + 4·T·h, plus 2·k·T·h·b for k experts: inside the feed-forward part.

    Alive: residual, normed input, gate, up and their product, and one float32 copy that the norm
    made. Source: live tensors of LlamaMLP under torch 2.13; Llama-3.1-8B, T = 4096: 464 MiB
    against 466 MiB measured. A mixture of experts also holds each token once per chosen expert,
    before and after.
    """
    dense = tokens * (2 * shape.hidden + 3 * shape.intermediate) * element_bytes
    routed = 2 * shape.experts_per_token * tokens * shape.hidden * element_bytes
    return dense + routed + 4 * tokens * shape.hidden


def attention_moment_bytes(shape: LayerShape, *, tokens: int, element_bytes: int) -> int:
    """Return T·(2h + (2nq + 2nk)·d)·b + 4·T·h: residual, normed input, q, k, v and the output.

    Source: live tensors of LlamaAttention under torch 2.13; eager attention adds `scores_bytes`.
    """
    inner = 2 * (shape.heads + shape.kv_heads) * shape.head_dim
    return tokens * (2 * shape.hidden + inner) * element_bytes + 4 * tokens * shape.hidden


def scores_bytes(*, batch: int, heads: int, queries: int, keys: int, element_bytes: int) -> int:
    """Return B·nq·Tq·S·(b + 8): eager attention's scores and two float32 softmax tensors.

    Source: modeling_llama.eager_attention_forward; Llama-3.1-8B, 4096 tokens: 5120 MiB of the
    5346 MiB measured. sdpa and flash kernels keep none of these.
    """
    return batch * heads * queries * keys * (element_bytes + 8)


def last_logits_bytes(*, batch: int, vocab: int, element_bytes: int) -> int:
    """Return B·V·(b + 4): `generate` computes the last token's logits and copies them to float32.

    Source: transformers 5 generation/utils.py (logits_to_keep=1, then `.to(float32)`).
    """
    return batch * vocab * (element_bytes + 4)


def decode_copy_bytes(*, batch: int, keys: int, kv_heads: int, dim: int, element_bytes: int) -> int:
    """Return B·S·nk·d·b: each new token's `torch.cat` holds one layer's old keys and new keys.

    Source: transformers 5 cache_utils.py, DynamicLayer.update.
    """
    return batch * keys * kv_heads * dim * element_bytes


def saved_bytes_per_token(shape: LayerShape, *, element_bytes: int) -> int:
    """Return what one layer keeps of one token for its backward pass, flash attention.

    8h + 4bh + b·(2nq·d + 2nk·d) + 4b·i: two float32 inputs of norms; both normed inputs and both
    products that feed the residual; q, k, v and the attention's output; gate, up, their activation
    and product. Source: tensors saved by autograd in LlamaDecoderLayer (torch 2.13,
    transformers 5); families with more norms or fused kernels lie within the band.
    """
    attention = 2 * (shape.heads + shape.kv_heads) * shape.head_dim
    kept = 4 * shape.hidden + attention + 4 * shape.intermediate
    routed = 2 * shape.experts_per_token * shape.hidden
    return 8 * shape.hidden + element_bytes * (kept + routed)


def loss_bytes(*, tokens: int, vocab: int, element_bytes: int) -> int:
    """Return T·V·(b + 12): logits, their float32 copy, its log-softmax and its gradient.

    Source: transformers 5 loss/loss_utils.py, ForCausalLMLoss upcasts all logits to float32.
    """
    return tokens * vocab * (element_bytes + 12)
