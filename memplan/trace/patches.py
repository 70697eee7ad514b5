"""The target's kernels in place of the host's, as long as a trace runs.

Fake tensors live on the CPU, where attention and dropout take other kernels than on a GPU. So the
functions themselves are replaced: function modes would be lost in the recompute of checkpointed
layers. transformers' tests of values, which fakes do not have, are replaced too (5.23,
masking_utils.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from memplan.trace.kernels import PAD_ELEMENTS, Target, choose_kernel
from memplan.trace.tracker import Tracker

__all__ = ["FLASH", "target_kernels"]


@contextlib.contextmanager
def target_kernels(target: Target, tracker: Tracker | None = None) -> Iterator[None]:
    """Replace what depends on the device, and transformers' tests of values that fakes lack.

    Args:
        target: where the step would run.
        tracker: told of what is made where no dispatcher sees it.
    """
    import torch
    from transformers import masking_utils
    from transformers.integrations import moe
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    functional = torch.nn.functional
    with contextlib.ExitStack() as stack:

        def put(owner: Any, name: str, function: Any) -> None:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, function)

        # Checks of values, of which fakes have none.
        put(torch.distributions.Distribution, "_validate_args", False)  # noqa: FBT003
        put(moe, "_can_use_grouped_mm", lambda _, weight, __: weight.dtype == torch.bfloat16)
        put(torch, "rand", _no_layer_drop(torch.rand))
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


def _no_layer_drop(rand: Callable[..., Any]) -> Callable[..., Any]:
    """Return torch.rand that draws 1 where one number is drawn: no layer is left out by chance."""

    def draw(*size: Any, **kwargs: Any) -> Any:
        return 1.0 if size in (([],), ((),)) else rand(*size, **kwargs)

    return draw


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

    def attention(  # noqa: PLR0917 - transformers' signature
        module: Any,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,  # noqa: FBT001
        **_: Any,
    ) -> tuple[Any, None]:
        del attention_mask
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        inputs = (_half(torch, query), _half(torch, key), _half(torch, value))
        out = _flash(torch, inputs, dropout=dropout, causal=bool(causal), scale=scaling)
        return out.transpose(1, 2).contiguous(), None

    return attention


def _half(torch: Any, tensor: Any) -> Any:
    """Return a tensor as flash attention takes it: autocast's dtype, else itself."""
    if torch.is_autocast_enabled("cpu") and tensor.dtype == torch.float32:
        return tensor.to(torch.get_autocast_dtype("cpu"))
    return tensor


def _flash(
    torch: Any, inputs: tuple[Any, Any, Any], *, dropout: float, causal: bool, scale: float | None
) -> Any:
    """Return what flash attention gives, heads padded to 8 elements as it wants them."""
    head = inputs[0].shape[-1]
    scale = scale if scale is not None else head**-0.5
    query, key, value = (_padded(torch, x) for x in inputs)
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

    def attention(  # noqa: PLR0917 - torch's signature
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
            inputs = (query, key, value)
            return _flash(torch, inputs, dropout=dropout_p, causal=is_causal, scale=scale)
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
    missing = -tensor.shape[-1] % PAD_ELEMENTS
    return torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor


def _bias(torch: Any, mask: Any, query: Any, key: Any) -> Any:
    """Return a mask as the efficient kernel wants it: floats, all heads, rows padded to 8."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask, -1.0)
    keys = key.shape[-2]
    if -keys % PAD_ELEMENTS:
        mask = torch.nn.functional.pad(mask, (0, -keys % PAD_ELEMENTS))[..., :keys]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], keys)
