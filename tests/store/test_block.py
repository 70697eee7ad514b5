"""memplan.store.block: a block's rows say what its samples say, whatever way they were made."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.store import codec
from memplan.store.block import CHUNK, PEAK, ROLLUP, BlockRows
from memplan.store.frame import HOUR_NS, MINUTE_NS, Frame, summarize

NS = 10**9
SETS = [(3, 1, 2), (1, 2), (4,), (5, 6), (2, 5, 6, 7)]
VALUES = st.integers(-(2**40), 2**40)


@st.composite
def instants(draw):
    """Some hours at most, the clock back now and then; a series stays, or does not."""
    stays = {series: draw(st.booleans()) for ids in SETS for series in ids}
    first = {series: draw(VALUES) for series in stays}
    step = draw(st.sampled_from([1, 1, 15, 600])) * NS
    rows, t_ns = [], draw(st.integers(0, 2 * HOUR_NS))
    for ids in draw(st.lists(st.sampled_from(SETS), min_size=1, max_size=130)):
        t_ns += step if draw(st.integers(0, 30)) else draw(st.integers(-HOUR_NS, HOUR_NS))
        rows.append((t_ns, ids, [first[i] if stays[i] else draw(VALUES) for i in ids]))
    return rows


def rows_of(columns, rows, key):
    """Return the rows by their keys, and look at their order."""
    found = {tuple(row[i] for i in key): dict(zip(columns, row, strict=True)) for row in rows}
    assert list(found) == sorted(found)
    assert len(found) == len(rows)
    return found


def assert_sums_up(row, samples, names):
    """Hold a row's numbers against the samples in the order in which they were read."""
    wanted = summarize([value for _, value in samples], [t_ns for t_ns, _ in samples])
    assert [row[name] for name in names] == [getattr(wanted, name) for name in names]
    assert row.get("total", wanted.total) == pytest.approx(wanted.total, abs=1e-3)


@given(instants())
def test_the_rows_of_a_block_sum_up_its_samples(rows):
    """Every chunk, minute, hour and peak; constants, which go by a shorter way, like any other."""
    samples = {}
    for t_ns, ids, values in rows:
        for series, value in zip(ids, values, strict=True):
            samples.setdefault(series, []).append((t_ns, value))
    frame = Frame.of_rows(rows, range(len(rows)))
    found = BlockRows(frame, 1, 20, 9)
    chunks = rows_of(CHUNK, found.chunks, range(4))
    assert set(chunks) == {(1, 20, 9, series) for series in samples}
    peaks = rows_of(PEAK, found.peaks, range(2))
    assert set(peaks) == {(1, series) for series in samples}
    for series, mine in samples.items():
        chunk = chunks[1, 20, 9, series]
        numbers = ("n", "low", "low_t_ns", "high", "high_t_ns", "last")
        assert_sums_up(chunk, mine, numbers)
        crc = codec.checksum(chunk["data"], *(chunk[name] for name in ("n", "low", "high", "last")))
        assert crc == chunk["crc"]
        values, index = codec.unpack_column(chunk["codec"], chunk["data"], len(mine))
        times = frame.times if index is None else [frame.times[i] for i in index]
        assert list(zip(times, values, strict=True)) == mine
        assert_sums_up(peaks[1, series], mine, PEAK[2:])
    assert found.size_bytes == sum(len(chunk["data"]) for chunk in chunks.values())
    for made, period_ns in ((found.minutes, MINUTE_NS), (found.hours, HOUR_NS)):
        periods = {}
        for series, mine in samples.items():
            for t_ns, value in mine:
                periods.setdefault((1, t_ns // period_ns, series), []).append((t_ns, value))
        rolled_up = rows_of(ROLLUP, made, range(3))
        assert set(rolled_up) == set(periods)
        for key, mine in periods.items():
            assert_sums_up(rolled_up[key], mine, ("n", "low", "high", "high_t_ns", "last"))


def test_what_was_read_together_shares_one_index_and_a_frame_behind_it_changes_only_its_own():
    """An index is a list: it must not grow for one column when another one does."""
    frame = Frame.of_rows([(1, (1, 2, 3), [1, 2, 3]), (2, (3,), [4])], [1, 2])
    assert frame.columns[1].index is frame.columns[2].index
    frame.append(Frame.of_rows([(3, (1,), [5])], [3]))
    assert frame.columns[1].index == [0, 2]
    assert frame.columns[2].index == [0]
    assert frame.columns[3].index == [0, 1]
