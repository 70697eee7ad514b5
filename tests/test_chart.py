"""memplan.chart: what is drawn, where, and that no peak disappears."""

from __future__ import annotations

import pytest
from goldens import check_golden
from hypothesis import given
from hypothesis import strategies as st

from memplan.chart import Axis, downsample, draw, glyphs
from memplan.units import MIB

S = 10**9


def text_of(rows):
    return ["".join(piece for piece, _ in row) for row in rows]


def ramp(seconds, peak):
    return [(i * S, peak * MIB * i // seconds) for i in range(seconds + 1)]


@pytest.mark.parametrize("unicode", [True, False])
def test_a_chart_looks_like_this(unicode):
    """A ramp, a gap and a fall against a plan with its band."""
    points = [p for p in ramp(60, 600) if not 30 * S < p[0] < 40 * S]
    points += [(t * S, 200 * MIB) for t in range(61, 80)]
    axis = Axis(
        start_ns=0, end_ns=80 * S, plan=588 * MIB, low=478 * MIB, high=808 * MIB, unit="MiB"
    )
    rows = draw(points, axis, width=72, height=14, style=glyphs(unicode=unicode))
    name = "chart_unicode.txt" if unicode else "chart_ascii.txt"
    check_golden(name, "\n".join(text_of(rows)) + "\n")


POINTS = st.lists(st.tuples(st.integers(0, 100 * S), st.integers(0, 2**50)), max_size=60).map(
    sorted
)
LEVEL = st.none() | st.integers(0, 2**50)


@given(POINTS, LEVEL, LEVEL, st.integers(-3, 120), st.integers(-2, 40), st.booleans())
def test_the_size_is_always_what_was_asked_for(points, plan, capacity, width, height, unicode):
    """Whatever the numbers; too small is empty and no crash."""
    axis = Axis(start_ns=0, end_ns=100 * S, plan=plan, high=plan, low=plan, capacity=capacity)
    rows = draw(points, axis, width=width, height=height, style=glyphs(unicode=unicode))
    assert len(rows) == max(height, 0)
    assert all(len(line) == max(width, 0) for line in text_of(rows))


@given(POINTS.filter(bool), st.integers(20, 120), st.integers(5, 40), st.booleans())
def test_the_highest_value_is_drawn_in_the_highest_row_of_the_curve(points, width, height, unicode):
    """And that row is the one of its value: nothing measured is drawn above it."""
    style = glyphs(unicode=unicode)
    rows = draw(points, Axis(start_ns=0, end_ns=100 * S), width=width, height=height, style=style)
    drawn = [i for i, row in enumerate(rows) if any(role == "measured" for _, role in row)]
    peak = max(value for _, value in points)
    top = max(peak, 1) + max(max(peak, 1) // 20, 1)
    dots = (height - 1) * (4 if unicode else 1)
    expected = round((1 - peak / top) * (dots - 1)) // (4 if unicode else 1)
    assert drawn[0] == expected


@given(POINTS, st.integers(1, 50))
def test_downsampling_keeps_the_peak_and_the_order(points, limit):
    """However few points stay."""
    kept = downsample(points, limit)
    assert len(kept) <= limit
    assert kept == [point for point in points if point in kept] or len(set(points)) < len(points)
    if points:
        assert max(v for _, v in kept) == max(v for _, v in points)


def test_nothing_is_drawn_across_a_gap():
    """Where nobody sampled nothing is known."""
    points = [(0, 100), (S, 100), (90 * S, 100), (100 * S, 100)]
    rows = draw(
        points, Axis(start_ns=0, end_ns=100 * S), width=109, height=6, style=glyphs(unicode=False)
    )
    line = next(row for row in text_of(rows) if "*" in row)
    assert "**" in line
    assert " " * 50 in line[9:]


def test_what_lies_outside_of_the_window_is_not_drawn():
    """Neither the curve nor its scale."""
    axis = Axis(start_ns=50 * S, end_ns=60 * S, unit="MiB")
    rows = draw([(0, 10**12)], axis, width=60, height=6, style=glyphs(unicode=True))
    assert not any(role == "measured" for row in rows for _, role in row)


def test_a_limit_of_nothing_is_refused():
    """Zero points are no curve."""
    with pytest.raises(ValueError, match="0 points"):
        downsample([(0, 1)], 0)
