"""Image tokens are what the installed transformers counts; towers hold what they measure."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import pytest
from image_code import real_functions

from memplan.errors import BadModelError, UsageError
from memplan.footprint.vision import image_count, largest_count, parse_size
from memplan.models.vision import read_vision
from memplan.types import Vision

SIDES = (1, 17, 28, 100, 224, 333, 336, 364, 448, 512, 640, 672, 719, 1024, 1344, 1540, 2049, 4097)
SIZES = [(width, height) for width in SIDES for height in SIDES]

CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "image_size": 336,
}


class Square(NamedTuple):
    """A size as the library's functions take it."""

    height: int
    width: int


def seen(model_type: str, tower: dict | None = None, **config) -> Vision:
    """Return the tower of a config."""
    vision = read_vision({"model_type": model_type, "vision_config": tower or CLIP, **config})
    assert vision is not None
    return vision


@pytest.mark.parametrize(
    ("model_type", "factor", "tower"),
    [
        ("qwen2_vl", 28, {"patch_size": 14, "embed_dim": 1280, "spatial_merge_size": 2}),
        ("qwen2_5_vl", 28, {"patch_size": 14, "hidden_size": 1280, "spatial_merge_size": 2}),
        ("qwen3_vl", 32, {"patch_size": 16, "hidden_size": 1152, "spatial_merge_size": 2}),
    ],
)
def test_qwen_counts_what_smart_resize_leaves(model_type, factor, tower):
    """Every size, and the refusal of one that is too long, is the library's own."""
    resize = real_functions("qwen2_vl/image_processing_qwen2_vl", "smart_resize")["smart_resize"]
    vision = seen(model_type, tower)
    for width, height in SIZES:
        try:
            limits = {"min_pixels": vision.min_pixels, "max_pixels": vision.max_pixels}
            tall, wide = resize(height, width, factor=factor, **limits)
        except ValueError:
            with pytest.raises(UsageError, match="too long"):
                image_count(vision, width, height)
            continue
        assert image_count(vision, width, height).tokens == tall * wide // factor**2
        assert image_count(vision, width, height).patches == 4 * tall * wide // factor**2


def test_llava_next_counts_tiles_cut_padding_and_new_lines():
    """Every size against processing_llava_next.py and select_best_resolution."""
    from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

    vision = seen("llava_next")
    real = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=[list(p) for p in vision.pinpoints]),
        patch_size=14,
        num_additional_image_tokens=1,
    )
    real._get_unpadded_features = lambda *sizes: LlavaNextProcessor._get_unpadded_features(
        real, *sizes
    )
    for width, height in SIZES:
        count = LlavaNextProcessor._get_number_of_features(real, height, width, 336, 336)
        assert image_count(vision, width, height).tokens == count - 1, (width, height)
    assert image_count(vision, 672, 672).patches == 5 * 577


def test_internvl_counts_tiles_and_an_overview():
    """Every size against the image processor that InternVL uses."""
    names = ("get_all_supported_aspect_ratios", "get_optimal_tiled_canvas")
    real = real_functions(
        "got_ocr2/image_processing_got_ocr2", *names, "get_number_of_image_patches"
    )
    own = SimpleNamespace(
        min_patches=1,
        max_patches=12,
        size=SimpleNamespace(height=448, width=448),
        crop_to_patches=True,
    )
    vision = seen("internvl", {**CLIP, "image_size": [448, 448], "patch_size": [14, 14]})
    for width, height in SIZES:
        tiles = real["get_number_of_image_patches"](own, height, width)
        assert image_count(vision, width, height).tokens == 2 + 256 * tiles, (width, height)
    assert largest_count(vision).tokens == 2 + 256 * 13


@pytest.mark.parametrize(("merge", "patch", "edge"), [(1, 16, 1024), (2, 14, 1540)])
def test_pixtral_counts_rows_with_their_ends(merge, patch, edge):
    """Every size against image_processing_pixtral.py: Pixtral-12B and Mistral-3."""
    import numpy as np

    names = ("_num_image_tokens", "get_resize_output_image_size")
    resize = real_functions("pixtral/image_processing_pixtral", *names)[names[1]]
    tower = {**CLIP, "model_type": "pixtral", "image_size": edge, "patch_size": patch}
    vision = seen("llava" if merge == 1 else "mistral3", tower, spatial_merge_size=merge)
    unit = patch * merge
    for width, height in SIZES:
        image = np.broadcast_to(np.zeros(1), (height, width, 3))
        tall, wide = resize(image, size=(edge, edge), patch_size=(unit, unit))
        expected = (wide // unit + 1) * (tall // unit)
        assert image_count(vision, width, height).tokens == expected, (width, height)


@pytest.mark.parametrize(("side", "patch", "scale"), [(364, 14, 2), (512, 16, 4), (384, 14, 3)])
def test_idefics3_counts_tiles_and_the_marks_of_rows(side, patch, scale):
    """Every size against Idefics3's image processor and its processor's sum."""
    helpers = (
        "_resize_output_size_rescale_to_max_len",
        "_resize_output_size_scale_below_upper_bound",
    )
    real = real_functions(
        "idefics3/image_processing_idefics3", *helpers, "get_number_of_image_patches"
    )
    own = SimpleNamespace(
        do_image_splitting=True,
        max_image_size={"longest_edge": side},
        size={"longest_edge": 4 * side},
    )
    tower = {**CLIP, "image_size": side, "patch_size": patch}
    vision = seen("idefics3", tower, scale_factor=scale)
    length = int((side // patch) ** 2 / scale**2)
    for width, height in SIZES:
        _, rows, columns = real["get_number_of_image_patches"](own, height, width)
        expected = length + 3 + rows * ((length + 2) * columns + 1)
        assert image_count(vision, width, height).tokens == expected, (width, height)


def test_llama4_counts_tiles_separators_and_an_overview():
    """Every size against image_processing_llama4.py and processing_llama4.py."""
    import torch
    from transformers.models.llama4.processing_llama4 import Llama4Processor

    names = ("get_factors", "find_supported_resolutions", "get_best_fit")
    real = real_functions("llama4/image_processing_llama4", *names)
    size = Square(336, 336)
    canvases = torch.tensor(real["find_supported_resolutions"](16, size))
    vision = seen("llama4", {**CLIP, "model_type": "llama4_vision_model"})
    assert vision.tokens == 144
    for width, height in SIZES:
        rows, columns = (real["get_best_fit"]((height, width), canvases) // 336).tolist()
        text = Llama4Processor._prompt_split_image(None, (rows, columns), vision.tokens)
        assert image_count(vision, width, height).tokens == text.count("<|"), (width, height)


def test_families_with_one_square_have_one_count():
    """Published: LLaVA-1.5 576, Gemma-3 256, PaliGemma 256 and 1024, Mllama one."""
    siglip = {**CLIP, "model_type": "siglip_vision_model"}
    gemma = seen("gemma3", {**siglip, "image_size": 896}, mm_tokens_per_image=256)
    wide = seen("paligemma", {**siglip, "image_size": 448})
    counts = [
        image_count(vision, 640, 480).tokens
        for vision in (
            seen("llava"),
            gemma,
            seen("paligemma", {**siglip, "image_size": 224}),
            wide,
            seen("mllama", {**CLIP, "image_size": 560, "max_num_tiles": 4}),
        )
    ]
    assert counts == [576, 256, 256, 1024, 1]
    assert image_count(gemma, 1, 1).patches == 64**2


def test_the_preprocessor_beside_the_config_decides():
    """Limits on pixels and tiles are its own where a file says so."""
    tower = {"patch_size": 14, "embed_dim": 1280, "spatial_merge_size": 2}
    config = {"model_type": "qwen2_vl", "vision_config": tower}
    small = read_vision(config, {"min_pixels": 3136, "max_pixels": 200704})
    assert image_count(small, 4000, 4000).tokens == 256
    assert image_count(seen("qwen2_vl", tower), 3584, 3584).tokens == 16384


@pytest.mark.parametrize(
    ("model_type", "tower", "more"),
    [
        ("internvl", {"patch_size": 0}, {}),
        ("internvl", {}, {"max_dynamic_patch": 10**6}),
        ("idefics3", {"image_size": 0}, {}),
        ("llava", {"hidden_size": "wide"}, {}),
        ("mistral3", {}, {"spatial_merge_size": 0}),
        ("llava_next", {}, {"image_grid_pinpoints": [["a", 1]]}),
    ],
)
def test_a_tower_without_sense_is_refused(model_type, tower, more):
    """One error with a hint, and no division by nothing."""
    config = {"model_type": model_type, "vision_config": {**CLIP, **tower}, **more}
    with pytest.raises(BadModelError):
        read_vision(config)


def test_a_text_model_sees_nothing():
    """No tower, an unknown family, or an empty tower: no rule."""
    assert read_vision({"model_type": "llama"}) is None
    assert read_vision({"model_type": "llava", "vision_config": {}}) is None
    assert read_vision({"model_type": "brand_new", "vision_config": CLIP}) is None


@pytest.mark.parametrize("text", ["", "12", "x", "0x5", "12x", "-3x4", "1e3x4", "9" * 40 + "x1"])
def test_a_size_that_is_none_is_refused(text):
    """Width and height in pixels, nothing else."""
    with pytest.raises(UsageError, match="no size"):
        parse_size(text, seen("llava"))


def test_the_own_size_is_the_square_or_1024():
    """Only families that resize to one square have a size."""
    assert parse_size(None, seen("llava")) == (336, 336)
    assert parse_size(None, seen("llama4")) == (1024, 1024)
    assert parse_size("640X480", seen("llava")) == (640, 480)
