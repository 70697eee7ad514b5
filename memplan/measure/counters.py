"""Reading numbers: the process by /proc, the allocators by torch, the tensors one by one.

Names are those of `memplan.types.Phase.counters`, values are bytes.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["process_counters", "tensor_counters", "torch_counters"]

_STATUS = {
    "VmRSS": "process.rss",
    "RssAnon": "process.rss_anon",
    "RssFile": "process.rss_file",
    "VmHWM": "process.hwm",
}

_ALLOCATOR = {
    "allocated": "allocated_bytes.all.current",
    "reserved": "reserved_bytes.all.current",
    "peak_allocated": "allocated_bytes.all.peak",
    "peak_reserved": "reserved_bytes.all.peak",
}

_Seen = set[tuple[str, int, int]]


def process_counters(proc: Path = Path("/proc")) -> dict[str, int]:
    """Return this process's resident memory and its highest value; {} where there is no /proc.

    Args:
        proc: the proc file system.
    """
    result = {}
    with contextlib.suppress(OSError, ValueError):
        for line in (proc / "self" / "status").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name in _STATUS:
                result[_STATUS[name]] = int(value.split()[0]) * 1024
    return result


def torch_counters() -> dict[str, int]:
    """Return allocated and reserved bytes and their peaks of each GPU that this process uses.

    {} where torch is not imported or CUDA is not in use; reading never starts CUDA. Source:
    torch.cuda.memory_stats.
    """
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    if cuda is None or not cuda.is_available() or not cuda.is_initialized():
        return {}
    result = {}
    for index in range(cuda.device_count()):
        stats = cuda.memory_stats(index)
        if stats.get(_ALLOCATOR["peak_reserved"], 0):
            for name, key in _ALLOCATOR.items():
                result[f"cuda:{index}.{name}"] = int(stats.get(key, 0))
    return result


def tensor_counters(model: Any = None, optimizer: Any = None, cache: Any = None) -> dict[str, int]:
    """Return the bytes of live tensors by device and kind, each storage counted once.

    Args:
        model: an nn.Module: weights, buffers and gradients. Weights that accelerate holds
            elsewhere are counted there: "cpu.weights", "disk.weights".
        optimizer: a torch optimizer: its states.
        cache: a transformers cache: "kv_cache".
    """
    counters: dict[str, int] = {}
    if model is not None:
        seen: _Seen = set()
        _add(counters, "weights", model.parameters(), seen)
        _add_offloaded(counters, model)
        _add(counters, "buffers", model.buffers(), seen)
        gradients = (p.grad for p in model.parameters() if p.grad is not None)
        _add(counters, "gradients", gradients, seen)
    if optimizer is not None:
        _add(counters, "optimizer", _tensors(dict(optimizer.state)), set())
    if cache is not None:
        _add(counters, "kv_cache", _cache_tensors(cache), set())
    return counters


def _add(counters: dict[str, int], kind: str, tensors: Iterable[Any], seen: _Seen) -> None:
    for tensor in tensors:
        for plain in _plain(tensor):
            device = _device(plain)
            key = (device, plain.data_ptr(), plain.nbytes) if device != "meta" else None
            if key is None or key in seen or not plain.nbytes:
                continue
            seen.add(key)
            name = f"{device}.{kind}"
            counters[name] = counters.get(name, 0) + plain.nbytes


def _plain(tensor: Any) -> Iterator[Any]:
    """Yield the plain tensors of which a tensor is made (quantised ones are made of several)."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
        return
    for name in flatten()[0]:
        yield from _plain(getattr(tensor, name))


def _device(tensor: Any) -> str:
    device = tensor.device
    if device.type != "cuda":
        return str(device.type)
    return f"cuda:{device.index or 0}"


def _add_offloaded(counters: dict[str, int], model: Any) -> None:
    """Count parameters that accelerate's hooks hold: in host memory, or in files.

    A hooked module's own parameters are on the meta device; the hook's map knows where the data
    is: accelerate.utils.OffloadedWeightsLoader.state_dict (host) or .index (disk).
    """
    seen: set[int] = set()
    for module in model.modules():
        for hook in _hooks(module):
            prefix, loader = _loader(getattr(hook, "weights_map", None))
            if loader is None:
                continue
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.device.type != "meta" or id(parameter) in seen:
                    continue
                seen.add(id(parameter))
                place = "disk" if f"{prefix}{name}" in (loader.index or {}) else "cpu"
                key = f"{place}.weights"
                counters[key] = counters.get(key, 0) + parameter.nbytes


def _hooks(module: Any) -> Iterator[Any]:
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        yield from getattr(hook, "hooks", (hook,))


def _loader(weights_map: Any) -> tuple[str, Any]:
    """Return the prefix and the loader under accelerate's (nested) prefixed datasets."""
    prefix = ""
    while weights_map is not None and hasattr(weights_map, "dataset"):
        prefix = f"{weights_map.prefix}{prefix}"
        weights_map = weights_map.dataset
    return (prefix, weights_map) if hasattr(weights_map, "index") else ("", None)


def _cache_tensors(cache: Any) -> Iterator[Any]:
    """Yield the tensors of a cache: of its layers, and of the caches inside it."""
    for inner in ("self_attention_cache", "cross_attention_cache"):
        if hasattr(cache, inner):
            yield from _cache_tensors(getattr(cache, inner))
    for layer in getattr(cache, "layers", ()):
        yield from _tensors(vars(layer))


def _tensors(value: Any) -> Iterator[Any]:
    """Yield every tensor in nested dicts, lists and tuples."""
    if hasattr(value, "data_ptr"):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
