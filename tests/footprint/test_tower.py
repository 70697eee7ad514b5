"""Towers hold what they measure; images change a plan where they should and nowhere else."""

from __future__ import annotations

import dataclasses
import json

import pytest
from checkpoints import LLAVA

from memplan.errors import UnsupportedModelError, UsageError
from memplan.footprint.defaults import complete
from memplan.footprint.estimate import estimate
from memplan.footprint.tower import tower_bytes
from memplan.footprint.vision import ImageCount, image_count
from memplan.measure.exact import MemoryTrace
from memplan.models.resolve import resolve
from memplan.models.vision import read_vision
from memplan.types import Vision

BYTES = {"float32": 4, "bfloat16": 2}
VISION = Vision(rule="square", patch=14, hidden=256, intermediate=1024, heads=4, layers=2)


def peak(call):
    """Return what a call holds at its peak beyond what was there, bytes."""
    import torch

    with torch.no_grad():
        call()
        trace = MemoryTrace(torch)
        trace.start()
        call()
        return trace.stop()["cpu.peak_allocated"]


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize("inner", [256, 1024])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_real_tower_holds_what_the_formula_says(kind, inner, dtype):
    """Four images in a CLIP or SigLIP tower, one with a wide and one with a narrow inner part."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig
    from transformers import SiglipVisionModel as Siglip

    classes = {"clip": (CLIPVisionModel, CLIPVisionConfig), "siglip": (Siglip, SiglipVisionConfig)}
    model, config = classes[kind]
    tower = model(
        config(
            hidden_size=256,
            intermediate_size=inner,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=224,
            patch_size=14,
        )
    )
    tower = tower.to(getattr(torch, dtype)).eval()
    pixels = torch.zeros(4, 3, 224, 224, dtype=getattr(torch, dtype))
    tokens = 256 + (kind == "clip")
    style = "quick" if kind == "clip" else "plain"
    vision = dataclasses.replace(VISION, intermediate=inner, style=style)
    count = ImageCount(tokens=tokens, patches=tokens, longest=tokens)
    planned = tower_bytes(vision, count, images=4, element_bytes=BYTES[dtype])
    assert peak(lambda: tower(pixels)) == pytest.approx(planned, rel=0.03)


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize("inner", [256, 1024, 2048])
def test_a_real_qwen_tower_holds_what_the_formula_says(inner, dtype):
    """A tower whose queries and keys are rotated in float32, with windows."""
    import torch
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as code
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig

    config = Qwen2_5_VLVisionConfig(
        hidden_size=256,
        intermediate_size=inner,
        depth=2,
        num_heads=4,
        out_hidden_size=512,
        fullatt_block_indexes=[1],
    )
    tower = code.Qwen2_5_VisionTransformerPretrainedModel(config)
    tower = tower.to(getattr(torch, dtype)).eval()
    side = 32
    pixels = torch.zeros(side * side, 3 * 2 * 14 * 14, dtype=getattr(torch, dtype))
    grid = torch.tensor([[1, side, side]])
    vision = dataclasses.replace(
        VISION, rule="pixels", merge=2, intermediate=inner, style="gated32"
    )
    count = ImageCount(tokens=side**2 // 4, patches=side**2, longest=side**2)
    planned = tower_bytes(vision, count, images=1, element_bytes=BYTES[dtype])
    assert peak(lambda: tower(pixels, grid_thw=grid)) == pytest.approx(planned, rel=0.06)


def towers(dtype):
    """Yield a family's name, its config, and a call that runs a real tower of it."""
    import torch
    from transformers.models.idefics3 import configuration_idefics3, modeling_idefics3
    from transformers.models.internvl import configuration_internvl, modeling_internvl
    from transformers.models.llama4 import configuration_llama4, modeling_llama4
    from transformers.models.mllama import configuration_mllama, modeling_mllama
    from transformers.models.pixtral import configuration_pixtral, modeling_pixtral
    from transformers.models.qwen2_vl import configuration_qwen2_vl, modeling_qwen2_vl
    from transformers.models.qwen3_vl import configuration_qwen3_vl, modeling_qwen3_vl

    sizes = {"hidden_size": 256, "intermediate_size": 1024}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4}
    plain = {**sizes, **layers, "image_size": 168, "patch_size": 14}
    deep = {"depth": 2, "num_heads": 4}

    def pixels(*shape):
        return torch.zeros(*shape, dtype=dtype)

    def made(model, config, **options):
        own = config(**options)
        return model(own).to(dtype).eval(), own.to_dict()

    grid = torch.tensor([[1, 32, 32]])
    code = modeling_qwen2_vl.Qwen2VisionTransformerPretrainedModel
    options = {"embed_dim": 256, "hidden_size": 512, "mlp_ratio": 4, **deep}
    qwen, config = made(code, configuration_qwen2_vl.Qwen2VLVisionConfig, **options)
    yield "qwen2_vl", config, (448, 448), 1, lambda: qwen(pixels(1024, 1176), grid_thw=grid)
    code = modeling_qwen3_vl.Qwen3VLVisionModel
    options = {**sizes, **deep, "out_hidden_size": 512, "deepstack_visual_indexes": [1]}
    newer, config = made(code, configuration_qwen3_vl.Qwen3VLVisionConfig, **options)
    yield "qwen3_vl", config, (512, 512), 1, lambda: newer(pixels(1024, 1536), grid_thw=grid)
    code = modeling_pixtral.PixtralVisionModel
    options = {**sizes, **layers, "head_dim": 64, "image_size": 512, "patch_size": 16}
    pixtral, config = made(code, configuration_pixtral.PixtralVisionConfig, **options)
    yield "mistral3", config, (384, 512), 2, lambda: pixtral(pixels(2, 3, 512, 384))
    code = modeling_internvl.InternVLVisionModel
    options = {**plain, "image_size": [168, 168]}
    intern, config = made(code, configuration_internvl.InternVLVisionConfig, **options)
    yield "internvl", config, (168, 168), 3, lambda: intern(pixels(3, 3, 168, 168))
    code = modeling_idefics3.Idefics3VisionTransformer
    idefics, config = made(code, configuration_idefics3.Idefics3VisionConfig, **plain)
    yield "idefics3", config, (672, 336), 1, lambda: idefics(pixels(9, 3, 168, 168))
    code = modeling_llama4.Llama4VisionModel
    wide = {"vision_output_dim": 1024, "projector_input_dim": 1024, "projector_output_dim": 1024}
    llama, config = made(code, configuration_llama4.Llama4VisionConfig, **plain, **wide)
    yield "llama4", config, (336, 168), 1, lambda: llama(pixels(3, 3, 168, 168))
    code = modeling_mllama.MllamaVisionModel
    del plain["num_attention_heads"]
    global_ = {"num_global_layers": 2, "attention_heads": 4, "vision_output_dim": 768}
    options = {**plain, **global_, "intermediate_layers_indices": [0, 1]}
    mllama, config = made(code, configuration_mllama.MllamaVisionConfig, **options)
    shape = {"aspect_ratio_ids": torch.tensor([[6]]), "aspect_ratio_mask": torch.ones(1, 1, 4)}
    yield "mllama", config, (336, 336), 1, lambda: mllama(pixels(1, 1, 4, 3, 168, 168), **shape)


@pytest.mark.filterwarnings("ignore:Casting complex values")
@pytest.mark.parametrize("dtype", BYTES)
def test_every_familys_tower_is_within_a_fifth(dtype):
    """From the config as the library writes it to the peak that a real tower reaches."""
    import torch

    for family, config, size, images, call in towers(getattr(torch, dtype)):
        vision = read_vision({"model_type": family, "vision_config": config})
        count = image_count(vision, *size)
        planned = tower_bytes(vision, count, images=images, element_bytes=BYTES[dtype])
        made = peak(call)  # pixels are made in the call, in the tower's dtype
        frames = 2 if vision.rule == "pixels" else 1
        given = images * count.patches * vision.patch**2 * 3 * frames * BYTES[dtype]
        assert made - given == pytest.approx(planned, rel=0.2), (family, planned / (made - given))


@pytest.fixture
def llava(tmp_path):
    """Return a tiny LLaVA, built from its config."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAVA))
    return resolve(str(path))


def parts(spec, **options):
    """Return the lines of a plan by part."""
    workload = complete(options, spec)
    return {line.part: line for line in estimate(spec, workload).lines}


def test_no_images_change_nothing(llava):
    """--images 0 is a text-only request, line for line."""
    blind = dataclasses.replace(llava, vision=None)
    for engine in ("transformers", "vllm"):
        text = parts(blind, context=256, runtime=engine)
        assert parts(llava, context=256, runtime=engine) == text
        assert parts(llava, context=256, runtime=engine, images=0) == text


def test_images_are_part_of_the_context(llava):
    """The cache stays; the tower's peak counts where it is the larger one."""
    text = parts(llava, context=128)
    few, many = parts(llava, context=128, images=1), parts(llava, context=128, images=8)
    assert few["kv_cache"] == many["kv_cache"] == text["kv_cache"]
    assert few["activations"].bytes > text["activations"].bytes
    assert many["activations"].bytes > few["activations"].bytes
    assert "tower" in many["activations"].source


def test_vllm_adds_the_tower_to_the_text(llava):
    """Its profile run keeps both, whatever the number of images."""
    text = parts(llava, context=128, runtime="vllm")["activations"]
    one = parts(llava, context=128, runtime="vllm", images=1)["activations"]
    two = parts(llava, context=128, runtime="vllm", images=2)["activations"]
    assert one.bytes > text.bytes
    assert one.bytes == two.bytes


def test_llamacpp_says_that_the_tower_is_a_file_of_its_own(llava):
    """The mmproj file is loaded beside the model."""
    line = parts(llava, context=128, runtime="llama.cpp", images=1, kv_dtype="f16")["activations"]
    assert "mmproj" in line.source


def test_images_that_do_not_fit_are_refused_with_a_context_that_takes_them(llava):
    """16 tokens each: nine do not fit in 128."""
    with pytest.raises(UsageError, match=r"9 image.s. of 56x56 take 144 tokens") as caught:
        complete({"images": 9, "context": 128}, llava)
    assert "--context 656" in str(caught.value.hint)


def test_a_model_that_sees_nothing_takes_no_images(llava):
    """Nor is there a size without an image."""
    blind = dataclasses.replace(llava, vision=None)
    with pytest.raises(UsageError, match="knows no tower"):
        complete({"images": 1}, blind)
    with pytest.raises(UsageError, match="no image"):
        complete({"image_size": "64x64"}, llava)
    with pytest.raises(UsageError, match="belongs to --task infer"):
        complete({"images": 1, "task": "train"}, llava)


def test_the_whole_model_holds_what_is_planned(llava):
    """A real LLaVA's prompt with images: peak beyond weights and cache, within the band."""
    import torch
    import transformers

    config = transformers.LlavaConfig.from_dict(LLAVA)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    images, context = 6, 128
    ids = torch.ones(1, context, dtype=torch.long)
    ids[0, : 16 * images] = 127
    pixels = torch.zeros(images, 3, 56, 56)
    found = parts(llava, context=context, images=images, dtype="float32")
    line = found["activations"]
    measured = peak(lambda: model(input_ids=ids, pixel_values=pixels, logits_to_keep=1))
    beyond = measured - found["kv_cache"].bytes
    assert line.low_bytes <= beyond <= line.high_bytes
    held = pixels.numel() * 4
    assert beyond + held <= 1.3 * line.bytes


MLLAMA = {
    "model_type": "mllama",
    "architectures": ["MllamaForConditionalGeneration"],
    "vision_config": {
        "model_type": "mllama_vision_model",
        "hidden_size": 64,
        "intermediate_size": 128,
        "attention_heads": 4,
        "num_hidden_layers": 3,
        "num_global_layers": 1,
        "patch_size": 14,
        "image_size": 56,
        "max_num_tiles": 4,
        "intermediate_layers_indices": [0, 1],
        "vision_output_dim": 192,
    },
    "text_config": {
        "model_type": "mllama_text_model",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 4,
        "cross_attention_layers": [1, 3],
        "vocab_size": 128,
        "pad_token_id": 0,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "image_token_index": 127,
}


@pytest.fixture
def mllama(tmp_path):
    """Return a tiny Mllama, built from its config."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(MLLAMA))
    return resolve(str(path))


@pytest.mark.parametrize("images", [1, 3])
def test_mllama_keeps_the_keys_of_every_tile_of_every_image(mllama, images):
    """Exact against the cache of a real model; none of it without images."""
    import torch
    import transformers

    config = transformers.MllamaConfig.from_dict(MLLAMA)
    model = transformers.MllamaForConditionalGeneration(config).eval()
    length = 24
    with torch.no_grad():
        answer = model(
            input_ids=torch.ones(2, length, dtype=torch.long),
            pixel_values=torch.zeros(2, images, 4, 3, 56, 56),
            aspect_ratio_ids=torch.ones(2, images, dtype=torch.long),
            aspect_ratio_mask=torch.ones(2, images, 4, dtype=torch.long),
            cross_attention_mask=torch.ones(2, length, images, 4, dtype=torch.long),
            use_cache=True,
        )
    kept = sum(
        tensor.numel() * tensor.element_size()
        for layer in answer.past_key_values.layers
        for tensor in (layer.keys, layer.values)
    )
    options = {"context": length, "batch": 2, "dtype": "float32"}
    assert parts(mllama, images=images, **options)["kv_cache"].bytes == kept
    cross = 2 * 2 * images * 4 * 17 * 2 * 32 * 4
    assert kept - parts(mllama, **options)["kv_cache"].bytes == cross


def test_mllama_has_a_rule_for_transformers_alone(mllama):
    """The family is gone from vLLM."""
    with pytest.raises(UnsupportedModelError, match="no rule for images"):
        parts(mllama, images=1, runtime="vllm", context=64)
