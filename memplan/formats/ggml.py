"""ggml's tensor types: values in a block and bytes of a block.

Source: ggml.h and ggml-common.h of llama.cpp (build 0c1e570), gguf-py 0.19; ids from 133 are those
of ik_llama.cpp. A type that is not here is sized by the next tensor's offset.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["BY_NAME", "TYPES", "GgmlType", "row_bytes", "tensor_bytes"]


class GgmlType(NamedTuple):
    """One type."""

    name: str
    """Lower-case name, such as "q4_k"."""
    block: int
    """Values in one block; the first dimension is a multiple of it."""
    bytes: int
    """Bytes of one block."""


TYPES: dict[int, GgmlType] = {
    0: GgmlType("f32", 1, 4),
    1: GgmlType("f16", 1, 2),
    2: GgmlType("q4_0", 32, 18),
    3: GgmlType("q4_1", 32, 20),
    6: GgmlType("q5_0", 32, 22),
    7: GgmlType("q5_1", 32, 24),
    8: GgmlType("q8_0", 32, 34),
    9: GgmlType("q8_1", 32, 36),
    10: GgmlType("q2_k", 256, 84),
    11: GgmlType("q3_k", 256, 110),
    12: GgmlType("q4_k", 256, 144),
    13: GgmlType("q5_k", 256, 176),
    14: GgmlType("q6_k", 256, 210),
    15: GgmlType("q8_k", 256, 292),
    16: GgmlType("iq2_xxs", 256, 66),
    17: GgmlType("iq2_xs", 256, 74),
    18: GgmlType("iq3_xxs", 256, 98),
    19: GgmlType("iq1_s", 256, 50),
    20: GgmlType("iq4_nl", 32, 18),
    21: GgmlType("iq3_s", 256, 110),
    22: GgmlType("iq2_s", 256, 82),
    23: GgmlType("iq4_xs", 256, 136),
    24: GgmlType("i8", 1, 1),
    25: GgmlType("i16", 1, 2),
    26: GgmlType("i32", 1, 4),
    27: GgmlType("i64", 1, 8),
    28: GgmlType("f64", 1, 8),
    29: GgmlType("iq1_m", 256, 56),
    30: GgmlType("bf16", 1, 2),
    34: GgmlType("tq1_0", 256, 54),
    35: GgmlType("tq2_0", 256, 66),
    39: GgmlType("mxfp4", 32, 17),
    40: GgmlType("nvfp4", 64, 36),
    41: GgmlType("q1_0", 128, 18),
    42: GgmlType("q2_0", 64, 18),
    133: GgmlType("q6_0", 32, 26),
    134: GgmlType("iq1_bn", 64, 13),
    135: GgmlType("iq2_bn", 64, 16),
    137: GgmlType("iq2_k", 256, 76),
    138: GgmlType("iq3_k", 256, 110),
    139: GgmlType("iq4_k", 256, 144),
    140: GgmlType("iq5_k", 256, 176),
    141: GgmlType("iq6_k", 256, 212),
    144: GgmlType("iq4_ks", 256, 136),
    145: GgmlType("iq2_ks", 256, 70),
    146: GgmlType("iq4_kss", 256, 128),
    151: GgmlType("q8_kv", 32, 32),
    152: GgmlType("iq5_ks", 256, 168),
    153: GgmlType("iq2_kt", 256, 68),
    154: GgmlType("iq3_kt", 256, 100),
    155: GgmlType("iq4_kt", 256, 128),
    156: GgmlType("iq3_ks", 256, 102),
    157: GgmlType("iq2_kl", 256, 86),
    158: GgmlType("iq1_kt", 256, 56),
}
"""Type id -> type."""

BY_NAME = {entry.name: entry for entry in TYPES.values()}
"""Lower-case name -> type."""


def row_bytes(entry: GgmlType, values: int) -> int:
    """Return the bytes of one row of so many values, the last block filled up."""
    return -(-values // entry.block) * entry.bytes


def tensor_bytes(entry: GgmlType, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor whose last axis is the contiguous one (as in torch)."""
    if not shape:
        return entry.bytes
    rows = 1
    for size in shape[:-1]:
        rows *= size
    return rows * row_bytes(entry, shape[-1])
