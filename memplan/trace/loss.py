"""Losses: what a model answers, or output matrix and cross-entropy together, chunk by chunk."""

from __future__ import annotations

from typing import Any

from memplan.errors import UnsupportedModelError

__all__ = ["chunk_tokens", "chunked_loss", "loss_of"]


def loss_of(outputs: Any, inputs: dict[str, Any]) -> Any:
    """Return the loss of what a model's forward answered.

    One number is the loss. An answer with a "loss", as transformers' models give when they take
    labels, holds it. A tensor of logits (..., tokens, vocab) is given to cross_entropy in its own
    dtype, every token with a label. Of anything else the first tensor's mean is taken.

    Args:
        outputs: of forward.
        inputs: that it took.
    """
    import torch

    if isinstance(outputs, torch.Tensor):
        if not outputs.dim():
            return outputs
        flat = outputs.flatten(0, -2)
        return torch.nn.functional.cross_entropy(flat, flat.new_zeros(len(flat), dtype=torch.long))
    if "labels" in inputs:
        return outputs["loss"]
    return outputs[0].float().mean()


def chunk_tokens(*, tokens: int, vocab: int, hidden: int) -> int:
    """Return the tokens of one chunk: about as many logits as there are hidden values.

    A power of two, next above T / ceil(V / h) (Liger-Kernel, ops/fused_linear_cross_entropy.py).
    """
    chunks = -(-vocab // hidden)
    wanted = max(-(-tokens // chunks), 1)
    return 1 << (wanted - 1).bit_length()


def chunked_loss(model: Any, inputs: dict[str, Any]) -> Any:
    """Return the loss of a causal language model without all of its logits.

    Each chunk's logits and their gradient live for one turn of a loop; the gradients of the hidden
    states and of the output matrix are made in the forward pass, as Liger's kernel makes them.

    Args:
        model: an nn.Module with `get_output_embeddings` (transformers).
        inputs: of its forward, "labels" among them.

    Raises UnsupportedModelError for a model without an output matrix.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    body = getattr(base, getattr(base, "base_model_prefix", ""), None)
    if head is None or body is None:
        raise UnsupportedModelError(
            f"{type(base).__name__} has no output matrix that a chunked loss could take over",
            hint="--loss full-logits",
        )
    labels = inputs["labels"]
    plain = {name: value for name, value in inputs.items() if name != "labels"}
    hidden = body(**plain)[0]
    return _function().apply(hidden.flatten(0, 1), head.weight, labels.flatten())


def _function() -> Any:
    import torch

    class ChunkedLoss(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, hidden: Any, weight: Any, labels: Any) -> Any:
            step = chunk_tokens(
                tokens=hidden.shape[0], vocab=weight.shape[0], hidden=hidden.shape[1]
            )
            grad_hidden = torch.zeros_like(hidden)
            grad_weight = torch.zeros_like(weight) if weight.requires_grad else None
            losses = torch.zeros(hidden.shape[0], dtype=torch.float32)
            for begin in range(0, hidden.shape[0], step):
                part = hidden[begin : begin + step]
                logits = part @ weight.t()
                losses[begin : begin + step] = 0.0  # the kernel writes the gradient over the logits
                grad_hidden[begin : begin + step] = logits @ weight
                if grad_weight is not None:
                    grad_weight += logits.t() @ part
            ctx.save_for_backward(grad_hidden, grad_weight)
            del labels
            return losses.sum()

        @staticmethod
        def backward(ctx: Any, *_: Any) -> Any:
            grad_hidden, grad_weight = ctx.saved_tensors
            return grad_hidden, grad_weight, None

    return ChunkedLoss
