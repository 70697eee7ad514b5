"""Plain data parallelism: everything on every rank, and torch's gradient buckets."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.footprint.lines import exact_line
from memplan.parallel.types import Piece, ShardOptions, StateRule
from memplan.types import Line, Tensor

__all__ = ["ddp_buckets", "ddp_lines"]


def ddp_buckets(trainable: Sequence[Tensor], options: ShardOptions) -> tuple[int, ...]:
    """Return the bytes of each bucket after the first step, the first bucket first.

    Parameters are taken from the last to the first, each dtype by itself; a bucket is closed when
    it has reached its limit (1 MiB for the first, then 25 MiB), so one large matrix makes one
    large bucket. Source: torch's Reducer (compute_bucket_assignment_by_size), torch 2.13; torch
    takes them in the order in which gradients were ready, which for a decoder is close to this,
    and the sum is the same in any order.
    """
    closed: list[int] = []
    filling: dict[str, int] = {}
    began: set[str] = set()
    for tensor in reversed(trainable):
        size = filling.get(tensor.dtype, 0) + tensor.bytes
        first = tensor.dtype not in began
        filling[tensor.dtype] = size
        if size >= (options.first_bucket_bytes if first else options.bucket_bytes):
            closed.append(filling.pop(tensor.dtype))
            began.add(tensor.dtype)
    return (*closed, *(size for size in filling.values() if size))


def ddp_lines(
    pieces: Sequence[Piece], rule: StateRule, options: ShardOptions, *, wrapped: bool
) -> dict[str, tuple[Line, ...]]:
    """Return a rank's lines: all of weights, gradients and states, and the buckets.

    Buckets are a second copy of every gradient, without padding, unless gradients are views of
    them (torch.nn.parallel.DistributedDataParallel, gradient_as_bucket_view). `wrapped` is False
    when nothing is data parallel, and there is no bucket.
    """
    trainable = [piece.tensor for piece in pieces if piece.trainable]
    gradients = sum(piece.gradient_bytes for piece in pieces if piece.trainable)
    states = sum(rule(tensor) for tensor in trainable)
    buffers: tuple[Line, ...] = ()
    if wrapped and gradients and not options.gradient_as_bucket_view:
        count = len(ddp_buckets(trainable, options))
        text = f"DDP: {count} buckets, a second copy of all gradients"
        buffers = (exact_line("buffers", sum(tensor.bytes for tensor in trainable), text),)
    how = "all of them on every rank"
    return {
        "weights": (exact_line("weights", sum(p.tensor.bytes for p in pieces), how),),
        "gradients": (exact_line("gradients", gradients, how),),
        "optimizer": (exact_line("optimizer", states, how),),
        "buffers": buffers,
    }
