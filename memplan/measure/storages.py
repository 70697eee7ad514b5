"""Adding up tensors by device and category, each storage once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["Ledger"]


class Ledger:
    """Bytes by device and category; a storage that two tensors share is counted with the first."""

    def __init__(self, torch: Any) -> None:
        """Begin empty.

        Args:
            torch: the module.
        """
        self._torch = torch
        self._seen: set[tuple[str, int]] = set()
        self._totals: defaultdict[str, int] = defaultdict(int)

    def add(self, category: str, tensors: Iterable[Any]) -> None:
        """Count the storages of tensors that were not counted yet."""
        for tensor in tensors:
            for plain in self._plain(tensor):
                self._add_storage(category, plain)

    def count(self, device: str, category: str, size: int) -> None:
        """Add bytes that are no tensor of this process, such as a file's."""
        self._totals[f"{device}.{category}"] += size

    def is_new(self, tensor: Any) -> bool:
        """Tell whether a tensor's storage is not counted yet, and take it as counted."""
        key = (_device(tensor), tensor.untyped_storage().data_ptr())
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def totals(self) -> dict[str, int]:
        """Return the sums, without those that are 0."""
        return {name: size for name, size in sorted(self._totals.items()) if size}

    def _plain(self, tensor: Any) -> Iterator[Any]:
        """Yield the plain tensors behind one: a quantized or distributed one wraps several."""
        flatten = getattr(tensor, "__tensor_flatten__", None)
        if flatten is None:
            yield tensor
            state = getattr(tensor, "quant_state", None)  # bitsandbytes keeps its scales aside
            if state is not None:
                yield from _quant_state(self._torch, state)
            return
        for name in flatten()[0]:
            yield from self._plain(getattr(tensor, name))

    def _add_storage(self, category: str, tensor: Any) -> None:
        if tensor.device.type == "meta" or tensor.layout != self._torch.strided:
            return
        storage = tensor.untyped_storage()
        if storage.nbytes() and self.is_new(tensor):
            self._totals[f"{_device(tensor)}.{category}"] += storage.nbytes()


def _quant_state(torch: Any, state: Any, depth: int = 0) -> Iterator[Any]:
    for value in vars(state).values():
        if isinstance(value, torch.Tensor):
            yield value
        elif depth == 0 and type(value) is type(state):  # double quantization: scales of scales
            yield from _quant_state(torch, value, 1)


def _device(tensor: Any) -> str:
    device = tensor.device
    return device.type if device.index is None else f"{device.type}:{device.index}"
