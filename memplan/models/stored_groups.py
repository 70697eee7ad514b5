"""Checkpoints whose config describes groups of layers: compressed-tensors and modelopt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from memplan.errors import BadModelError
from memplan.formats.quantized import Scheme, parse_scheme
from memplan.models.numbers import number, words

__all__ = ["compressed", "modelopt"]

_BYTE = 8
_NVFP4_GROUP = 16
_MAX_GROUP = 2**20
_EVERYTHING = ("Linear",)
_MIXED = "mixed"


def modelopt(found: Mapping[str, Any]) -> Scheme | None:
    """Return the scheme of a modelopt checkpoint: one for all, or one per layer that it names.

    Raises BadModelError for numbers that make no sense.
    """
    layers = found.get("quantized_layers")
    if isinstance(layers, Mapping) and layers:
        return _mixed(tuple(_layers(layers)))
    algorithm = str(found.get("quant_algo") or "").upper()
    return _algorithm(algorithm, found) or compressed(found)


def _layers(layers: Mapping[str, Any]) -> Iterator[tuple[str, Scheme]]:
    for name, entry in layers.items():
        if isinstance(entry, Mapping):
            scheme = _algorithm(str(entry.get("quant_algo") or "").upper(), entry)
            if scheme is not None:
                yield name, scheme


def _algorithm(algorithm: str, found: Mapping[str, Any]) -> Scheme | None:
    if "NVFP4" in algorithm:
        return replace(parse_scheme("nvfp4"), static="W4A16" not in algorithm)
    if algorithm == "FP8_PB_WO":
        return parse_scheme("fp8")
    if "FP8" in algorithm and "MIXED" not in algorithm:
        return replace(parse_scheme("fp8-tensor"), static=bool(found.get("static", True)))
    return None


def compressed(found: Mapping[str, Any]) -> Scheme | None:
    """Return the scheme of compressed-tensors' config groups, None when none has weights.

    A group of all linears is the scheme itself; one with other targets becomes a part.
    Raises BadModelError for numbers that make no sense.
    """
    groups = found.get("config_groups")
    if groups is not None and not isinstance(groups, Mapping):
        raise BadModelError(
            f"config.json: config_groups is {str(groups)[:60]}, not an object",
            hint="check the config file",
        )
    main: Scheme | None = None
    parts: list[tuple[str, Scheme]] = []
    for group in groups.values() if isinstance(groups, Mapping) else ():
        scheme = _group(group, str(found.get("format"))) if isinstance(group, Mapping) else None
        if scheme is None:
            continue
        targets = words(group, "targets") or list(_EVERYTHING)
        if any(target in _EVERYTHING for target in targets):
            main = main or scheme
        else:
            parts += [(target, scheme) for target in targets]
    if main is None:
        return _mixed(tuple(parts)) if parts else None
    return replace(main, parts=tuple(parts))


def _mixed(parts: tuple[tuple[str, Scheme], ...]) -> Scheme | None:
    """Return a scheme that quantizes only what its parts name."""
    if not parts:
        return None
    names = dict.fromkeys(scheme.name for _, scheme in parts)
    label = next(iter(names)) if len(names) == 1 else _MIXED
    return replace(parts[0][1], name=label, parts=parts, default=False)


def _group(group: Mapping[str, Any], layout: str) -> Scheme | None:
    weights = group.get("weights")
    if not isinstance(weights, Mapping):
        return None
    bits = number(weights, "num_bits", default=_BYTE)
    size = weights.get("group_size")
    size = size if isinstance(size, int) and size > 0 else 0
    if bits not in range(1, 17) or size >= _MAX_GROUP:
        raise BadModelError(
            f"config.json: weights of {bits} bits, group {size}", hint="check the config file"
        )
    if weights.get("type") == "float":
        return _float(bits, size, weights, group, str(group.get("format") or layout))
    name = f"w{bits}a16-g{size}" if size else f"w{bits}a16"
    symmetric = bool(weights.get("symmetric", True))
    return Scheme(name=name, family="packed", bits=bits, group=size, symmetric=symmetric)


def _float(
    bits: int, size: int, weights: Mapping[str, Any], group: Mapping[str, Any], layout: str
) -> Scheme:
    """NVFP4 and MXFP4 by their group; FP8 by strategy, its scales in the weight's dtype."""
    inputs = group.get("input_activations")
    static = isinstance(inputs, Mapping) and inputs.get("dynamic") is not True
    if bits < _BYTE:
        if size == _NVFP4_GROUP or layout.startswith("nvfp4"):
            return replace(parse_scheme("nvfp4"), static=static)
        return Scheme(name="mxfp4", family="mx-packed", bits=4, group=32, scale_bytes=1)
    strategy = weights.get("strategy") or "tensor"
    if strategy == "block":
        block = weights.get("block_structure")
        side = block[0] if isinstance(block, list) and block else 128
        side = side if isinstance(side, int) and 0 < side < _MAX_GROUP else 128
        return replace(parse_scheme("fp8"), group=side, scale_bytes=2)
    if strategy == "tensor":
        return replace(parse_scheme("fp8-tensor"), scale_bytes=2, static=static)
    return replace(parse_scheme("fp8-channel"), scale_bytes=2)
