"""Units and their devices -> a device_map that is short, prefix-free and complete."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from memplan.placement.units import Unit
from memplan.types import FrozenMap, ModelSpec

__all__ = ["device_map", "uncovered"]

_LAYER_KEY = re.compile(r"^(.*?\b(?:layers|h|blocks|block)\.\d+)\.")


def device_map(units: Sequence[Unit], where: Mapping[int, str]) -> FrozenMap[str]:
    """Return module path -> device name, layers that lie on one device as one key.

    Args:
        units: the model's pieces in order.
        where: unit position -> device name, complete.
    """
    layers: dict[str, set[str]] = {}
    for unit in units:
        for name in unit.names:
            if (layer := _layer(name)) is not None:
                layers.setdefault(layer, set()).add(where[unit.position])
    result: dict[str, str] = {}
    for unit in units:
        for name in unit.names:
            layer = _layer(name)
            whole = layer is not None and len(layers[layer]) == 1
            result[layer if layer is not None and whole else name] = where[unit.position]
    return FrozenMap(result)


@lru_cache(maxsize=200_000)
def _layer(name: str) -> str | None:
    """Return the path of the layer that a module is in, or None."""
    match = _LAYER_KEY.match(name)
    return match[1] if match else None


def uncovered(mapping: Mapping[str, str], spec: ModelSpec) -> tuple[str, ...]:
    """Return the tensors that no key of a map covers: accelerate would accept it silently."""
    return tuple(t.name for t in spec.tensors if not _covered(t.name, mapping))


def _covered(name: str, mapping: Mapping[str, str]) -> bool:
    while name:
        if name in mapping:
            return True
        name = name.rpartition(".")[0]
    return "" in mapping
