"""Which kernels a target takes, and what they take inside.

Held against torch 2.13 (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["PAD_ELEMENTS", "Kernel", "Target", "choose_kernel", "scratch_bytes"]

Kernel = Literal["flash", "efficient", "math"]

_LARGEST_FLASH_HEAD = 256
_FLASH_BLOCK = 128
"""Rows that the backward kernel of flash attention rounds the sequence up to."""
PAD_ELEMENTS = 8
"""Elements that a head (flash) or a row of the bias (efficient) is padded to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where the step would run."""

    kind: Literal["gpu", "cpu"]
    """CUDA-like kernels, or the host's own."""
    capability: int = 80
    """Compute capability of the GPU, 10 times: 75 = Turing, 80 = Ampere ..."""
    padded: bool = False
    """True where a batch has padding, so that a mask is built (transformers)."""


def choose_kernel(
    *,
    half: bool,
    head: int,
    value_head: int,
    masked: bool,
    grouped: bool,
    capability: int = 80,
) -> Kernel:
    """Return the kernel that scaled_dot_product_attention takes on a CUDA GPU.

    Args:
        half: float16 or bfloat16.
        head: elements of a query head and of a key head.
        value_head: elements of a value head.
        masked: a mask is given (causal without a mask is none).
        grouped: fewer key heads than query heads, left to the kernel (enable_gqa).
        capability: compute capability, 10 times.

    Flash: half precision from Ampere on, equal heads up to 256, no mask. Efficient: from Maxwell
    on, any dtype, masks, no grouped heads. Everything else is computed by matrices.
    """
    flash = half and capability >= 80 and head == value_head <= _LARGEST_FLASH_HEAD and not masked
    if flash:
        return "flash"
    if grouped or capability < 50:
        return "math"
    return "efficient"


def scratch_bytes(target: Target, threads: int = 1) -> Callable[[str, tuple[Any, ...]], int]:
    """Return what tells the bytes that a kernel of the target takes inside, unseen by a dispatcher.

    Args:
        target: where the step would run.
        threads: of the host, whose kernel has buffers for each.
    """
    if target.kind == "gpu":
        return _cuda_scratch
    return lambda operator, args: _host_scratch(operator, args, threads)


def _cuda_scratch(operator: str, args: tuple[Any, ...]) -> int:
    """Return what flash attention's backward pass takes.

    dQ in float32, one float32 a row and head, and dK and dV for every query head where heads are
    grouped; rows rounded up to 128, heads to 32 (flash_attn/flash_api.cpp, mha_bwd).
    """
    if operator != "aten::_scaled_dot_product_flash_attention_backward":
        return 0
    query, key = args[1], args[2]
    batch, heads, rows, head = query.shape
    rounded = -(-rows // _FLASH_BLOCK) * _FLASH_BLOCK
    width = -(-head // 32) * 32
    size = 4 * batch * heads * rounded * (width + 1)
    if key.shape[1] != heads:
        size += 2 * batch * heads * key.shape[2] * head * query.element_size()
    return int(size)


def _host_scratch(operator: str, args: tuple[Any, ...], threads: int) -> int:
    """Return what the host's kernels take beside their results."""
    if operator in _ELEMENTWISE:
        return _promoted(args)
    if operator.startswith("aten::_scaled_dot_product_flash_attention_for_cpu"):
        return _host_attention(args, threads, backward=operator.endswith("backward"))
    return 0


_ELEMENTWISE = frozenset(f"aten::{name}" for name in ("add", "sub", "mul", "div"))


def _promoted(args: tuple[Any, ...]) -> int:
    """Return the copy of an operand that is brought to the other's dtype.

    On the host alone: CUDA's kernels cast while they read (aten/src/ATen/TensorIterator.cpp).
    """
    pair = [item for item in args[:2] if hasattr(item, "untyped_storage") and item.dim()]
    if len(pair) < 2 or pair[0].dtype == pair[1].dtype:
        return 0
    wide = max(item.element_size() for item in pair)
    narrow = min(pair, key=lambda item: item.element_size())
    return int(narrow.numel() * wide) if narrow.element_size() < wide else 0


def _host_attention(args: tuple[Any, ...], threads: int, *, backward: bool) -> int:
    """Return what attention takes.

    For each thread the scores of one block of queries (256 from 768 rows on, 64 from 192 on, else
    32) and 512 keys in float32, and again in half precision; forward also two values a row and the
    block's output, backward twice the scores, and the incoming gradient made contiguous
    (aten/src/ATen/native/cpu/FlashAttentionKernel.cpp; held against the profiler).
    """
    query, key = args[1:3] if backward else args[:2]
    rows, head, element = query.shape[-2], query.shape[-1], query.element_size()
    block = min(256 if rows >= 768 else 64 if rows >= 192 else 32, rows)
    scores = block * min(512, key.shape[-2])
    each = scores * (4 if element > 2 else 6)
    if not backward:
        return int(threads * (each + 4 * block * (2 + head)))
    copied = 0 if args[0].transpose(1, 2).is_contiguous() else args[0].numel() * element
    return int(threads * 2 * each + 4 * block + copied)
