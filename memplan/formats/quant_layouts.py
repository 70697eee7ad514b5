"""Exact stored bytes of one quantized linear, one function per layout.

A linear has `rows` output and `columns` input features; every function returns the bytes of the
weight with all that is stored beside it (scales, zero points, codes, indices), never of a bias.
"Measured" means that the sum over the real tensors of a layer was equal: bitsandbytes 0.50.2,
compressed-tensors 0.20.0, torchao 0.18.0, hqq and optimum-quanto, on torch 2.13.
"""

from __future__ import annotations

__all__ = [
    "awq",
    "bitnet",
    "bnb_4bit",
    "bnb_int8",
    "eetq",
    "exl3",
    "fbgemm_fp8",
    "float_quantized",
    "fp8_block",
    "fp8_channel",
    "fp8_tensor",
    "gptq",
    "hqq",
    "mxfp4",
    "nvfp4",
    "nvfp4_online",
    "pack_quantized",
    "quanto_int8",
    "quanto_packed",
    "torchao_float8",
    "torchao_int4",
    "torchao_int8",
    "torchao_intx",
]

_CODE = 16 * 4
"""bitsandbytes: the 16 values of nf4 or fp4, float32."""
_NESTED_CODE = 256 * 4
"""bitsandbytes: the 256 values of a quantized absmax, float32."""
_SCALAR = 4
"""One float32."""


def _ceil(count: int, size: int) -> int:
    return -(-count // size)


def bnb_int8(rows: int, columns: int) -> int:
    """LLM.int8: int8 weight (rows, columns) and a float32 SCB per row.

    Source: bitsandbytes nn/modules.py, Int8Params; measured.
    """
    return rows * columns + 4 * rows


def bnb_4bit(rows: int, columns: int, *, double_quant: bool = False) -> int:
    """nf4 and fp4: two values a byte, float32 absmax per 64 values, a code of 16 float32.

    With double quantization absmax is uint8 with a float32 per 256 of them, a nested code of 256
    float32 and a float32 offset; below about 3,000 values that takes more, not less.
    Source: bitsandbytes functional.py, quantize_4bit and QuantState; measured.
    """
    count = rows * columns
    blocks = _ceil(count, 64)
    size = _ceil(count, 2) + _CODE
    if not double_quant:
        return size + 4 * blocks
    return size + blocks + 4 * _ceil(blocks, 256) + _NESTED_CODE + _SCALAR


def gptq(rows: int, columns: int, *, bits: int, group: int, g_idx: bool = True) -> int:
    """GPTQ: qweight int32 (columns·bits/32, rows), qzeros, float16 scales, int32 g_idx.

    Args:
        rows: output features.
        columns: input features.
        bits: 2, 3, 4 or 8.
        group: input features that share a scale; 0 = all of them.
        g_idx: the index is always stored by GPTQ, with or without activation order.

    Source: AutoGPTQ / GPTQModel, QuantLinear.
    """
    groups = _ceil(columns, group) if group else 1
    weight = 4 * _ceil(columns * bits, 32) * rows
    zeros = 4 * groups * _ceil(rows * bits, 32)
    return weight + zeros + 2 * groups * rows + (4 * columns if g_idx else 0)


def awq(rows: int, columns: int, *, bits: int = 4, group: int = 128) -> int:
    """AWQ: qweight int32 (columns, rows·bits/32), qzeros and float16 scales per group.

    Source: AutoAWQ, WQLinear_GEMM.
    """
    groups = _ceil(columns, group) if group else 1
    packed = 4 * _ceil(rows * bits, 32)
    return packed * (columns + groups) + 2 * groups * rows


def fp8_tensor(rows: int, columns: int, *, scale_bytes: int = 4, static: bool = False) -> int:
    """e4m3 with one scale, and one more for activations when they are static.

    Source: transformers integrations/finegrained_fp8.py, FP8Linear without block size.
    """
    return rows * columns + scale_bytes * (2 if static else 1)


def fp8_channel(rows: int, columns: int, *, scale_bytes: int = 4) -> int:
    """e4m3 with a scale per row (vLLM keeps them as float32)."""
    return rows * columns + scale_bytes * rows


def fp8_block(
    rows: int, columns: int, *, group: int = 128, scale_bytes: int = 4, static: bool = False
) -> int:
    """e4m3 with a scale per block of group x group, rounded up on both axes.

    scale_bytes: 4 = float32, 1 = ue8m0. Source: transformers integrations/finegrained_fp8.py.
    """
    blocks = _ceil(rows, group) * _ceil(columns, group)
    return rows * columns + scale_bytes * blocks + (_SCALAR if static else 0)


def fbgemm_fp8(rows: int, columns: int) -> int:
    """e4m3, a float32 scale per row and a float32 upper bound of the input's scale.

    Source: transformers integrations/fbgemm_fp8.py, FbgemmFp8Linear.
    """
    return rows * columns + 4 * rows + _SCALAR


def mxfp4(rows: int, columns: int) -> int:
    """Two e2m1 values a byte and one e8m0 byte per 32 values of a row.

    Source: OCP microscaling formats; compressed-tensors mxfp4-pack-quantized, measured.
    """
    return rows * (_ceil(columns, 2) + _ceil(columns, 32))


def nvfp4(rows: int, columns: int, *, static: bool = True) -> int:
    """Two e2m1 values a byte, an e4m3 scale per 16, a float32 for the whole weight.

    static: one more float32 for the input (modelopt's input_scale, absent for W4A16).
    Source: compressed-tensors nvfp4-pack-quantized, measured without it.
    """
    return rows * (_ceil(columns, 2) + _ceil(columns, 16)) + _SCALAR * (2 if static else 1)


def nvfp4_online(rows: int, columns: int) -> int:
    """NVFP4 as transformers makes it while loading: the block scales are kept twice.

    Once row-major and once swizzled, which pads to 128 rows and 4 scales (assumed from the layout
    of NVIDIA's kernels). Source: transformers integrations/nvfp4.py, NVFP4Linear.
    """
    scales = _ceil(columns, 16)
    swizzled = _ceil(rows, 128) * 128 * _ceil(scales, 4) * 4
    return rows * _ceil(columns, 2) + rows * scales + swizzled + _SCALAR


def hqq(rows: int, columns: int, *, bits: int, group: int = 64, scale_bytes: int = 2) -> int:
    """HQQ: packed uint8 (3 bits: ten values in an int32), a scale and a zero per group.

    group counts along a row; 0 = a whole row. Values are packed across groups, so the number of
    groups is what is rounded up. Source: hqq core/quantize.py and bitpack.py; measured.
    """
    width = group or columns
    groups = _ceil(rows * columns, width)
    packed = 4 * _ceil(groups, 10) if bits == 3 else _ceil(groups * bits, 8)
    return packed * width + 2 * scale_bytes * groups


def torchao_int8(rows: int, columns: int) -> int:
    """int8, and a float32 scale and an int8 zero per row; torchao Int8Tensor, measured."""
    return rows * columns + 5 * rows


def torchao_float8(rows: int, columns: int) -> int:
    """e4m3 and a float32 scale per row; torchao Float8Tensor, measured."""
    return rows * columns + 4 * rows


def torchao_int4(rows: int, columns: int, *, group: int = 128) -> int:
    """Two values a byte, and a bfloat16 scale and zero per group; torchao Int4Tensor.

    torchao leaves a linear alone whose input features are no multiple of the group.
    """
    return rows * (_ceil(columns, 2) + 4 * _ceil(columns, group))


def torchao_intx(rows: int, columns: int, *, group: int = 32) -> int:
    """One int8 a value whatever the bits, a bfloat16 scale and an int8 zero per group.

    Source: torchao IntxUnpackedToInt8Tensor; measured.
    """
    return rows * (columns + 3 * _ceil(columns, group))


def pack_quantized(
    rows: int, columns: int, *, bits: int, group: int, symmetric: bool = True, scale_bytes: int = 2
) -> int:
    """compressed-tensors integers: int32 rows, scales, zero points, int64[2] of the shape.

    group 0 = a scale per row. Zero points of an asymmetric scheme are packed down the rows.
    Source: compressed-tensors pack-quantized (and int-quantized, which 0.20 packs too); measured.
    """
    groups = _ceil(columns, group) if group else 1
    weight = 4 * rows * _ceil(columns * bits, 32)
    zeros = 0 if symmetric else 4 * groups * _ceil(rows * bits, 32)
    return weight + scale_bytes * rows * groups + zeros + 16


def float_quantized(
    rows: int, columns: int, *, strategy: str, group: int = 128, scale_bytes: int = 2
) -> int:
    """compressed-tensors e4m3: scales of the weight's dtype per "tensor", "channel" or "block".

    Source: compressed-tensors float-quantized and naive-quantized; measured.
    """
    if strategy == "tensor":
        return fp8_tensor(rows, columns, scale_bytes=scale_bytes)
    if strategy == "block":
        return fp8_block(rows, columns, group=group, scale_bytes=scale_bytes)
    return fp8_channel(rows, columns, scale_bytes=scale_bytes)


def eetq(rows: int, columns: int) -> int:
    """int8 (columns, rows) and a float16 scale per row; transformers integrations/eetq.py."""
    return rows * columns + 2 * rows


def quanto_int8(rows: int, columns: int, *, scale_bytes: int = 2) -> int:
    """int8, a scale per row, and two scalars for activations; optimum-quanto QLinear, measured."""
    return rows * columns + scale_bytes * (rows + 2)


def quanto_packed(rows: int, columns: int, *, bits: int, scale_bytes: int = 2) -> int:
    """2 or 4 bits packed, a scale and a shift per group, and two scalars for activations.

    The group is the largest of 128, 96, 64 and 32 that divides the input features, else a row.
    Source: optimum-quanto QLinear; measured.
    """
    group = next((size for size in (128, 96, 64, 32) if columns % size == 0), columns)
    groups = rows * _ceil(columns, group)
    return _ceil(rows * columns * bits, 8) + scale_bytes * (2 * groups + 2)


def bitnet(rows: int, columns: int, *, scale_bytes: int = 2) -> int:
    """Four ternary values a byte down the rows, and one scale.

    Source: transformers integrations/bitnet.py, BitLinear.
    """
    return _ceil(rows, 4) * columns + scale_bytes


def exl3(rows: int, columns: int, *, bits: float) -> int:
    """EXL3: int16 trellis (columns/16, rows/16, 16·bits), float16 suh (columns), svh (rows).

    bits may be a mean over tensors: a file mixes whole numbers to reach it. Source: exllamav3.
    """
    return -(-round(rows * columns * bits) // 8) + 2 * (rows + columns)
