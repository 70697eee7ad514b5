"""What the tower that sees images holds while it runs, in bytes, and what remains of it.

Symbols: N images of all sequences, T tokens of one image in the tower, h its hidden size, i its
inner size, b bytes of one element, H the text model's hidden size.
"""

from __future__ import annotations

from dataclasses import replace

from memplan.errors import UnsupportedModelError
from memplan.footprint.lines import band_line
from memplan.footprint.vision import (
    ImageCount,
    cross_tokens,
    image_count,
    largest_count,
    parse_size,
)
from memplan.types import Line, ModelSpec, Vision, Workload
from memplan.units import DTYPE_BITS, MIB

__all__ = [
    "IMAGE_LAYER",
    "beside_tower",
    "held_bytes",
    "image_tokens",
    "max_with_tower",
    "tower_bytes",
    "with_images",
]

IMAGE_LAYER = "image_attention"
"""Kind of a layer that caches the keys and values of images alone."""

_SCORES = 8
_CHANNELS = 3
_FLOAT = 4


def tower_bytes(
    vision: Vision,
    count: ImageCount,
    *,
    images: int,
    element_bytes: int,
    attention: str = "sdpa",
) -> int:
    """Return the peak of a tower that sees all images at once: its widest layer's widest moment.

    N·T·b times the larger of the feed-forward part (4h + 2i; 4h + 3i for quick_gelu; 4h + 3i or
    6h + 3i for a gated one) and attention (8h; 10h with a 16-bit rotation; rotated in float32
    6h + 24h/b, less 2h where nothing needs a copy), and h for each hidden state that is kept.
    Pixtral adds one mask over all images, (N·T)²·b, and Mllama one of each image, N·T²·b; eager
    attention its scores and their softmax.

    Source: peaks of real towers of transformers 5.23 by torch's profiler. CLIP, SigLIP, Idefics3
    and Mllama are met within 1 %, Qwen2-VL and Qwen2.5-VL within 4 %, Pixtral, InternVL, Qwen3-VL
    and Llama-4 within 15 %.
    """
    tokens = images * count.patches
    inner, outer = _moments(vision, element_bytes)
    layer = tokens * (max(inner, outer) + vision.kept * vision.hidden * element_bytes)
    scores = _score_elements(vision, count, images)
    if attention == "eager":
        layer += vision.heads * scores * (element_bytes + _SCORES)
    if vision.style == "rotary" and attention != "flash":
        layer += tokens * tokens * element_bytes
    if vision.rule == "cross":
        layer += scores * element_bytes
    return layer


def _moments(vision: Vision, element: int) -> tuple[int, int]:
    """Return the bytes of one token inside the feed-forward part and inside attention."""
    hidden, wide = vision.hidden, vision.intermediate
    rotated = (6 * element + 24 - (8 if element == _FLOAT else 0)) * hidden
    if vision.style == "rotary":
        return (6 * hidden + 3 * wide) * element, 10 * hidden * element
    if vision.style == "gated32":
        return (4 * hidden + 3 * wide) * element, rotated
    copies = 3 if vision.style.startswith("quick") else 2
    outer = rotated if vision.style.endswith("32") else 8 * hidden * element
    return (4 * hidden + copies * wide) * element, outer


def _score_elements(vision: Vision, count: ImageCount, images: int) -> int:
    """Return the pairs of tokens that look at one another at one instant."""
    if vision.rule == "pixels":
        return count.longest**2  # one image after the other
    if vision.rule == "longest":
        return (images * count.patches) ** 2
    return images * count.patches * count.longest


def held_bytes(
    vision: Vision, count: ImageCount, *, images: int, hidden: int, element_bytes: int
) -> int:
    """Return what stays while the text model runs: pixels in float32 and the images' features.

    N·T·patch²·3·4 (Qwen-VL: twice, for two frames), and N·tokens·H·b. Source: `generate` passes
    pixel_values on through the first forward pass of transformers 5.
    """
    frames = 2 if vision.rule == "pixels" else 1
    pixels = count.patches * vision.patch**2 * _CHANNELS * _FLOAT * frames
    tokens = count.patches if vision.rule == "cross" else count.tokens
    return images * (pixels + tokens * hidden * element_bytes)


def image_tokens(vision: Vision, workload: Workload) -> int:
    """Return the tokens that the images of one sequence take of its context."""
    width, height = parse_size(workload.image_size, vision)
    return (workload.images or 0) * image_count(vision, width, height).tokens


def with_images(spec: ModelSpec, workload: Workload) -> ModelSpec:
    """Return the model as it runs with images: layers that look at them cache them.

    Mllama: each of its cross-attention layers keeps the keys and values of all tiles of all
    images of a sequence; without images transformers skips those layers.

    Raises UnsupportedModelError for an engine without a rule.
    """
    images = workload.images or 0
    if not images or spec.vision is None or spec.vision.rule != "cross":
        return spec
    if workload.runtime != "transformers":
        raise UnsupportedModelError(
            f"memplan has no rule for images of {spec.name} in {workload.runtime}",
            hint="use --runtime transformers, or leave --images out",
        )
    kept = cross_tokens(spec.vision, images)
    layers = tuple(
        replace(layer, kind=IMAGE_LAYER, cross_tokens=kept)
        if layer.kind == "none" and layer.kv_heads
        else layer
        for layer in spec.layers
    )
    return replace(spec, layers=layers)


def max_with_tower(spec: ModelSpec, workload: Workload, text: Line) -> Line:
    """Return the larger of the tower's peak and the text pass beside what is held of the images.

    The tower runs before the first token's text pass, so the two are never there together. Band
    of the tower: 0.7 to 1.5 times, and 128 MiB; older transformers kept every layer's hidden
    state for LLaVA's kind (5.23 keeps the chosen one), which is in the upper end.
    """
    if not workload.images or spec.vision is None:
        return text
    vision = spec.vision
    images = workload.batch * workload.images
    count = image_count(vision, *parse_size(workload.image_size, vision))
    element = DTYPE_BITS[workload.dtype] // 8
    tower = tower_bytes(
        vision, count, images=images, element_bytes=element, attention=workload.attention
    )
    held = held_bytes(vision, count, images=images, hidden=spec.hidden, element_bytes=element)
    all_states = images * count.patches * vision.hidden * vision.layers * element
    highest = int(1.5 * tower) + (all_states if vision.kept else 0) + 128 * MIB
    seen = f"{workload.images} image(s) of {count.tokens} tokens"
    if tower > text.bytes:
        source = f"tower that sees {images} x {count.patches} patches; {seen}"
    else:
        source = f"{text.source}; {seen}, the tower needs less"
    return replace(
        text,
        bytes=max(tower, text.bytes) + held,
        low_bytes=max(int(0.7 * tower), text.low_bytes),
        high_bytes=max(highest, text.high_bytes) + 2 * held,
        source=source,
    )


def beside_tower(spec: ModelSpec, workload: Workload, text: Line, *, batched: int) -> Line:
    """Return the text's peak and the tower's together, as vLLM's profile run keeps both.

    vLLM profiles with the largest image that the family takes, as many as fill
    max_num_batched_tokens (at least one); their features stay in the encoder cache. Band: 0.4 to 2
    times. Source: vLLM 0.33, v1/worker/gpu_model_runner.py, profile_run; not measured here.

    Args:
        spec: the model.
        workload: with images.
        text: the line without them.
        batched: max_num_batched_tokens.
    """
    if not workload.images or spec.vision is None:
        return text
    vision = spec.vision
    count = largest_count(vision)
    images = max(batched // max(count.tokens, 1), 1)
    element = DTYPE_BITS.get(workload.dtype, 16) // 8
    tower = tower_bytes(vision, count, images=images, element_bytes=element, attention="flash")
    held = held_bytes(vision, count, images=images, hidden=spec.hidden, element_bytes=element)
    size = tower + held
    return band_line(
        "activations",
        text.bytes + size,
        low=text.low_bytes + int(0.4 * size),
        high=text.high_bytes + 2 * size + 64 * MIB,
        source=f"{text.source}, and {images} image(s) of {count.tokens} tokens, its largest",
    )
