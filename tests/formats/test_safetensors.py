"""memplan.formats.safetensors."""

from __future__ import annotations

import contextlib
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.errors import BadModelError
from memplan.formats.safetensors import header_length, parse_header


def encoded(entries):
    return json.dumps(entries).encode()


def parse(entries, data_bytes):
    header = encoded(entries)
    return parse_header(header, 8 + len(header) + data_bytes, "m.safetensors")


def entry(dtype="F16", shape=(2, 3), offsets=(0, 12)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_names_shapes_dtypes_and_sizes_are_read_in_the_order_of_the_data():
    """Metadata is no tensor."""
    tensors = parse(
        {
            "__metadata__": {"format": "pt"},
            "b": entry(offsets=(4, 16)),
            "a": entry("F32", (1,), (0, 4)),
        },
        16,
    )
    assert [(t.name, t.shape, t.dtype, t.bytes) for t in tensors] == [
        ("a", (1,), "float32", 4),
        ("b", (2, 3), "float16", 12),
    ]


@pytest.mark.parametrize(
    ("entries", "size", "message"),
    [
        ({"a": entry(offsets=(0, 11))}, 11, "takes 11 bytes, its shape 12"),
        ({"a": entry(offsets=(4, 16))}, 16, "starts at 4, expected 0"),
        ({"a": entry()}, 13, "take 12 bytes and 13 are there"),
        ({"a": entry()}, 5, "take 12 bytes and 5 are there"),
        ({"a": entry(shape=(-2, -3))}, 12, "not a whole number"),
        ({"a": entry(shape=(2.0, 3))}, 12, "not a whole number"),
        ({"a": entry(shape=(True, 12), dtype="I8")}, 12, "not a whole number"),
        ({"a": entry(dtype="F7")}, 12, "unknown dtype 'F7'"),
        ({"a": {"dtype": "F16"}}, 12, "malformed"),
        ({"a": 3}, 12, "malformed"),
        ([], 12, "not a JSON object"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(entries, size, message):
    """Every lie about sizes is one clear error."""
    with pytest.raises(BadModelError, match=message):
        parse(entries, size)


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe", b'{"a": NaN}', b"[" * 100_000])
def test_a_header_that_is_no_json_is_refused(text):
    """Damaged text, NaN and deep nesting."""
    with pytest.raises(BadModelError, match="not valid JSON"):
        parse_header(text, 8 + len(text), "m.safetensors")


@pytest.mark.parametrize(
    ("prefix", "size"),
    [
        (b"", 0),
        (b"\x10\x00", 2),
        (struct.pack("<Q", 1000), 100),
        (struct.pack("<Q", 2**63), 2**40),
        (b"GGUF\x03\x00\x00\x00", 10**9),
    ],
)
def test_a_length_that_the_file_cannot_hold_is_refused_before_reading(prefix, size):
    """A lying length never makes the reader ask for memory."""
    with pytest.raises(BadModelError, match="truncated"):
        header_length(prefix, size, "m.safetensors")


@given(st.binary(max_size=200))
def test_no_bytes_at_all_make_the_parser_crash(data):
    """Fuzzing ends in tensors or in BadModelError."""
    with contextlib.suppress(BadModelError):
        parse_header(data, 8 + len(data), "fuzz")
