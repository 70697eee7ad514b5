"""memplan.store.codec and memplan.store.frame: whatever is packed comes back, or is refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.errors import StoreDamagedError
from memplan.store import codec
from memplan.store.frame import Column, Frame, merge, summarize
from memplan.store.tick import pack_rows

INT64 = st.integers(-(2**63), 2**63 - 1)
PAGES = st.integers(0, 2**20).map(lambda n: n * 4096)
VALUES = st.lists(INT64, min_size=1, max_size=80) | st.lists(PAGES, min_size=1, max_size=80)
READINGS = st.lists(
    st.tuples(st.integers(1, 6), st.integers(0, 4) | st.integers(0, 2**62), INT64), max_size=60
)


@given(st.lists(st.integers(-(2**70), 2**70)))
def test_a_stream_of_any_integers_comes_back(values):
    """Also of more than 64 bits: differences of 64-bit values have one more."""
    assert codec.decode(codec.encode(values)) == values


@given(st.lists(st.integers(-(2**65), 2**65)))
def test_a_packed_stream_says_how_it_is_packed(values):
    """Deflated only where that is shorter."""
    version, blob = codec.pack(values)
    assert codec.unpack(version, blob) == values
    assert len(blob) <= len(codec.encode(values))


@given(VALUES, st.data())
def test_a_column_comes_back_with_its_positions(values, data):
    """Full ones, and those with gaps."""
    version, blob = codec.pack_column(values)
    assert codec.unpack_column(version, blob, len(values)) == (values, None)
    steps = data.draw(st.lists(st.integers(1, 9), min_size=len(values), max_size=len(values)))
    index = [sum(steps[: i + 1]) for i in range(len(steps))]
    version, blob = codec.pack_column(values, index)
    assert codec.unpack_column(version, blob, len(values)) == (values, index)


@given(INT64, st.integers(1, 200), st.data())
def test_a_column_of_one_value_comes_back_and_is_summarised_as_any_other(value, n, data):
    """It takes a shorter way through both."""
    steps = data.draw(st.lists(st.integers(1, 3), min_size=n, max_size=n))
    index = [sum(steps[: i + 1]) - 1 for i in range(n)]
    version, blob = codec.pack_column([value] * n, index)
    assert codec.unpack_column(version, blob, n) == ([value] * n, index)
    clock = st.integers(0, 3 * 60 * 10**9)
    times = data.draw(st.lists(clock, min_size=index[-1] + 1, max_size=index[-1] + 1))
    frame = Frame(times=times, columns={1: Column(values=[value] * n, index=index)})
    found = [part for _, part in frame.stretches(60 * 10**9)[1]]
    at, mine = 0, [times[i] for i in index]
    for part in found:
        assert part == summarize([value] * part.n, mine[at : at + part.n])
        at += part.n
    assert at == n


def test_memory_that_moves_in_pages_takes_a_byte_for_each_move():
    """The zero bits at the low end are stored once."""
    values = [2**34 + i * 4096 for i in range(60)]
    _, paged = codec.pack_column(values)
    _, odd = codec.pack_column([v + i % 2 for i, v in enumerate(values)])
    assert len(paged) < 20
    assert len(paged) < len(odd)


@given(st.lists(st.tuples(st.integers(0, 2**62), st.integers(1, 2**40)), min_size=1, max_size=70))
def test_instants_come_back_whatever_the_clock_did(instants):
    """Times may jump, numbers only grow."""
    times = [t_ns for t_ns, _ in instants]
    seqs = [sum(step for _, step in instants[: i + 1]) for i in range(len(instants))]
    assert codec.unpack_times(codec.pack_times(times, seqs)) == (times, seqs)


@given(VALUES, st.data())
def test_one_flipped_bit_is_seen(values, data):
    """In the blob, or in a number beside it."""
    _, blob = codec.pack_column(values)
    crc = codec.checksum(blob, len(values), min(values))
    assert -(2**31) <= crc < 2**31
    place = data.draw(st.integers(0, len(blob) * 8 - 1))
    flipped = bytearray(blob)
    flipped[place // 8] ^= 1 << place % 8
    assert codec.checksum(bytes(flipped), len(values), min(values)) != crc
    assert codec.checksum(blob, len(values) + 1, min(values)) != crc


@given(st.binary(max_size=60), st.integers(0, 3), st.integers(0, 70))
@settings(max_examples=300)
def test_nonsense_is_refused_and_never_crashes(blob, version, n):
    """Any bytes under any codec: values, or the one error that the store knows."""
    for reading in (
        lambda: codec.unpack_column(version, blob, n),
        lambda: codec.unpack_times(codec.unpack(version, blob)),
        lambda: Frame.unpack(version, blob),
    ):
        with contextlib.suppress(StoreDamagedError):
            reading()


def test_a_codec_of_the_future_is_named():
    """Nobody guesses."""
    with pytest.raises(StoreDamagedError, match="codec 9") as caught:
        codec.unpack(9, b"\0")
    assert "upgrade" in caught.value.hint


def packed(readings, first_seq):
    """Return the readings as a row of `tick`; a new instant begins where `Frame.of` begins one."""
    rows = []
    for series, t_ns, value in readings:
        if not rows or rows[-1][0] != t_ns or series in rows[-1][1]:
            rows.append((t_ns, {}))
        rows[-1][1][series] = value
    instants = [(t_ns, tuple(row), list(row.values())) for t_ns, row in rows]
    return pack_rows(instants, range(first_seq, first_seq + len(rows)))


@given(READINGS)
def test_a_frame_comes_back_and_can_be_cut_and_joined(readings):
    """Packed and unpacked, cut anywhere and put together again, it is the same."""
    frame = Frame.of(readings, 7)
    assert frame.samples == len(readings)
    if not readings:
        return
    assert Frame.unpack(*packed(readings, 7)) == frame
    for place in range(len(frame.times) + 1):
        again = frame.cut(0, place)
        again.append(frame.cut(place, len(frame.times)))
        assert again.times == frame.times
        assert again.seqs == frame.seqs
        assert {s: _pairs(again, c) for s, c in again.columns.items()} == {
            s: _pairs(frame, c) for s, c in frame.columns.items()
        }


def _pairs(frame, column):
    index = column.index if column.index is not None else range(len(frame.times))
    return list(zip(index, column.values, strict=True))


@given(READINGS, st.sets(st.integers(1, 6)))
def test_only_wanted_series_are_unpacked(readings, wanted):
    """The others are skipped, and nothing else changes."""
    frame = Frame.of(readings, 1)
    if readings:
        part = Frame.unpack(*packed(readings, 1), wanted)
        assert part.columns == {s: c for s, c in frame.columns.items() if s in wanted}


@given(st.lists(st.tuples(st.integers(0, 99), INT64), min_size=2, max_size=40), st.data())
def test_summaries_of_two_halves_make_the_summary_of_the_whole(rows, data):
    """Wherever they are cut; the first of equal peaks counts."""
    place = data.draw(st.integers(1, len(rows) - 1))

    def of(part):
        return summarize([value for _, value in part], [t_ns for t_ns, _ in part])

    both, whole = merge(of(rows[:place]), of(rows[place:])), of(rows)
    size = sum(abs(value) for _, value in rows)  # what cancels out leaves its rounding behind
    assert both.total == pytest.approx(whole.total, abs=1e-12 * size)
    assert [getattr(both, n) for n in ("n", "low", "high", "high_t_ns", "last", "low_t_ns")] == [
        getattr(whole, n) for n in ("n", "low", "high", "high_t_ns", "last", "low_t_ns")
    ]
