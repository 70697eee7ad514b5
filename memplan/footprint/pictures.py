"""Tokens that a picture becomes, and what its tower holds meanwhile.

Rules of the processors of transformers 5.23, each held against the real one
(tests/footprint/test_pictures.py). A picture's tokens lie in the text model's cache like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from memplan.errors import UsageError
from memplan.types import Line, ModelSpec, Vision, Workload
from memplan.units import DTYPE_BITS

__all__ = ["Picture", "picture", "tower_bytes", "with_pictures"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What becomes of one picture."""

    tokens: int
    """In the text model's sequence, with the tokens that mark rows, tiles and ends."""
    patches: int
    """Positions that the tower computes, all tiles together."""


def picture(vision: Vision, width: int, height: int) -> Picture:
    """Return what a picture of width x height pixels becomes.

    Raises UsageError for a size that the model's processor refuses.
    """
    if not 1 <= width <= 2**16 or not 1 <= height <= 2**16:
        raise UsageError(
            f"a picture of {width} x {height} pixels is none", hint="such as --image-size 1024x768"
        )
    return _RULES[vision.kind](vision, width, height)


def tower_bytes(vision: Vision, patches: int, *, element_bytes: int) -> int:
    """Return what the tower holds at its peak for so many patches, in bytes.

    Inside the feed-forward part of a layer, without gradients: residual, normed and two more
    widths, and the inner width three times (gate, up and product, or what an activation in several
    steps makes): T·(4h + 3f). Where the hidden states of all layers are kept for the projector
    (LLaVA's vision_feature_layer), L·T·h on top. Small real towers, by the allocator's events:
    CLIP and Qwen2.5-VL within 4 %, SigLIP 33 % less (its activation is one step).
    """
    kept = vision.layers * vision.hidden if vision.keeps_layers else 0
    inside = 4 * vision.hidden + 3 * vision.intermediate
    return patches * (inside + kept) * element_bytes


def with_pictures(spec: ModelSpec, workload: Workload, text: Line) -> Line:
    """Return the activations of a prompt with pictures.

    transformers runs the tower before the text, so the larger peak counts; engines that keep a
    buffer for each add them up. All pictures of a batch go through the tower at once. Band of the
    tower: 0.6 to 1.6 times.

    Raises UsageError when the pictures' tokens do not fit into the context.
    """
    if workload.images is None or spec.vision is None:
        return text
    width, _, height = (workload.image_size or "").partition("x")
    one = picture(spec.vision, int(width), int(height))
    tokens = workload.images * one.tokens
    if tokens > (workload.context or 0):
        raise UsageError(
            f"{workload.images} pictures are {tokens} tokens, and the context is "
            f"{workload.context}",
            hint=f"--context {tokens + 1024}, fewer --images or a smaller --image-size",
        )
    patches = workload.batch * workload.images * one.patches
    element = DTYPE_BITS[workload.dtype] // 8 if workload.dtype in DTYPE_BITS else 2
    size = tower_bytes(spec.vision, patches, element_bytes=element)
    note = f"{workload.images} pictures of {one.tokens} tokens, {one.patches} patches each"
    ends = (int(0.6 * size), int(1.6 * size))
    if workload.runtime != "transformers":
        total = text.bytes + size
        low, high = text.low_bytes + ends[0], text.high_bytes + ends[1]
        return replace(
            text, bytes=total, low_bytes=low, high_bytes=high, source=f"{text.source}; {note}"
        )
    return replace(
        text,
        bytes=max(text.bytes, size),
        low_bytes=max(text.low_bytes, ends[0]),
        high_bytes=max(text.high_bytes, ends[1]),
        source=f"vision tower, {note}" if size > text.bytes else f"{text.source}; {note}",
    )


def _tile_patches(vision: Vision) -> int:
    return (vision.side // vision.patch) ** 2 + vision.extra_patches


def _fixed(vision: Vision, width: int, height: int) -> Picture:
    """One square, whatever the picture: LLaVA-1.5, Gemma-3, PaliGemma."""
    del width, height
    return Picture(tokens=vision.tile_tokens, patches=_tile_patches(vision))


def _anyres(vision: Vision, width: int, height: int) -> Picture:
    """LLaVA-NeXT: the best of some canvases, its padding cut off, a token a row, and the whole."""
    side = vision.side // vision.patch
    rows, columns = _best_canvas(vision.canvases, width, height)
    tiles = (rows // vision.side) * (columns // vision.side)
    grid_rows, grid_columns = side * (rows // vision.side), side * (columns // vision.side)
    if width / height > grid_columns / grid_rows:
        new = int(round(height * (grid_columns / width), 7))
        grid_rows -= (grid_rows - new) // 2 * 2
    else:
        new = int(round(width * (grid_rows / height), 7))
        grid_columns -= (grid_columns - new) // 2 * 2
    tokens = grid_rows * grid_columns + grid_rows + side * side
    return Picture(tokens=tokens, patches=(tiles + 1) * _tile_patches(vision))


def _best_canvas(canvases: Sequence[tuple[int, int]], width: int, height: int) -> tuple[int, int]:
    """Return (rows, columns) in pixels that keep most of a picture and waste least."""

    def worth(canvas: tuple[int, int]) -> tuple[int, int]:
        scale = min(canvas[1] / width, canvas[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - canvas[0] * canvas[1]

    return max(canvases, key=worth)


def _resized(vision: Vision, width: int, height: int) -> Picture:
    """Qwen-VL: both sides rounded to patch times merge, the area kept between two limits."""
    factor = vision.patch * vision.merge
    if max(width, height) > 200 * min(width, height):
        raise UsageError(
            f"a picture of {width} x {height} is too narrow: at most 200 to 1",
            hint="such as --image-size 1024x768",
        )
    rows, columns = (round(side / factor) * factor for side in (height, width))
    if rows * columns > vision.max_pixels:
        shrink = math.sqrt(height * width / vision.max_pixels)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif rows * columns < vision.min_pixels:
        grow = math.sqrt(vision.min_pixels / (height * width))
        rows = math.ceil(height * grow / factor) * factor
        columns = math.ceil(width * grow / factor) * factor
    patches = (rows // vision.patch) * (columns // vision.patch)
    return Picture(tokens=patches // vision.merge**2, patches=patches)


def _tiled(vision: Vision, width: int, height: int) -> Picture:
    """InternVL: the grid of up to 12 tiles nearest in shape, a thumbnail, and two marks."""
    grids = [
        (columns, rows)
        for columns in range(1, vision.max_tiles + 1)
        for rows in range(1, vision.max_tiles + 1)
        if columns * rows <= vision.max_tiles
    ]
    grids.sort(key=lambda grid: grid[0] * grid[1])
    best, least = (1, 1), math.inf
    for grid in grids:
        apart = abs(width / height - grid[0] / grid[1])
        larger = width * height > 0.5 * vision.side**2 * grid[0] * grid[1]
        if apart < least or (apart == least and larger):
            best, least = grid, apart
    tiles = best[0] * best[1]
    tiles += 1 if tiles > 1 else 0
    return Picture(tokens=tiles * vision.tile_tokens + 2, patches=tiles * _tile_patches(vision))


def _rows(vision: Vision, width: int, height: int) -> Picture:
    """Pixtral and Mistral-3: shrunk to the longest edge; a token ends each row."""
    unit = vision.patch * vision.merge
    ratio = max(width / vision.side, height / vision.side)
    if ratio > 1:
        width, height = math.floor(width / ratio), math.floor(height / ratio)
    columns, rows = -(-width // unit), -(-height // unit)
    patches = columns * rows * vision.merge**2
    return Picture(tokens=(columns + 1) * rows, patches=patches)


def _split(vision: Vision, width: int, height: int) -> Picture:
    """Idefics3 and SmolVLM: enlarged to the longest edge, cut into squares, and the whole."""
    longest = vision.max_tiles * vision.side
    if width >= height:
        width, height = longest, _even(int(longest / (width / height)))
    else:
        width, height = _even(int(longest * (width / height))), longest
    columns, rows = -(-width // vision.side), -(-height // vision.side)
    if columns * rows == 1:
        columns = rows = 0
    tokens = vision.tile_tokens + 3 + rows * ((vision.tile_tokens + 2) * columns + 1)
    return Picture(tokens=tokens, patches=(rows * columns + 1) * _tile_patches(vision))


def _even(size: int) -> int:
    return max(size + size % 2, 1)


def _chunks(vision: Vision, width: int, height: int) -> Picture:
    """Llama-4: the canvas of up to 16 tiles that shrinks least, marks between, and the whole."""
    count = vision.max_tiles
    grids = [(rows, n // rows) for n in range(count, 0, -1) for rows in range(1, n + 1)]
    grids = [(rows, n) for rows, n in grids if rows * n <= count]
    scales = {
        grid: min(grid[0] * vision.side / height, grid[1] * vision.side / width) for grid in grids
    }
    larger = [scale for scale in scales.values() if scale >= 1]
    wanted = min(larger) if larger else max(scales.values())
    rows, columns = min(
        (grid for grid in scales if scales[grid] == wanted), key=lambda grid: grid[0] * grid[1]
    )
    tiles = rows * columns
    parts = tiles * vision.tile_tokens + rows * columns if tiles > 1 else 0
    total = tiles + 1 if tiles > 1 else 1
    tokens = parts + vision.tile_tokens + 3
    return Picture(tokens=tokens, patches=total * _tile_patches(vision))


def _cross(vision: Vision, width: int, height: int) -> Picture:
    """Llama-3.2-Vision: no tokens of the text; all tiles are computed, used or not."""
    del width, height
    return Picture(tokens=1, patches=vision.max_tiles * _tile_patches(vision))


_RULES: dict[str, Callable[[Vision, int, int], Picture]] = {
    "fixed": _fixed,
    "anyres": _anyres,
    "resized": _resized,
    "tiled": _tiled,
    "rows": _rows,
    "split": _split,
    "chunks": _chunks,
    "cross": _cross,
}
