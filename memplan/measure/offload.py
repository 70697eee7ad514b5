"""Where accelerate keeps the weights whose parameters are on the meta device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from memplan.units import tensor_bytes

if TYPE_CHECKING:
    from memplan.measure.storages import Ledger

__all__ = ["offloaded"]


def offloaded(model: Any, ledger: Ledger) -> Iterator[tuple[str, int]]:
    """Yield ("cpu" or "disk", bytes) of each offloaded tensor, tied ones once.

    accelerate's AlignDevicesHook has a `weights_map`: name -> tensor in host memory, or a loader
    with `state_dict` (host memory) and `index` (offload folder: dtype and shape by name).

    Args:
        model: a torch.nn.Module.
        ledger: what was counted so far; host tensors that it knows are left out.
    """
    on_disk: set[tuple[int, str]] = set()
    for module in model.modules():
        for hook in _hooks(getattr(module, "_hf_hook", None)):
            weights = getattr(hook, "weights_map", None)
            if weights is None:
                continue
            for name, parameter in _meta_tensors(module, hook):
                entry = _find(weights, name)
                if isinstance(entry, _OnDisk):
                    if (entry.loader, entry.key) not in on_disk:
                        on_disk.add((entry.loader, entry.key))
                        yield "disk", entry.size(parameter)
                elif entry is not None and ledger.is_new(entry):
                    yield "cpu", entry.untyped_storage().nbytes()


class _OnDisk:
    """An entry of an offload folder's index."""

    def __init__(self, loader: int, key: str, info: Mapping[str, Any]) -> None:
        self.loader = loader
        self.key = key
        self._info = info
        if "safetensors_file" in info:  # the checkpoint itself: the same bytes for every loader
            self.loader, self.key = 0, f"{info['safetensors_file']}:{info.get('weight_name', key)}"

    def size(self, parameter: Any) -> int:
        """Return the bytes by the index, or as the parameter will have them."""
        shape, dtype = self._info.get("shape"), self._info.get("dtype")
        if shape is None or dtype is None:
            return int(parameter.numel() * parameter.element_size())
        return tensor_bytes(tuple(shape), str(dtype))


def _hooks(hook: Any) -> Iterator[Any]:
    """Yield a hook, or the hooks that a SequentialHook chains."""
    if hook is None:
        return
    chained = getattr(hook, "hooks", None)
    if chained is None:
        yield hook
        return
    for item in chained:
        yield from _hooks(item)


def _meta_tensors(module: Any, hook: Any) -> Iterator[tuple[str, Any]]:
    """Yield the tensors that a hook brings back before each forward pass."""
    recurse = bool(getattr(hook, "place_submodules", False))
    found = list(module.named_parameters(recurse=recurse))
    if getattr(hook, "offload_buffers", False):
        found += module.named_buffers(recurse=recurse)
    return ((name, tensor) for name, tensor in found if tensor.device.type == "meta")


def _find(weights: Any, name: str) -> Any:
    """Return a tensor in host memory, an _OnDisk, or None, through any number of prefixes."""
    while hasattr(weights, "dataset") and hasattr(weights, "prefix"):
        name, weights = weights.prefix + name, weights.dataset
    held = getattr(weights, "state_dict", None)
    if isinstance(held, Mapping) and name in held:
        return held[name]
    index = getattr(weights, "index", None)
    if isinstance(index, Mapping) and name in index:
        return _OnDisk(id(weights), name, index[name])
    return weights[name] if isinstance(weights, dict) and name in weights else None
