"""memplan.units."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.errors import UnitError
from memplan.units import (
    DTYPE_BITS,
    GIB,
    MIB,
    dtype_name,
    format_bytes,
    format_count,
    parse_bytes,
    tensor_bytes,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24GiB", 24 * GIB),
        ("24 GiB", 24 * GIB),
        ("80GB", 80 * 10**9),
        ("1.5GiB", 3 * GIB // 2),
        ("512m", 512 * MIB),
        ("0", 0),
        ("1024", 1024),
    ],
)
def test_sizes_are_read_in_the_unit_that_is_written(text, expected):
    """Binary units are powers of 1024, decimal ones of 1000, bare letters binary."""
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "nan", "inf", "1e3GiB", "24 Gib/s", "1_000"])
def test_what_is_no_size_is_refused_with_a_hint(text):
    """Negative, infinite and misspelt sizes raise UnitError."""
    with pytest.raises(UnitError) as caught:
        parse_bytes(text)
    assert "GiB" in caught.value.hint


@given(st.integers(0, 2**60))
def test_a_bare_number_of_bytes_is_read_as_it_stands(value):
    """parse_bytes inverts str for whole bytes."""
    assert parse_bytes(str(value)) == value


@given(st.integers(0, 2**50))
def test_printed_sizes_name_their_unit_and_are_right_to_the_last_digit(value):
    """format_bytes differs from the value by at most half of its last digit."""
    number, unit = format_bytes(value, "MiB", 3).split()
    assert unit == "MiB"
    assert abs(float(number) * MIB - value) <= MIB * 0.0005 + 1


def test_what_is_not_available_is_not_printed_as_zero():
    """None prints as n/a."""
    assert format_bytes(None) == "n/a"
    assert format_count(None) == "n/a"


@pytest.mark.parametrize("name", ["bf16", "BF16", "torch.bfloat16", "bfloat16"])
def test_one_dtype_has_many_spellings(name):
    """Aliases of safetensors, torch and people are one name."""
    assert dtype_name(name) == "bfloat16"


def test_an_unknown_dtype_is_refused():
    """dtype_name raises with the common names as a hint."""
    with pytest.raises(UnitError, match="float7"):
        dtype_name("float7")


@given(st.lists(st.integers(0, 64), max_size=4), st.sampled_from(sorted(DTYPE_BITS)))
def test_a_tensor_takes_its_elements_times_their_size(shape, dtype):
    """tensor_bytes is the product of the shape times the bits, in bytes."""
    count = 1
    for size in shape:
        count *= size
    assert tensor_bytes(tuple(shape), dtype) == -(-count * DTYPE_BITS[dtype] // 8)


def test_parameters_are_counted_as_people_say_it():
    """7.62 B, 124.44 M, 512."""
    assert format_count(7_615_616_512) == "7.62 B"
    assert format_count(124_439_808) == "124.44 M"
    assert format_count(512) == "512"
