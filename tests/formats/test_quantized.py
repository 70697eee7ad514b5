"""memplan.formats.quantized: bytes of one linear in every layout, and the names of schemes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.errors import UsageError
from memplan.formats import quant_layouts as layouts
from memplan.formats.quantized import FAMILIES, Scheme, bytes_of, parse_scheme

SIDE = 4096
NAMES = [
    *("int8", "nf4", "nf4-dq", "fp4", "fp4-dq", "fp8", "fp8-tensor", "fp8-channel", "fbgemm-fp8"),
    *("mxfp4", "nvfp4", "nvfp4-online", "eetq", "quanto-int8", "quanto-int4", "quanto-int2"),
    *(f"gptq-{bits}bit{group}" for bits in (2, 3, 4, 8) for group in ("", "-g32", "-g128")),
    *("awq-4bit-g128", "awq-4bit-g64", "awq-4bit-g32", "bitnet", "exl3-4bpw", "exl3-2.5bpw"),
    *(f"hqq-{bits}bit-g64" for bits in (1, 2, 3, 4, 8)),
    *("torchao-int4-g128", "torchao-int8", "torchao-float8", "w4a16-g128", "w8a16"),
]
sizes = st.integers(1, 40).map(lambda count: 32 * count)


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("gptq-3bit-g128", 3 + 19 / 128 + 32 / SIDE),
        ("gptq-8bit-g64", 8 + 24 / 64 + 32 / SIDE),
        ("awq-4bit-g32", 4.625),
        ("awq-4bit-g64", 4.3125),
        ("w4a16-g32", 4.50001),
        ("nvfp4-online", 5.0),
        ("hqq-3bit-g64", 3.7),
        ("hqq-2bit-g64", 2.5),
        ("fbgemm-fp8", 8.0078),
        ("eetq", 8 + 16 / SIDE),
        ("quanto-int8", 8 + 16 / SIDE),
        ("quanto-int4", 4.25),
        ("quanto-int2", 2.25),
        ("bitnet", 2.0),
        ("exl3-4bpw", 4.0078),
    ],
)
def test_bits_of_each_parameter(name, bits):
    """Of a linear of 4096 x 4096, scales and all."""
    size = bytes_of(parse_scheme(name), (SIDE, SIDE))
    assert 8 * size / SIDE**2 == pytest.approx(bits, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "shape", "size"),
    [
        ("nf4", (100, 72), 4116),
        ("nf4-dq", (100, 72), 4809),
        ("nf4", (3, 5), 76),
        ("nf4-dq", (96, 80), 5056),
        ("int8", (100, 72), 7600),
        ("torchao-int8", (96, 160), 15_840),
        ("torchao-float8", (100, 130), 13_400),
        ("hqq-1bit-g64", (96, 160), 2880),
        ("hqq-3bit-g64", (96, 160), 7104),
        ("hqq-3bit-g64", (128, 256), 15_360),
        ("hqq-4bit-g64", (96, 160), 8640),
        ("quanto-int8", (100, 96), 9804),
        ("quanto-int4", (128, 256), 17_412),
        ("quanto-int4", (96, 160), 9604),
        ("quanto-int2", (100, 96), 2804),
        ("w4a16-g32", (256, 512), 73_744),
        ("w8a16", (100, 130), 13_416),
    ],
)
def test_odd_shapes_are_what_the_libraries_allocated(name, shape, size):
    """Sums over the tensors of real layers whose sizes no block divides."""
    assert bytes_of(parse_scheme(name), shape) == size


def test_layouts_that_only_configs_name():
    """compressed-tensors and torchao, measured on real layers."""
    assert layouts.pack_quantized(96, 160, bits=4, group=32, symmetric=False) == 8896
    assert layouts.pack_quantized(100, 130, bits=4, group=0, symmetric=False) == 7068
    assert layouts.float_quantized(100, 130, strategy="channel") == 13_200
    assert layouts.float_quantized(100, 130, strategy="tensor") == 13_002
    assert layouts.float_quantized(256, 512, strategy="block") == 131_088
    assert layouts.nvfp4(96, 160, static=False) == 8644
    assert layouts.mxfp4(96, 160) == 8160
    assert layouts.torchao_intx(96, 160, group=32) == 16_800


def test_double_quantization_of_a_small_linear_takes_more():
    """Its nested code alone has 1 KiB."""
    small = (16, 16)
    assert bytes_of(parse_scheme("nf4-dq"), small) > bytes_of(parse_scheme("nf4"), small)


def test_block_scales_are_rounded_up_on_both_axes():
    """One block more for one row more; ue8m0 scales have one byte."""
    assert layouts.fp8_block(129, 128) == 129 * 128 + 2 * 4
    assert layouts.fp8_block(129, 129, scale_bytes=1, static=True) == 129 * 129 + 4 + 4


def test_a_stack_of_experts_is_counted_one_by_one():
    """Scales and codes belong to each matrix."""
    for name in NAMES:
        scheme = parse_scheme(name)
        assert bytes_of(scheme, (3, 2, 64, 96)) == 6 * bytes_of(scheme, (64, 96))


@given(name=st.sampled_from(NAMES), rows=sizes, columns=sizes)
def test_never_below_the_bits_themselves(name, rows, columns):
    """Whatever the scales take, the values take their bits."""
    scheme = parse_scheme(name)
    assert 8 * bytes_of(scheme, (rows, columns)) >= scheme.bits * rows * columns


@given(
    name=st.sampled_from([name for name in NAMES if not name.startswith("quanto-int")]),
    rows=sizes,
    columns=sizes,
    more=st.tuples(st.integers(0, 5), st.integers(0, 5)),
)
def test_a_larger_linear_takes_no_less(name, rows, columns, more):
    """Monotone on both axes (quanto chooses another group for another width)."""
    scheme = parse_scheme(name)
    larger = (rows + 32 * more[0], columns + 32 * more[1])
    assert bytes_of(scheme, larger) >= bytes_of(scheme, (rows, columns))


@given(rows=st.integers(1, 300), columns=st.integers(1, 300))
def test_four_bits_with_one_scale_a_row_is_below_eight(rows, columns):
    """GPTQ without groups stores less than two bytes a value more than the packed words."""
    four = bytes_of(parse_scheme("gptq-4bit"), (32 * rows, 32 * columns))
    eight = bytes_of(parse_scheme("gptq-8bit"), (32 * rows, 32 * columns))
    assert four < eight


def test_names_are_read_whatever_their_case():
    """And their parts are in the scheme."""
    assert parse_scheme(" NF4-DQ ") == Scheme(
        name="nf4-dq", family="bnb4", bits=4, group=64, double_quant=True
    )
    assert parse_scheme("gptq-3bit-g32").group == 32
    assert parse_scheme("gptq-4bit").group == 0
    assert parse_scheme("awq-4bit").group == 128
    assert parse_scheme("exl3-2.25bpw").bits == 2.25


@pytest.mark.parametrize("name", ["", "gptq", "gptq-5bit", "nf5", "exl3-9bpw", "exl3-8.5bpw"])
def test_unknown_names_are_refused_with_the_families(name):
    """One line and what to type."""
    with pytest.raises(UsageError, match="not a quantization") as caught:
        parse_scheme(name)
    for word in ("nf4", "gptq", "awq", "fp8", "mxfp4", "hqq", "torchao", "exl3", "q4_k_m"):
        assert word in caught.value.hint


def test_none_and_vectors_have_no_packed_form():
    """Asking for their bytes is an error of the caller."""
    with pytest.raises(UsageError, match="no packed form"):
        bytes_of(parse_scheme("none"), (4, 4))
    with pytest.raises(UsageError, match="no packed form"):
        bytes_of(parse_scheme("nf4"), (4,))


def test_every_name_has_a_layout():
    """No scheme without arithmetic."""
    assert {parse_scheme(name).family for name in NAMES} <= FAMILIES.keys()
