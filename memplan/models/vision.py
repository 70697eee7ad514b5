"""What a config.json says about the tower that sees images.

Sources: configuration and processing classes of transformers 5.23; the limits on pixels and tiles
are those of the published preprocessor_config.json files, which a file beside the config overrides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from memplan.errors import BadModelError
from memplan.models.numbers import number, text_config
from memplan.types import Vision

__all__ = ["read_vision"]

_NONE: Mapping[str, Any] = {}
_ROTARY32 = ("qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
_QUICK = "quick_gelu"


def read_vision(
    config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None
) -> Vision | None:
    """Return the tower of a config, or None for a text model and for a family without a rule.

    Args:
        config: the parsed config.json.
        preprocessor: the parsed preprocessor_config.json, if there is one.

    Raises BadModelError for a number that makes no sense.
    """
    tower = config.get("vision_config")
    family = str(config.get("model_type") or "")
    rule = _FAMILIES.get(family)
    if rule is None or not isinstance(tower, Mapping) or not tower:
        return None
    if family == "llava" and tower.get("model_type") == "pixtral":
        rule = _pixtral
    facts = {**_widths(tower, family), **rule(config, tower, preprocessor or _NONE)}
    _check(facts)
    return Vision(**facts)


def _check(facts: Mapping[str, Any]) -> None:
    """Refuse sizes that no rule can divide by, and more tiles than any family has."""
    needed = ("patch", "hidden", "merge", "max_tiles", *_NEEDED.get(facts["rule"], ("side",)))
    for name in needed:
        if not facts.get(name, 1) or (name == "max_tiles" and facts.get(name, 1) > MAX_TILES):
            raise BadModelError(
                f"config.json: its vision part has {name.replace('_', ' ')} {facts[name]}",
                hint="check vision_config",
            )


MAX_TILES = 256
_NEEDED = {"pixels": ("max_pixels",), "longest": ("longest",), "split": ("side", "longest")}


def _widths(tower: Mapping[str, Any], family: str) -> dict[str, Any]:
    """Return the tower's widths under the names of all families."""
    wide = number(tower, "embed_dim", default=0) if family == "qwen2_vl" else 0
    hidden = wide or number(tower, "hidden_size", default=1280 if "qwen" in family else 1024)
    ratio = tower.get("mlp_ratio")
    inner = int(hidden * ratio) if isinstance(ratio, int | float) and 0 < ratio < 64 else 4 * hidden
    return {
        "patch": number(tower, "patch_size", "spatial_patch_size", default=14),
        "hidden": hidden,
        "intermediate": number(tower, "intermediate_size", default=0) or inner,
        "heads": number(tower, "num_attention_heads", "num_heads", "attention_heads", default=16),
        "layers": number(tower, "num_hidden_layers", "depth", default=24),
        "side": number(tower, "image_size", default=0),
        "style": _style(tower, family),
    }


def _style(tower: Mapping[str, Any], family: str) -> str:
    if family == "qwen2_5_vl":
        return "gated32"
    if family in _ROTARY32 or family == "llama4":
        return "quick32" if family == "qwen2_vl" else "rotary32"
    if tower.get("model_type") == "pixtral" or family == "mistral3":
        return "rotary"
    clip = tower.get("model_type") == "clip_vision_model"
    return "quick" if tower.get("hidden_act", _QUICK if clip else "") == _QUICK else "plain"


Facts = dict[str, Any]


def _llava(config: Mapping[str, Any], tower: Mapping[str, Any], _: Mapping[str, Any]) -> Facts:
    """One square; CLS is cut off by the "default" strategy (SigLIP has none)."""
    classes = int(tower.get("model_type", "clip_vision_model") == "clip_vision_model")
    side = number(tower, "image_size", default=336)
    patch = number(tower, "patch_size", default=14)
    cut = int(config.get("vision_feature_select_strategy", "default") == "default")
    tokens = (side // max(patch, 1)) ** 2 + classes - cut
    return {"rule": "square", "side": side, "classes": classes, "tokens": tokens, "kept": 1}


def _llava_next(
    config: Mapping[str, Any], tower: Mapping[str, Any], pre: Mapping[str, Any]
) -> Facts:
    points = config.get("image_grid_pinpoints") or pre.get("image_grid_pinpoints") or []
    points = points if isinstance(points, list) else []
    pairs = [point for point in points if isinstance(point, list) and len(point) == 2]
    canvases = tuple((number({"x": a}, "x"), number({"x": b}, "x")) for a, b in pairs if a and b)
    facts = _llava(config, tower, pre)
    return {**facts, "rule": "pinpoints", "pinpoints": canvases or _PINPOINTS}


_PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


def _qwen(config: Mapping[str, Any], tower: Mapping[str, Any], pre: Mapping[str, Any]) -> Facts:
    """Any size within limits on pixels: 56 x 56 to 16384 tokens (Qwen2-VL, Qwen2.5-VL)."""
    newer = str(config.get("model_type")).startswith("qwen3")
    size = pre.get("size")
    size = size if isinstance(size, Mapping) else {}
    deep = tower.get("deepstack_visual_indexes")
    least, most = (65_536, 16_777_216) if newer else (3_136, 12_845_056)
    return {
        "rule": "pixels",
        "side": 0,
        "merge": number(tower, "spatial_merge_size", default=2),
        "kept": len(deep) + 1 if isinstance(deep, list) else 0,
        "min_pixels": number({**size, **pre}, "min_pixels", "shortest_edge", default=least),
        "max_pixels": number({**size, **pre}, "max_pixels", "longest_edge", default=most),
    }


def _gemma(config: Mapping[str, Any], tower: Mapping[str, Any], _: Mapping[str, Any]) -> Facts:
    tokens = number(config, "mm_tokens_per_image", default=256)
    return {"rule": "square", "side": number(tower, "image_size", default=896), "tokens": tokens}


def _paligemma(config: Mapping[str, Any], tower: Mapping[str, Any], _: Mapping[str, Any]) -> Facts:
    side, patch = number(tower, "image_size", default=224), number(tower, "patch_size", default=14)
    own = number(text_config(config), "num_image_tokens", default=0)
    own = own or number(tower, "num_image_tokens", default=0)
    return {"rule": "square", "side": side, "tokens": own or (side // max(patch, 1)) ** 2}


def _internvl(config: Mapping[str, Any], tower: Mapping[str, Any], pre: Mapping[str, Any]) -> Facts:
    """Up to 12 tiles and an overview; pixel shuffle leaves a quarter of the patches."""
    side = number(config, "force_image_size", default=0) or number(tower, "image_size", default=448)
    patch = number(tower, "patch_size", default=14)
    ratio = config.get("downsample_ratio", 0.5)
    ratio = float(ratio) if isinstance(ratio, int | float) and 0 < ratio <= 1 else 0.5
    tokens = int((side // max(patch, 1)) ** 2 * ratio * ratio)
    return {
        "rule": "tiles",
        "side": side,
        "classes": 1,
        "tokens": number(config, "image_seq_length", default=0) or tokens,
        "max_tiles": number({**config, **pre}, "max_patches", "max_dynamic_patch", default=12),
    }


def _pixtral(config: Mapping[str, Any], tower: Mapping[str, Any], pre: Mapping[str, Any]) -> Facts:
    """The longest edge is limited; every row of patches ends with a token of its own."""
    size = pre.get("size")
    side = number(tower, "image_size", default=1024)
    edge = number(size if isinstance(size, Mapping) else {}, "longest_edge", default=side)
    merge = number(config, "spatial_merge_size", default=1)
    return {"rule": "longest", "side": 0, "merge": merge, "longest": edge, "kept": 1}


def _idefics(config: Mapping[str, Any], tower: Mapping[str, Any], pre: Mapping[str, Any]) -> Facts:
    """Scaled to 4 tiles along the longest edge, cut, and an overview added."""
    size = pre.get("size")
    side = number(tower, "image_size", default=364)
    patch = number(tower, "patch_size", default=14)
    scale = number(config, "scale_factor", default=2)
    edge = number(size if isinstance(size, Mapping) else {}, "longest_edge", default=4 * side)
    tokens = int((side // max(patch, 1)) ** 2 / max(scale, 1) ** 2)
    return {"rule": "split", "side": side, "merge": scale, "tokens": tokens, "longest": edge}


def _llama4(_: Mapping[str, Any], tower: Mapping[str, Any], pre: Mapping[str, Any]) -> Facts:
    """Up to 16 tiles of 336 pixels and an overview; pixel shuffle leaves a quarter."""
    side, patch = number(tower, "image_size", default=336), number(tower, "patch_size", default=14)
    ratio = tower.get("pixel_shuffle_ratio", 0.5)
    ratio = float(ratio) if isinstance(ratio, int | float) and 0.01 < ratio <= 1 else 0.5
    return {
        "rule": "chunks",
        "side": side,
        "classes": 1,
        "tokens": int((side // max(patch, 1)) ** 2 // round(1 / ratio**2)),
        "max_tiles": number(pre, "max_patches", default=16),
    }


def _mllama(_: Mapping[str, Any], tower: Mapping[str, Any], pre: Mapping[str, Any]) -> Facts:
    """Every image takes all tiles: missing ones are filled with zeros."""
    return {
        "rule": "cross",
        "side": number(tower, "image_size", default=560),
        "classes": 1,
        "kept": len(tower.get("intermediate_layers_indices") or []) + 1,
        "max_tiles": number(tower, "max_num_tiles", default=0)
        or number(pre, "max_image_tiles", default=4),
    }


_Rule = Callable[[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]], Facts]
_FAMILIES: dict[str, _Rule] = {
    "llava": _llava,
    "vipllava": _llava,
    "llava_next": _llava_next,
    **dict.fromkeys(("qwen2_5_vl", *_ROTARY32), _qwen),
    "gemma3": _gemma,
    "paligemma": _paligemma,
    "internvl": _internvl,
    "internvl_chat": _internvl,
    "mistral3": _pixtral,
    "idefics3": _idefics,
    "smolvlm": _idefics,
    "llama4": _llama4,
    "mllama": _mllama,
}
"""transformers' model type -> its rule."""
