"""Reading numbers: the process by /proc, the allocators by torch, the tensors one by one.

Names are those of `memplan.types.Phase.counters`, values are bytes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memplan.measure.offload import offloaded
from memplan.measure.storages import Ledger

__all__ = ["process_counters", "tensor_counters", "torch_counters"]

_STATUS = {
    "VmRSS": "process.rss",
    "RssAnon": "process.rss_anon",
    "RssFile": "process.rss_file",
    "VmHWM": "process.hwm",
}

_LARGEST_STATUS = 16384
"""Bytes; some 1,500 are usual, and the kernel gives them in one piece."""

_ALLOCATOR = {
    "allocated": "allocated_bytes.all.current",
    "reserved": "reserved_bytes.all.current",
    "peak_allocated": "allocated_bytes.all.peak",
    "peak_reserved": "reserved_bytes.all.peak",
}


def process_counters(proc: Path = Path("/proc")) -> dict[str, int]:
    """Return this process's resident memory and its highest value; {} where there is no /proc.

    Three system calls: at each of them another thread may take the interpreter for up to 5 ms.

    Args:
        proc: the proc file system.
    """
    result = {}
    with contextlib.suppress(OSError, ValueError):
        file = os.open(proc / "self" / "status", os.O_RDONLY)
        try:
            text = os.read(file, _LARGEST_STATUS).decode("utf-8", "replace")
        finally:
            os.close(file)
        for line in text.splitlines():
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
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    ledger = Ledger(torch)
    if model is not None:
        ledger.add("weights", model.parameters())
        for place, size in offloaded(model, ledger):
            ledger.count(place, "weights", size)
        ledger.add("buffers", model.buffers())
        ledger.add("gradients", (p.grad for p in model.parameters() if p.grad is not None))
    if optimizer is not None:
        ledger.add("optimizer", _tensors(dict(optimizer.state)))
    if cache is not None:
        ledger.add("kv_cache", _cache_tensors(cache))
    return ledger.totals()


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
