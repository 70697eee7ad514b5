"""The part of a config that sees: which rule makes tokens of a picture, and the tower's shape.

What only a processor's config says (limits of pixels, tiles) is taken from the processors'
defaults in transformers 5.23 or from the published preprocessor_config.json files of the family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.models.numbers import number
from memplan.types import Vision

__all__ = ["read_vision"]

_MIB_PIXELS = 2**20

_FAMILIES: dict[str, dict[str, Any]] = {
    "llava": {"kind": "fixed", "extra_patches": 1, "keeps_layers": True},
    "llava_next": {"kind": "anyres", "extra_patches": 1, "keeps_layers": True},
    "qwen2_vl": {"kind": "resized", "min_pixels": 56 * 56, "max_pixels": 12_845_056},
    "qwen2_5_vl": {"kind": "resized", "min_pixels": 56 * 56, "max_pixels": 12_845_056},
    "qwen3_vl": {"kind": "resized", "min_pixels": 65_536, "max_pixels": 16 * _MIB_PIXELS},
    "qwen3_vl_moe": {"kind": "resized", "min_pixels": 65_536, "max_pixels": 16 * _MIB_PIXELS},
    "gemma3": {"kind": "fixed"},
    "paligemma": {"kind": "fixed"},
    "internvl": {"kind": "tiled", "max_tiles": 12, "extra_patches": 1},
    "mistral3": {"kind": "rows"},
    "idefics3": {"kind": "split", "max_tiles": 4},
    "smolvlm": {"kind": "split", "max_tiles": 4},
    "llama4": {"kind": "chunks", "max_tiles": 16, "extra_patches": 1},
    "mllama": {"kind": "cross", "max_tiles": 4, "extra_patches": 1},
}
"""Model type -> rule and limits."""


def read_vision(config: Mapping[str, Any]) -> Vision | None:
    """Return what a config says about pictures, None for a model that sees none or is not known.

    Raises BadModelError for numbers that make no sense.
    """
    model_type = config.get("model_type")
    family = _FAMILIES.get(model_type) if isinstance(model_type, str) else None
    tower = config.get("vision_config")
    if family is None or not isinstance(tower, Mapping):
        return None
    if model_type == "llava" and tower.get("model_type") == "pixtral":
        family = {"kind": "rows"}
    hidden = number(tower, "hidden_size", "embed_dim", default=0)
    if model_type == "qwen2_vl":
        hidden = number(tower, "embed_dim", default=hidden)
    heads = number(tower, "num_attention_heads", "num_heads", "attention_heads", default=1)
    ratio = tower.get("mlp_ratio", 4)
    inner = int(hidden * ratio) if isinstance(ratio, int | float) else 4 * hidden
    side, patch = _first(tower, "image_size", 0), _first(tower, "patch_size", 14) or 14
    found = {
        "patch": patch,
        "merge": number({**config, **tower}, "spatial_merge_size", default=1) or 1,
        "side": side,
        "hidden": hidden,
        "intermediate": number(tower, "intermediate_size", default=inner),
        "heads": heads,
        "layers": number(tower, "num_hidden_layers", "depth", default=0),
        "tile_tokens": _tile_tokens(str(model_type), config, side, patch),
        "canvases": _canvases(config),
    }
    return Vision(**{**found, **family})


def _first(tower: Mapping[str, Any], key: str, default: int) -> int:
    """Return a size that some configs give as [height, width]."""
    value = tower.get(key)
    return number(
        {key: value[0]} if isinstance(value, list) and value else tower, key, default=default
    )


def _tile_tokens(model_type: str, config: Mapping[str, Any], side: int, patch: int) -> int:
    """Return the tokens of one square after merging."""
    patches = (side // patch) ** 2
    if model_type == "gemma3":
        return number(config, "mm_tokens_per_image", default=256)
    if model_type == "internvl":
        ratio = config.get("downsample_ratio", 0.5)
        share = float(ratio) ** 2 if isinstance(ratio, int | float) else 0.25
        return int(patches * share)
    if model_type in ("idefics3", "smolvlm"):
        return patches // number(config, "scale_factor", default=2) ** 2
    if model_type == "llama4":
        tower = config.get("vision_config") or {}
        ratio = tower.get("pixel_shuffle_ratio", 0.5)
        return patches // max(round(1 / float(ratio) ** 2), 1)
    return patches


def _canvases(config: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    points = config.get("image_grid_pinpoints")
    if not isinstance(points, list):
        points = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    pairs = [point for point in points if isinstance(point, list) and len(point) == 2]
    return tuple((number({"x": a}, "x"), number({"x": b}, "x")) for a, b in pairs if a and b)
