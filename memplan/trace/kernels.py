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

from memplan.trace.tracker import Tracker

__all__ = [
    "FLASH",
    "Kernel", "Target", "choose_kernel", "scratch_bytes", "target_kernels"]

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


@contextlib.contextmanager
def target_kernels(target: Target, tracker: Tracker | None = None) -> Iterator[None]:
    """Replace what depends on the device, and transformers' tests of values that fakes lack.

    Args:
        target: where the step would run.
        tracker: told of what is made where no dispatcher sees it.
    """
    import torch
    from transformers import masking_utils
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    functional = torch.nn.functional
    with contextlib.ExitStack() as stack:

        def put(owner: Any, name: str, function: Callable[..., Any]) -> None:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, function)

        put(masking_utils, "is_tracing", lambda *_: False)
        put(masking_utils, "fast_all", lambda _: not target.padded)
        put(masking_utils, "find_packed_sequence_indices", lambda _: None)
        put(
            masking_utils,
            "_ignore_bidirectional_mask_sdpa",
            lambda _, length, local=None: not target.padded and (local is None or length < local),
        )
        ALL_ATTENTION_FUNCTIONS.register(FLASH, _flash_interface(torch))
        stack.callback(ALL_ATTENTION_FUNCTIONS._global_mapping.pop, FLASH)  # noqa: SLF001
        if target.kind == "gpu":
            put(functional, "scaled_dot_product_attention", _attention(torch, target))
            put(functional, "dropout", _dropout(torch))
            for name in _FLOAT32_UNDER_AUTOCAST:
                put(functional, name, _in_float32(torch, getattr(functional, name)))
        elif tracker is not None:
            put(torch, "get_rng_state", _seen(torch.get_rng_state, tracker))
        yield


FLASH = "memplan_flash"
"""Name under which transformers finds flash attention without the flash_attn package."""

_FLOAT32_UNDER_AUTOCAST = ("softmax", "log_softmax", "layer_norm", "group_norm", "cross_entropy")
"""What CUDA's autocast computes in float32 and the host's does not, among what models call by name
(torch/aten/src/ATen/autocast_mode.h)."""


def _in_float32(torch: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    def cast(values: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.is_autocast_enabled("cpu") and values.is_floating_point():
            values = values.float()
        return function(values, *args, **kwargs)

    return cast


def _seen(function: Callable[..., Any], tracker: Tracker) -> Callable[..., Any]:
    """Return a function whose tensor the tracker is told of: a generator's state is 5,056 B."""

    def tell(*args: Any, **kwargs: Any) -> Any:
        tensor = function(*args, **kwargs)
        tracker.add([tensor], operator="get_rng_state")
        return tensor

    return tell


def _flash_interface(torch: Any) -> Callable[..., Any]:
    """Return flash attention as transformers calls it: no mask, heads grouped as they are."""

    def attention(
        module: Any,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **_: Any,
    ) -> tuple[Any, None]:
        del attention_mask
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        query, key, value = (_half(torch, x) for x in (query, key, value))
        out = _flash(torch, query, key, value, dropout, bool(causal), scaling)
        return out.transpose(1, 2).contiguous(), None

    return attention


def _half(torch: Any, tensor: Any) -> Any:
    """Return a tensor as flash attention takes it: autocast's dtype, else itself."""
    if torch.is_autocast_enabled("cpu") and tensor.dtype == torch.float32:
        return tensor.to(torch.get_autocast_dtype("cpu"))
    return tensor


def _flash(
    torch: Any,
    query: Any,
    key: Any,
    value: Any,
    dropout: float,
    causal: bool,  # noqa: FBT001 - as torch takes it
    scale: float | None,
) -> Any:
    """Return what flash attention gives, heads padded to 8 elements as it wants them."""
    head = query.shape[-1]
    scale = scale if scale is not None else head**-0.5
    query, key, value = (_padded(torch, x) for x in (query, key, value))
    operator = torch.ops.aten._scaled_dot_product_flash_attention  # noqa: SLF001
    return operator(query, key, value, dropout, causal, scale=scale)[0][..., :head]


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
        query, key, value = (_half(torch, x) for x in (query, key, value))
        kernel = choose_kernel(
            half=query.dtype in halves,
            head=query.shape[-1],
            value_head=value.shape[-1],
            masked=attn_mask is not None,
            grouped=enable_gqa and key.shape[1] != query.shape[1],
            capability=target.capability,
        )
        if kernel == "flash":
            return _flash(torch, query, key, value, dropout_p, is_causal, scale)
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
