"""Tokens of pictures, held against the processors of transformers over many sizes."""

from __future__ import annotations
import __future__

import ast
import math
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from memplan.errors import UsageError
from memplan.footprint.pictures import picture, tower_bytes
from memplan.models.vision import read_vision

SIZES = [(1, 1), (28, 28), (100, 30), (224, 224), (336, 336), (337, 335), (448, 1344), (640, 480)]
SIZES += [(1024, 768), (800, 1200), (1920, 1080), (3000, 200), (4096, 4096), (500, 7000)]
"""(width, height)"""


def lifted(path, *names, **known):
    """Return functions of a file of transformers that cannot be imported without Pillow."""
    import transformers

    text = (Path(transformers.__file__).parent / "models" / path).read_text("utf-8")
    found = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.name in names
    ]
    body = ast.fix_missing_locations(ast.Module(body=found, type_ignores=[]))
    for node in found:
        node.decorator_list = []
    space = {"math": math, "lru_cache": lru_cache, **known}
    code = compile(body, path, "exec", flags=__future__.annotations.compiler_flag)
    exec(code, space)
    return SimpleNamespace(**{name: space[name] for name in names})


def config(model_type, tower, **more):
    return {"model_type": model_type, "vision_config": {"hidden_size": 64, **tower}, **more}


def tokens(vision, size):
    return picture(vision, *size).tokens


@pytest.mark.models
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("model_type", "patch"), [("qwen2_5_vl", 14), ("qwen3_vl", 16)])
def test_qwen_counts_as_its_processor_does(size, model_type, patch):
    """smart_resize with the published limits."""
    module = lifted("qwen2_vl/image_processing_pil_qwen2_vl.py", "smart_resize")
    vision = read_vision(config(model_type, {"patch_size": patch, "spatial_merge_size": 2}))
    limits = {"min_pixels": vision.min_pixels, "max_pixels": vision.max_pixels}
    height, width = module.smart_resize(size[1], size[0], factor=2 * patch, **limits)
    assert tokens(vision, size) == (height // patch) * (width // patch) // 4


@pytest.mark.models
@pytest.mark.parametrize("size", SIZES)
def test_llava_next_counts_as_its_processor_does(size):
    """The class token is dropped (vision_feature_select_strategy default)."""
    best = lifted("../image_processing_utils.py", "select_best_resolution")
    module = lifted(
        "llava_next/processing_llava_next.py",
        "_get_number_of_features",
        "_get_unpadded_features",
        select_best_resolution=best.select_best_resolution,
    )
    vision = read_vision(config("llava_next", {"image_size": 336, "patch_size": 14}))
    images = SimpleNamespace(image_grid_pinpoints=[list(pair) for pair in vision.canvases])
    fake = SimpleNamespace(image_processor=images, patch_size=14, num_additional_image_tokens=1)
    fake._get_unpadded_features = lambda *args: module._get_unpadded_features(fake, *args)
    found = module._get_number_of_features(fake, size[1], size[0], 336, 336) - 1
    assert tokens(vision, size) == found


@pytest.mark.models
@pytest.mark.parametrize("size", SIZES)
def test_internvl_counts_as_its_processor_does(size):
    """256 tokens a tile of 448 pixels, and two marks."""
    path = "got_ocr2/image_processing_pil_got_ocr2.py"
    module = lifted(path, "get_optimal_tiled_canvas", "get_all_supported_aspect_ratios")
    tower = {"image_size": [448, 448], "patch_size": [14, 14]}
    vision = read_vision(config("internvl", tower, downsample_ratio=0.5))
    columns, rows = module.get_optimal_tiled_canvas((size[1], size[0]), (448, 448), 1, 12)
    tiles = columns * rows + (columns * rows > 1)
    assert tokens(vision, size) == 256 * tiles + 2


@pytest.mark.models
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("model_type", "side", "patch", "merge"),
    [
        ("llava", 1024, 16, 1),
        ("mistral3", 1540, 14, 2),
    ],
)
def test_pixtral_counts_as_its_processor_does(size, model_type, side, patch, merge):
    """A token ends each row."""
    import numpy as np

    module = lifted(
        "pixtral/image_processing_pil_pixtral.py",
        "get_resize_output_image_size",
        "_num_image_tokens",
        get_image_size=lambda array, _: array.shape[:2],
    )
    tower = {"model_type": "pixtral", "image_size": side, "patch_size": patch}
    vision = read_vision(config(model_type, tower, spatial_merge_size=merge))
    unit = patch * merge
    height, width = module.get_resize_output_image_size(
        np.zeros((size[1], size[0], 3)), size=(side, side), patch_size=(unit, unit)
    )
    assert tokens(vision, size) == (width // unit + 1) * (height // unit)


@pytest.mark.models
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("model_type", "side", "patch", "scale"),
    [
        ("idefics3", 364, 14, 2),
        ("smolvlm", 512, 16, 4),
    ],
)
def test_idefics_counts_as_its_processor_does(size, model_type, side, patch, scale):
    """Squares, marks around each, a token a row, and the whole picture."""
    module = lifted(
        "idefics3/image_processing_pil_idefics3.py",
        "get_number_of_image_patches",
        "_resize_output_size_rescale_to_max_len",
        "_resize_output_size_scale_below_upper_bound",
        MAX_IMAGE_SIZE=4096,
    )
    tower = {"image_size": side, "patch_size": patch}
    vision = read_vision(config(model_type, tower, scale_factor=scale))
    fake = SimpleNamespace(
        do_image_splitting=True,
        max_image_size={"longest_edge": side},
        size={"longest_edge": 4 * side},
    )
    _, rows, columns = module.get_number_of_image_patches(fake, size[1], size[0])
    each = (side // patch) ** 2 // scale**2
    assert tokens(vision, size) == each + 3 + rows * ((each + 2) * columns + 1)


@pytest.mark.models
@pytest.mark.parametrize("size", SIZES)
def test_llama4_counts_as_its_processor_does(size):
    """144 tokens a tile of 336 pixels, marks between tiles, and the whole picture."""
    from collections import defaultdict

    import torch

    path = "llama4/image_processing_llama4.py"
    names = ("find_supported_resolutions", "get_factors", "get_best_fit")
    module = lifted(path, *names, torch=torch, defaultdict=defaultdict)
    prompt = lifted("llama4/processing_llama4.py", "_prompt_split_image")
    tower = {"image_size": 336, "patch_size": 14, "pixel_shuffle_ratio": 0.5}
    vision = read_vision(config("llama4", tower))
    square = SimpleNamespace(height=336, width=336)
    canvases = torch.tensor(module.find_supported_resolutions(16, square))
    best = module.get_best_fit((size[1], size[0]), canvases)
    ratio = (int(best[0]) // 336, int(best[1]) // 336)
    text = prompt._prompt_split_image(SimpleNamespace(), ratio, 144)
    assert tokens(vision, size) == text.count("<|")


def test_published_counts():
    """What the model cards say."""
    clip = {"image_size": 336, "patch_size": 14}
    assert tokens(read_vision(config("llava", clip)), (640, 480)) == 576
    gemma = read_vision(config("gemma3", {"image_size": 896, "patch_size": 14}))
    assert (tokens(gemma, (5, 5)), picture(gemma, 5, 5).patches) == (256, 4096)
    small = {"image_size": 224, "patch_size": 14}
    assert tokens(read_vision(config("paligemma", small)), (9, 9)) == 256
    mllama = read_vision(config("mllama", {"image_size": 560, "patch_size": 14}))
    assert picture(mllama, 10, 10).patches == 4 * 1601


def test_a_text_model_sees_nothing():
    """And neither does a family whose rule nobody wrote."""
    assert read_vision({"model_type": "llama"}) is None
    assert read_vision(config("unheard_of", {})) is None


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (10**9, 1)])
def test_sizes_that_are_none_are_refused(size):
    """Before anything is computed."""
    vision = read_vision(config("llava", {"image_size": 336, "patch_size": 14}))
    with pytest.raises(UsageError, match="is none"):
        picture(vision, *size)


@pytest.mark.models
@pytest.mark.parametrize("kind", ["clip", "siglip", "qwen2_5_vl"])
def test_a_real_tower_peaks_where_the_rule_says(kind):
    """A small one on the CPU, by torch's own allocator events."""
    import torch

    from memplan.measure.exact import MemoryTrace

    model, inputs, vision, patches = tower(kind)
    trace = MemoryTrace(torch)
    with torch.no_grad():
        model(**inputs)
        trace.start()
        model(**inputs)
        peak = trace.stop()["cpu.peak_allocated"]
    predicted = tower_bytes(vision, patches, element_bytes=4)
    assert math.isclose(predicted, peak, rel_tol=0.26), predicted / peak


def tower(kind):
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4}
    if kind == "qwen2_5_vl":
        module = transformers.models.qwen2_5_vl
        made = module.configuration_qwen2_5_vl.Qwen2_5_VLVisionConfig(
            hidden_size=256, intermediate_size=1024, depth=4, num_heads=4, out_hidden_size=256
        )
        model = module.modeling_qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel(made)
        pixels = torch.randn(32 * 32, 3 * 2 * 14 * 14)
        inputs = {"hidden_states": pixels, "grid_thw": torch.tensor([[1, 32, 32]])}
        parts = {"patch_size": 14, "spatial_merge_size": 2, "depth": 4, **sizes}
        return model.eval(), inputs, read_vision(config("qwen2_5_vl", parts)), 1024
    name = {"clip": "CLIPVision", "siglip": "SiglipVision"}[kind]
    shape = {"image_size": 448, "patch_size": 14, "num_attention_heads": 4, **sizes}
    made = getattr(transformers, f"{name}Config")(**shape)
    model = getattr(transformers, f"{name}Model")(made)
    vision = read_vision(config("gemma3", shape))
    return model.eval(), {"pixel_values": torch.randn(1, 3, 448, 448)}, vision, 1024


def plan_of(config, **options):
    """Return the activations of a model that sees."""
    from memplan.footprint.defaults import complete
    from memplan.footprint.estimate import estimate
    from memplan.models.resolve import resolve

    spec = resolve(str(config))
    lines = estimate(spec, complete({"context": 2048, **options}, spec)).lines
    return {line.part: line for line in lines if line.part in ("activations", "kv_cache")}


@pytest.fixture
def seeing(tmp_path):
    """A small Gemma-3 with a large tower."""
    from checkpoints import TINY, write_config

    text = {**TINY, "model_type": "gemma3_text", "head_dim": 16, "sliding_window": 32}
    tower = {
        "model_type": "siglip_vision_model",
        "hidden_size": 256,
        "intermediate_size": 2048,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 896,
        "patch_size": 14,
    }
    parts = {"text_config": text, "vision_config": tower, "mm_tokens_per_image": 256}
    model = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]}
    return write_config(tmp_path / "vlm", {**model, **parts, "dtype": "bfloat16"})


@pytest.mark.models
def test_a_prompt_without_pictures_is_what_it_was(seeing):
    """The tower's weights are there, and its activations are not."""
    assert "picture" not in plan_of(seeing)["activations"].source


@pytest.mark.models
def test_the_larger_peak_counts_in_transformers_and_the_sum_elsewhere(seeing):
    """The tower runs before the text; engines that keep buffers keep both."""
    plain, seen = plan_of(seeing), plan_of(seeing, images=4)
    tower = 4 * 4096 * (4 * 256 + 3 * 2048) * 2
    assert seen["activations"].bytes == tower > plain["activations"].bytes
    assert seen["activations"].source.startswith("vision tower, 4 pictures of 256 tokens")
    assert seen["kv_cache"] == plain["kv_cache"]
    engine = {"runtime": "vllm"}
    both = plan_of(seeing, images=4, **engine)["activations"].bytes
    assert both == plan_of(seeing, **engine)["activations"].bytes + tower


@pytest.mark.models
def test_pictures_that_do_not_fit_into_the_context_are_refused(seeing):
    """With the context that they need."""
    with pytest.raises(UsageError, match="9 pictures are 2304 tokens") as caught:
        plan_of(seeing, images=9)
    assert "--context 3328" in caught.value.hint


@pytest.mark.models
@pytest.mark.parametrize("text", ["big", "0x5", "5", "-3x4", "9999999x1"])
def test_a_size_that_is_none_is_refused(seeing, text):
    """With an example."""
    with pytest.raises(UsageError) as caught:
        plan_of(seeing, images=1, image_size=text)
    assert "--image-size 1024x768" in caught.value.hint
