"""memplan.models.packed: one tensor per weight, every byte of the file."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.formats.quantized import bytes_of, parse_scheme
from memplan.models.packed import logical
from memplan.types import Tensor
from memplan.units import dtype_bits

NORM = ("model.norm.weight", (64,), "bfloat16")
X = "model.layers.0.mlp.up_proj"


def files(*rows):
    return tuple(
        Tensor(
            name=name,
            shape=shape,
            dtype=dtype,
            bytes=math.prod(shape) * dtype_bits(dtype) // 8,
        )
        for name, shape, dtype in (*rows, NORM)
    )


GPTQ = files(
    (f"{X}.qweight", (8, 96), "int32"),
    (f"{X}.qzeros", (2, 12), "int32"),
    (f"{X}.scales", (2, 96), "float16"),
    (f"{X}.g_idx", (64,), "int32"),
    (f"{X}.bias", (96,), "float16"),
)
AWQ = files(
    (f"{X}.qweight", (64, 12), "int32"),
    (f"{X}.qzeros", (2, 12), "int32"),
    (f"{X}.scales", (2, 96), "float16"),
)
PACK = files(
    (f"{X}.weight_packed", (96, 8), "int32"),
    (f"{X}.weight_scale", (96, 2), "bfloat16"),
    (f"{X}.weight_shape", (2,), "int64"),
)
NVFP4 = files(
    (f"{X}.weight", (96, 32), "uint8"),
    (f"{X}.weight_scale", (96, 4), "float8_e4m3fn"),
    (f"{X}.weight_scale_2", (), "float32"),
    (f"{X}.input_scale", (), "float32"),
)
FP8 = files(
    (f"{X}.weight", (96, 64), "float8_e4m3fn"),
    (f"{X}.weight_scale_inv", (1, 1), "float32"),
)
EXL3 = files(
    (f"{X}.trellis", (4, 6, 64), "int16"),
    (f"{X}.suh", (64,), "float16"),
    (f"{X}.svh", (96,), "float16"),
)


@pytest.mark.parametrize(
    ("tensors", "name"),
    [
        (GPTQ, "gptq-4bit-g32"),
        (AWQ, "awq-4bit-g32"),
        (PACK, "w4a16-g32"),
        (NVFP4, "nvfp4"),
        (FP8, "fp8"),
        (EXL3, "exl3-4bpw"),
    ],
)
def test_companions_fold_into_the_weight(tensors, name):
    """The size is that of the formula, the shape that of the linear, biases stand alone."""
    scheme = parse_scheme(name)
    folded = logical(tensors, scheme)
    weight = next(t for t in folded if t.name == f"{X}.weight")
    assert weight.shape == (96, 64)
    assert weight.bytes == bytes_of(scheme, (96, 64))
    assert weight.dtype == name
    assert sum(t.bytes for t in folded) == sum(t.bytes for t in tensors)
    rest = [t for t in folded if t is not weight]
    assert {t.name for t in rest} <= {"model.norm.weight", f"{X}.bias"}


@pytest.mark.parametrize(
    ("rows", "elements"),
    [
        (
            [
                (f"{X}.weight", (3072, 1), "uint8"),
                (f"{X}.weight.absmax", (96,), "float32"),
                (f"{X}.weight.quant_map", (16,), "float32"),
                (f"{X}.weight.quant_state.bitsandbytes__nf4", (80,), "uint8"),
            ],
            6144,
        ),
        ([(f"{X}.weight", (96, 64), "int8"), (f"{X}.SCB", (96,), "float32")], 6144),
        (
            [
                (f"{X}.W_q", (48, 64), "uint8"),
                (f"{X}.scale", (96, 1), "float16"),
                (f"{X}.zero", (96, 1), "float16"),
                (f"{X}.nbits", (), "int32"),
                (f"{X}.group_size", (), "int32"),
            ],
            6144,
        ),
        (
            [
                (f"{X}.weight._data._data", (48, 64), "uint8"),
                (f"{X}.weight._scale", (96, 1), "bfloat16"),
                (f"{X}.weight._shift", (96, 1), "bfloat16"),
                (f"{X}.input_scale", (), "bfloat16"),
                (f"{X}.output_scale", (), "bfloat16"),
            ],
            6144,
        ),
        (
            [
                (f"{X}.weight._data", (96, 64), "int8"),
                (f"{X}.weight._scale", (96, 1), "bfloat16"),
            ],
            6144,
        ),
        (
            [
                (f"{X}._weight_qdata", (96, 64), "int8"),
                (f"{X}._weight_scale", (96, 1), "float32"),
                (f"{X}._weight_zero_point", (96, 1), "int8"),
            ],
            6144,
        ),
        ([(f"{X}.weight", (24, 64), "uint8"), (f"{X}.weight_scale", (1,), "bfloat16")], 6144),
        ([(f"{X}.weight", (64, 96), "int8"), (f"{X}.weight_scales", (96,), "float16")], 6144),
        (
            [
                ("layers.0.ffn.experts.0.w1.weight", (96, 32), "int8"),
                ("layers.0.ffn.experts.0.w1.scale", (96, 2), "float8_e8m0fnu"),
            ],
            6144,
        ),
        (
            [
                ("model.layers.0.mlp.experts.gate_up_proj_blocks", (2, 96, 1, 16), "uint8"),
                ("model.layers.0.mlp.experts.gate_up_proj_scales", (2, 96, 1), "uint8"),
                ("model.layers.0.mlp.experts.gate_up_proj_bias", (2, 96), "bfloat16"),
            ],
            2 * 96 * 32 + 192,
        ),
        (
            [
                ("model.layers.0.mlp.experts.down_proj", (2, 96, 32), "float8_e4m3fn"),
                ("model.layers.0.mlp.experts.down_proj_scale_inv", (2, 1, 1), "float32"),
            ],
            2 * 96 * 32,
        ),
    ],
)
def test_parameters_are_counted_and_no_byte_is_lost(rows, elements):
    """Whatever the layout, without a scheme that says it."""
    tensors = files(*rows)
    folded = logical(tensors)
    assert sum(math.prod(t.shape) for t in folded) == elements + 64
    assert sum(t.bytes for t in folded) == sum(t.bytes for t in tensors)


def test_a_plain_checkpoint_stays_as_it_is():
    """Scales of caches, buffers of norms and plain weights are no companions."""
    tensors = files(
        (f"{X}.weight", (96, 64), "bfloat16"),
        (f"{X}.bias", (96,), "bfloat16"),
        ("model.layers.0.self_attn.k_scale", (), "float32"),
        ("model.layers.0.mlp.experts.gate_up_proj", (2, 64, 64), "bfloat16"),
        ("model.layers.0.clip.scale", (4,), "bfloat16"),
    )
    assert logical(tensors) == tensors


def test_gptq_without_an_index_takes_the_width_from_the_scheme():
    """Three bits: 64 input features are six int32."""
    tensors = files(
        (f"{X}.qweight", (6, 96), "int32"),
        (f"{X}.qzeros", (2, 9), "int32"),
        (f"{X}.scales", (2, 96), "float16"),
    )
    assert logical(tensors, parse_scheme("gptq-3bit-g32"))[0].shape == (96, 64)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    *("weight", "qweight", "scales", "W_q", "scale", "zero", "weight_scale", "SCB"),
                    *("weight.absmax", "weight._data", "weight._data._data", "trellis", "suh"),
                    *("weight_packed", "weight_scale_2", "bias", "g_idx", "qzeros"),
                ]
            ),
            st.lists(st.integers(0, 5), max_size=4).map(tuple),
            st.sampled_from(["uint8", "int8", "int32", "float32", "bfloat16"]),
        ),
        unique_by=lambda row: row[0],
        max_size=8,
    )
)
def test_any_mixture_of_names_keeps_every_byte(rows):
    """Damaged or foreign files are counted too, and never an error."""
    tensors = files(*((f"{X}.{role}", shape, dtype) for role, shape, dtype in rows))
    folded = logical(tensors)
    assert sum(t.bytes for t in folded) == sum(t.bytes for t in tensors)
    assert len({t.name for t in folded}) == len(folded)
