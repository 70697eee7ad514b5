"""The target's kernels in place of the host's, as long as a trace runs.

Fake tensors live on the CPU, where attention and dropout take other kernels than on a GPU. So the
functions themselves are replaced: function modes would be lost in the recompute of checkpointed
layers. Held against torch 2.13 (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp) and
transformers 5.23 (masking_utils.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Kernel", "Target", "choose_kernel", "scratch_bytes", "target_kernels"]

Kernel = Literal["flash", "efficient", "math"]

_LARGEST_FLASH_HEAD = 256
_FLASH_BLOCK = 128
"""Rows that the backward kernel of flash attention rounds the sequence up to."""
_PAD_ELEMENTS = 8
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


def scratch_bytes(operator: str, args: tuple[Any, ...]) -> int:
    """Return what a kernel of the target takes inside, where the dispatcher does not see it.

    Backward pass of flash attention: dQ in float32, one float32 a row and head, and dK and dV for
    every query head where heads are grouped; rows rounded up to 128, heads to 32
    (flash_attn/flash_api.cpp, mha_bwd).
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


@contextlib.contextmanager
def target_kernels(target: Target) -> Iterator[None]:
    """Replace what depends on the device, and transformers' tests of values that fakes lack."""
    import torch
    from transformers import masking_utils

    functional = torch.nn.functional
    with contextlib.ExitStack() as stack:

        def put(owner: Any, name: str, function: Callable[..., Any]) -> None:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, function)

        put(masking_utils, "is_tracing", lambda *_: False)
        put(masking_utils, "fast_all", lambda _: not target.padded)
        put(masking_utils, "find_packed_sequence_indices", lambda _: None)
        if target.kind == "gpu":
            put(functional, "scaled_dot_product_attention", _attention(torch, target))
            put(functional, "dropout", _dropout(torch))
        yield


def _dropout(torch: Any) -> Callable[..., Any]:
    """Return dropout as CUDA has it: the mask is kept as bool."""

    def dropout(values: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:  # noqa: FBT001, FBT002 - torch's signature
        del inplace
        return torch.native_dropout(values, p, True)[0] if training and p else values  # noqa: FBT003

    return dropout


def _attention(torch: Any, target: Target) -> Callable[..., Any]:
    aten = torch.ops.aten
    halves = (torch.float16, torch.bfloat16)

    def attention(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,  # noqa: FBT001, FBT002 - torch's signature
        scale: float | None = None,
        enable_gqa: bool = False,  # noqa: FBT001, FBT002
    ) -> Any:
        kernel = choose_kernel(
            half=query.dtype in halves,
            head=query.shape[-1],
            value_head=value.shape[-1],
            masked=attn_mask is not None,
            grouped=enable_gqa and key.shape[1] != query.shape[1],
            capability=target.capability,
        )
        if kernel == "flash":
            head = query.shape[-1]
            scale = scale if scale is not None else head**-0.5
            query, key, value = (_padded(torch, x) for x in (query, key, value))
            out = aten._scaled_dot_product_flash_attention(  # noqa: SLF001
                query, key, value, dropout_p, is_causal, scale=scale
            )[0]
            return out[..., :head]
        if kernel == "efficient":
            bias = None if attn_mask is None else _bias(torch, attn_mask, query, key)
            keep = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
            return aten._scaled_dot_product_efficient_attention(  # noqa: SLF001
                query, key, value, bias, keep, dropout_p, is_causal, scale=scale
            )[0]
        return aten._scaled_dot_product_attention_math(  # noqa: SLF001
            query,
            key,
            value,
            attn_mask,
            dropout_p,
            is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
        )[0]

    return attention


def _padded(torch: Any, tensor: Any) -> Any:
    """Return heads padded to 8 elements, as flash attention wants them."""
    missing = -tensor.shape[-1] % _PAD_ELEMENTS
    return torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor


def _bias(torch: Any, mask: Any, query: Any, key: Any) -> Any:
    """Return a mask as the efficient kernel wants it: floats, all heads, rows padded to 8."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask, -1.0)
    keys = key.shape[-2]
    if -keys % _PAD_ELEMENTS:
        mask = torch.nn.functional.pad(mask, (0, -keys % _PAD_ELEMENTS))[..., :keys]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], keys)
