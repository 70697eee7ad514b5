"""What transformers itself keeps: a forward pass without weights, every tensor of the cache."""

from __future__ import annotations

import contextlib
import unittest.mock
from typing import ClassVar

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

LARGEST_ON_CPU = 600_000_000

ADJUSTED = {
    "bamba": {"attn_layer_indices": [9, 18, 27]},
    "granitemoehybrid": {"layer_types": ["mamba", "mamba", "mamba", "attention"] * 8},
}
"""Types whose default config has no attention layer, which transformers cannot run."""


def default_config(model_type):
    """Return the default config of a model type, its window small enough to be filled."""
    config = transformers.AutoConfig.for_model(model_type, **ADJUSTED.get(model_type, {}))
    text = config.get_text_config(decoder=True)
    for key in ("sliding_window", "sliding_window_size", "attention_chunk_size"):
        if isinstance(getattr(text, key, None), int):
            setattr(text, key, 33)
    return config


def build(config):
    """Return the causal language model of a config on the meta device, in bfloat16."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.eval()


def parameter_bytes(model):
    """Return the bytes of all parameters, tied ones once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def cache_bytes(model, tokens):
    """Return the bytes of the cache after one pass, by the meta device or by empty CPU weights.

    Models that look at values (`.item()`) cannot run on meta. Small ones run on the host with
    weights of zeros that are one element stretched to the shape, so they take no memory; what a
    linear would work out from zeros is zeros.
    """
    if next(model.parameters()).is_meta:
        try:
            return _measured(model, tokens, "meta")
        except (RuntimeError, NotImplementedError):
            if sum(p.numel() for p in model.parameters()) > LARGEST_ON_CPU:
                raise
            _to_cpu(model)
    with unittest.mock.patch("torch.nn.functional.linear", _no_product):
        return _measured(model, tokens, "cpu")


def _measured(model, tokens, device):
    ids = torch.zeros(1, tokens, dtype=torch.long, device=device)
    fast = _Remembered() if device == "meta" else contextlib.nullcontext()
    with torch.no_grad(), fast:
        output = model(input_ids=ids, use_cache=True)
    found = {}
    for name in ("past_key_values", "cache_params", "state", "mems"):
        collect(getattr(output, name, None), found, set())
    return sum(tensor.numel() * tensor.element_size() for tensor in found.values())


class _Remembered(TorchDispatchMode):
    """Asks torch once what an operator makes of meta tensors of some shapes: it takes 0.2 ms.

    What changes an argument or takes a real one runs each time. A view comes out as a tensor of its
    own, which is as good where only shapes and dtypes are read.
    """

    known: ClassVar[dict] = {}

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operator._schema.is_mutable or not all(map(_is_meta, (*args, *kwargs.values()))):
            return operator(*args, **kwargs)
        key = operator, torch.get_default_dtype(), _seen(args), _seen(tuple(kwargs.items()))
        found = self.known.get(key)
        if found is None:
            result = operator(*args, **kwargs)
            self.known[key] = _rule(result)
            return result
        kind, facts = found
        if kind is None:
            return operator(*args, **kwargs)
        made = [torch.empty_strided(*fact[:2], dtype=fact[2], device="meta") for fact in facts]
        return made[0] if kind is torch.Tensor else kind(made)


def _is_meta(value):
    """Say whether there is no tensor with values in an argument."""
    if isinstance(value, list | tuple):
        return all(map(_is_meta, value))
    return not isinstance(value, torch.Tensor) or value.is_meta


def _seen(value):
    """Return what of an argument decides the shape of a result."""
    if isinstance(value, torch.Tensor):
        return type(value), value.shape, value.stride(), value.dtype, value.requires_grad
    if isinstance(value, list | tuple):
        return tuple(_seen(item) for item in value)
    return type(value), value


def _rule(result):
    """Return (type, shape, stride and dtype of each) of what an operator made of meta tensors."""
    items = result if type(result) in (list, tuple) else [result]
    if not all(type(item) is torch.Tensor and item.is_meta for item in items):
        return None, ()
    kind = torch.Tensor if items is not result else type(result)
    return kind, [(item.shape, item.stride(), item.dtype) for item in items]


def collect(value, found, seen):
    """Put every tensor below a value into `found`, the parts of a packed one instead of itself."""
    if value is None or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor) and hasattr(value, "__tensor_flatten__"):
        for name in value.__tensor_flatten__()[0]:
            collect(getattr(value, name), found, seen)
    elif isinstance(value, torch.Tensor):
        found[id(value)] = value
    elif isinstance(value, dict):
        for item in value.values():
            collect(item, found, seen)
    elif isinstance(value, list | tuple):
        for item in value:
            collect(item, found, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, torch.nn.Module | type):
        collect(vars(value), found, seen)


def _no_product(tokens, weight, bias=None):
    return tokens.new_zeros(*tokens.shape[:-1], weight.shape[0])


def _to_cpu(model):
    for module in model.modules():
        for kind in (module._parameters, module._buffers):
            for name, tensor in kind.items():
                if tensor is not None and tensor.is_meta:
                    zeros = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
                    is_weight = isinstance(tensor, torch.nn.Parameter)
                    kind[name] = (
                        torch.nn.Parameter(zeros, requires_grad=False)
                        if is_weight
                        else zeros.clone()
                    )
