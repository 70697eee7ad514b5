"""What every core type is made of: literals, frozen maps, checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, Literal, TypeVar

__all__ = [
    "PARTS",
    "Basis",
    "CompareVerdict",
    "DeviceKind",
    "Extra",
    "FrozenMap",
    "ModelSource",
    "Part",
    "RunStatus",
    "TensorKind",
    "no_extra",
    "not_negative",
]

V = TypeVar("V")


Part = Literal[
    "weights",
    "kv_cache",
    "state_cache",
    "activations",
    "gradients",
    "optimizer",
    "buffers",
    "overhead",
]


Basis = Literal["exact", "formula", "trace", "measured", "assumed"]


DeviceKind = Literal["gpu", "cpu", "disk"]


ModelSource = Literal["safetensors", "gguf", "config", "hub", "catalog", "module"]


TensorKind = Literal["parameter", "buffer"]


RunStatus = Literal["running", "finished", "failed", "lost"]


CompareVerdict = Literal["within", "over", "under"]


PARTS: tuple[Part, ...] = (
    "weights",
    "kv_cache",
    "state_cache",
    "activations",
    "gradients",
    "optimizer",
    "buffers",
    "overhead",
)
"""Every part in the order in which it is printed."""


class FrozenMap(Mapping[str, V], Generic[V]):
    """A read-only, hashable mapping with string keys that keeps its order."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, V] | None = None) -> None:
        self._items: dict[str, V] = dict(items or {})

    def __getitem__(self, key: str) -> V:
        """Return the value of a key."""
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys in their order."""
        return iter(self._items)

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._items)

    def __hash__(self) -> int:
        """Hash by content, whatever the order."""
        return hash(frozenset(self._items.items()))

    def __eq__(self, other: object) -> bool:
        """Compare by content, also with a dict."""
        if isinstance(other, FrozenMap):
            return self._items == other._items
        return self._items == other

    def __repr__(self) -> str:
        """Show the content."""
        return f"FrozenMap({self._items!r})"


Extra = FrozenMap[str]
"""Unknown fields of newer versions: name -> JSON text."""


def no_extra() -> FrozenMap[str]:
    """Return the empty map that a new value has."""
    return FrozenMap()


def not_negative(owner: object, *names: str) -> None:
    """Raise ValueError when one of the named fields is below 0; None is let through."""
    for name in names:
        value = getattr(owner, name)
        if value is not None and value < 0:
            raise ValueError(f"{type(owner).__name__}.{name} must not be negative: {value}")
