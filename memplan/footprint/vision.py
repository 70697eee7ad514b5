"""Tokens that an image becomes, and what the tower that sees it holds, in bytes.

Token counts are those that the processors of transformers 5.23 put in the place of one image, held
against their own functions over many sizes (tests/footprint/test_vision.py). Symbols: T tokens in
the tower, h its hidden size, i its inner size, b bytes of one element.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

from memplan.errors import UsageError
from memplan.types import Vision

__all__ = [
    "ImageCount",
    "cross_tokens",
    "image_count",
    "largest_count",
    "parse_size",
]

_ANY = (1024, 1024)
_IDEFICS_LIMIT = 4096
_ASPECT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageCount:
    """What one image becomes."""

    tokens: int
    """Tokens in the text, with the separators that the processor adds."""
    patches: int
    """Tokens in the tower, all tiles together."""
    longest: int
    """Tokens that attend to one another in the tower: one tile's, or all."""


def parse_size(text: str | None, vision: Vision) -> tuple[int, int]:
    """Return width and height in pixels of "1024x768", or the family's own.

    A family that resizes every image to one square has that square; one that takes any size has
    none, and 1024 x 1024 is taken.

    Raises UsageError for another text.
    """
    if text is None:
        return (vision.side, vision.side) if vision.rule == "square" else _ANY
    width, cross, height = text.lower().partition("x")
    if cross and width.isdecimal() and height.isdecimal() and len(text) < _LONGEST_TEXT:
        sizes = int(width), int(height)
        if min(sizes) > 0:
            return sizes
    raise UsageError(
        f"{text!r} is no size of an image", hint="give width and height in pixels: 1024x768"
    )


_LONGEST_TEXT = 14


def image_count(vision: Vision, width: int, height: int) -> ImageCount:
    """Return what an image of a size in pixels becomes.

    Raises UsageError for a shape that the family refuses.
    """
    return _RULES[vision.rule](vision, width, height)


def largest_count(vision: Vision) -> ImageCount:
    """Return the most that one image can become: what vLLM profiles with."""
    if vision.rule == "pixels":
        side = max(math.isqrt(vision.max_pixels), vision.patch * vision.merge)
        return image_count(vision, side, side)
    if vision.rule == "longest":
        return image_count(vision, vision.longest, vision.longest)
    counts = [image_count(vision, w * _ANY[0], h * _ANY[1]) for w, h in _shapes(vision.max_tiles)]
    return max(counts, key=lambda count: count.tokens)


def _shapes(tiles: int) -> list[tuple[int, int]]:
    sides = range(1, max(tiles, 4) + 1)
    return [(w, h) for w in sides for h in sides]


def cross_tokens(vision: Vision, images: int) -> int:
    """Return N·tiles·((side/patch)² + 1): what Mllama's cross-attention layers keep.

    Source: transformers 5.23 modeling_mllama.py; Llama-3.2-Vision: 1601 tokens x 4 tiles, always
    all four, as missing tiles are filled with zeros.
    """
    if vision.rule != "cross":
        return 0
    return images * vision.max_tiles * _tile_patches(vision)


def _tile_patches(vision: Vision) -> int:
    return (vision.side // vision.patch) ** 2 + vision.classes


def _tiled(vision: Vision, tiles: int, tokens: int) -> ImageCount:
    one = _tile_patches(vision)
    return ImageCount(tokens=tokens, patches=tiles * one, longest=one)


def _square(vision: Vision, width: int, height: int) -> ImageCount:
    """One square, whatever the image's size."""
    del width, height
    return _tiled(vision, 1, vision.tokens)


def _cross(vision: Vision, width: int, height: int) -> ImageCount:
    """One token in the text; in the tower all tiles together, each padded to a multiple of 8."""
    del width, height
    one = -(-_tile_patches(vision) // 8) * 8
    return ImageCount(tokens=1, patches=vision.max_tiles * one, longest=vision.max_tiles * one)


def _pixels(vision: Vision, width: int, height: int) -> ImageCount:
    """Return Qwen-VL's smart_resize: multiples of patch x merge within the limits on pixels."""
    if max(width, height) > _ASPECT * min(width, height):
        raise UsageError(
            f"{width}x{height} is too long: sides may differ {_ASPECT} times",
            hint="give another --image-size",
        )
    unit = vision.patch * vision.merge
    rows, columns = round(height / unit) * unit, round(width / unit) * unit
    if rows * columns > vision.max_pixels:
        beta = math.sqrt((height * width) / vision.max_pixels)
        rows = max(unit, math.floor(height / beta / unit) * unit)
        columns = max(unit, math.floor(width / beta / unit) * unit)
    elif rows * columns < vision.min_pixels:
        beta = math.sqrt(vision.min_pixels / (height * width))
        rows = math.ceil(height * beta / unit) * unit
        columns = math.ceil(width * beta / unit) * unit
    patches = (rows // vision.patch) * (columns // vision.patch)
    return ImageCount(tokens=patches // vision.merge**2, patches=patches, longest=patches)


def _pinpoints(vision: Vision, width: int, height: int) -> ImageCount:
    """Return LLaVA-NeXT: the best canvas in tiles, its padding cut, a new line after each row.

    Source: image_processing_utils.select_best_resolution, processing_llava_next.py.
    """
    rows, columns = _best_canvas(vision.pinpoints, width, height)
    across = vision.side // vision.patch
    tall, wide = across * (rows // vision.side), across * (columns // vision.side)
    if width / height > wide / tall:
        tall -= (tall - int(round(height * (wide / width), 7))) // 2 * 2
    else:
        wide -= (wide - int(round(width * (tall / height), 7))) // 2 * 2
    tiles = (rows // vision.side) * (columns // vision.side) + 1
    return _tiled(vision, tiles, tall * wide + tall + vision.tokens)


def _best_canvas(canvases: tuple[tuple[int, int], ...], width: int, height: int) -> tuple[int, int]:
    def rank(canvas: tuple[int, int]) -> tuple[int, int]:
        scale = min(canvas[1] / width, canvas[0] / height)
        used = min(int(width * scale) * int(height * scale), width * height)
        return used, used - canvas[0] * canvas[1]

    return max(canvases, key=rank)


def _tiles(vision: Vision, width: int, height: int) -> ImageCount:
    """Return InternVL: the grid of the nearest aspect ratio, an overview, begin and end.

    Source: got_ocr2 get_optimal_tiled_canvas, processing_internvl.py.
    """
    most = vision.max_tiles
    sides = range(1, most + 1)
    grids = sorted(
        ((w, h) for w in sides for h in sides if w * h <= most), key=lambda g: g[0] * g[1]
    )
    best, least = (1, 1), math.inf
    for grid in grids:
        apart = abs(width / height - grid[0] / grid[1])
        larger = width * height > 0.5 * vision.side**2 * grid[0] * grid[1]
        if apart < least or (apart == least and larger):
            best, least = grid, apart
    count = best[0] * best[1]
    tiles = count + 1 if count > 1 else 1
    return _tiled(vision, tiles, 2 + vision.tokens * tiles)


def _longest(vision: Vision, width: int, height: int) -> ImageCount:
    """Return Pixtral: shrunk to the longest edge; each row of tokens ends with one more.

    Source: image_processing_pixtral.get_resize_output_image_size, processing_pixtral.py.
    """
    ratio = max(height / vision.longest, width / vision.longest)
    if ratio > 1:
        height, width = math.floor(height / ratio), math.floor(width / ratio)
    unit = vision.patch * vision.merge
    rows, columns = (height - 1) // unit + 1, (width - 1) // unit + 1
    patches = rows * columns * vision.merge**2
    return ImageCount(tokens=(columns + 1) * rows, patches=patches, longest=patches)


def _split(vision: Vision, width: int, height: int) -> ImageCount:
    """Return Idefics3: scaled to the longest edge, cut into tiles, and an overview.

    Source: image_processing_idefics3.get_number_of_image_patches, processing_idefics3.py; where
    the tokenizer has one token for an empty line.
    """
    aspect = width / height
    if width >= height:
        width = vision.longest
        height = int(width / aspect)
        height += height % 2
    else:
        height = vision.longest
        width = int(height * aspect)
        width += width % 2
    width, height = _below(max(width, 1), max(height, 1))
    rows, columns = -(-height // vision.side), -(-width // vision.side)
    if max(rows, columns) <= 1:
        return _tiled(vision, 1, vision.tokens + 3)
    row = (vision.tokens + 2) * columns + 1
    return _tiled(vision, rows * columns + 1, vision.tokens + 3 + row * rows)


def _below(width: int, height: int) -> tuple[int, int]:
    aspect = width / height
    if width >= height and width > _IDEFICS_LIMIT:
        width, height = _IDEFICS_LIMIT, int(_IDEFICS_LIMIT / aspect)
    elif height > width and height > _IDEFICS_LIMIT:
        width, height = int(_IDEFICS_LIMIT * aspect), _IDEFICS_LIMIT
    return max(width, 1), max(height, 1)


def _chunks(vision: Vision, width: int, height: int) -> ImageCount:
    """Return Llama-4: the canvas that shrinks or pads least, separators, and an overview.

    Source: image_processing_llama4.get_best_fit (in float32), processing_llama4.py.
    """
    canvases = _llama4_canvases(vision.max_tiles)
    side = vision.side
    scales = [
        min(_float32(rows * side / height), _float32(columns * side / width))
        for rows, columns in canvases
    ]
    growing = [scale for scale in scales if scale >= 1]
    chosen = min(growing) if growing else max(scales)
    fitting = [canvas for canvas, scale in zip(canvases, scales, strict=True) if scale == chosen]
    rows, columns = min(fitting, key=lambda canvas: canvas[0] * canvas[1])
    if rows * columns == 1:
        return _tiled(vision, 1, vision.tokens + 3)
    tiles = rows * columns + 1
    return _tiled(vision, tiles, tiles * vision.tokens + rows * columns + 3)


def _llama4_canvases(most: int) -> list[tuple[int, int]]:
    """Return all grids, those of one aspect ratio together, as find_supported_resolutions does."""
    ratios: dict[float, list[tuple[int, int]]] = {}
    for count in range(most, 0, -1):
        for rows in range(1, count + 1):
            if count % rows == 0:
                columns = count // rows
                ratios.setdefault(rows / columns, []).append((rows, columns))
    return [grid for grids in ratios.values() for grid in grids]


def _float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


_RULES: dict[str, Callable[[Vision, int, int], ImageCount]] = {
    "square": _square,
    "pixels": _pixels,
    "pinpoints": _pinpoints,
    "tiles": _tiles,
    "longest": _longest,
    "split": _split,
    "chunks": _chunks,
    "cross": _cross,
}
