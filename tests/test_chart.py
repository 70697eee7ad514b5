"""memplan.chart: what is drawn, where, and that no peak disappears."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from goldens import check_golden
from hypothesis import given
from hypothesis import strategies as st

from memplan.chart import GLYPHS, Axis, Chart, Words, columns, downsample, draw, glyphs
from memplan.units import MIB

S = 10**9


def text_of(rows):
    return ["".join(piece for piece, _ in row) for row in rows]


def ramp(seconds, peak):
    return [(i * S, peak * MIB * i // seconds) for i in range(seconds + 1)]


@pytest.mark.parametrize("kind", GLYPHS)
def test_a_chart_looks_like_this(kind):
    """A ramp, a gap and a fall against a plan with its band."""
    points = [p for p in ramp(60, 600) if not 30 * S < p[0] < 40 * S]
    points += [(t * S, 200 * MIB) for t in range(61, 80)]
    axis = Axis(
        start_ns=0,
        end_ns=80 * S,
        plan=588 * MIB,
        low=478 * MIB,
        high=808 * MIB,
        capacity=1024 * MIB,
        unit="MiB",
        left="10:00:00",
        right="10:01:20",
    )
    rows = draw(points, axis, width=72, height=14, style=glyphs(kind))
    check_golden(f"chart_{kind}.txt", "\n".join(text_of(rows)) + "\n")


POINTS = st.lists(st.tuples(st.integers(0, 100 * S), st.integers(0, 2**50)), max_size=60).map(
    sorted
)
KIND = st.sampled_from(sorted(GLYPHS))
LEVEL = st.none() | st.integers(0, 2**50)


@given(POINTS, LEVEL, LEVEL, st.integers(-3, 120), st.integers(-2, 40), KIND)
def test_the_size_is_always_what_was_asked_for(points, plan, capacity, width, height, kind):
    """Whatever the numbers; too small is empty and no crash."""
    axis = Axis(start_ns=0, end_ns=100 * S, plan=plan, high=plan, low=plan, capacity=capacity)
    rows = draw(points, axis, width=width, height=height, style=glyphs(kind))
    assert len(rows) == max(height, 0)
    assert all(len(line) == max(width, 0) for line in text_of(rows))


@given(POINTS, LEVEL, st.lists(st.integers(0, 60), max_size=4), st.integers(5, 30), KIND)
def test_a_chart_that_goes_on_looks_like_one_drawn_at_once(points, plan, cuts, height, kind):
    """Wherever the points are cut, and although it was shown in between."""
    axis = Axis(start_ns=0, end_ns=90 * S, plan=plan)
    chart = Chart(axis, width=60, height=height, style=glyphs(kind))
    ends = [0, *sorted(cuts), len(points)]
    for begin, end in itertools.pairwise(ends):
        chart.add(points[begin:end])
        shown = chart.rows()
    assert shown == draw(points, axis, width=60, height=height, style=glyphs(kind))


ODD = POINTS.map(lambda points: [(t // 2 * 2 + 1, value) for t, value in points])


@given(ODD, LEVEL, st.lists(st.integers(0, 9), max_size=4), st.integers(5, 30), KIND)
def test_a_chart_that_moves_looks_like_one_drawn_at_once(points, plan, moves, height, kind):
    """Its edges by whole cells, and points come in between."""
    style, words = glyphs(kind), Words()
    count = columns(60, style, words)
    cell = S * style.across
    axis = Axis(start_ns=0, end_ns=S * count, plan=plan, gap_ns=20 * S)
    chart = Chart(axis, width=60, height=height, style=style)
    begin = 0
    for cells in [0, *moves]:
        shift = cells * cell
        axis = replace(axis, start_ns=axis.start_ns + shift, end_ns=axis.end_ns + shift)
        assert chart.move(axis)
        end = next((i for i, (t, _) in enumerate(points) if t > axis.end_ns), len(points))
        chart.add(points[begin:end])
        begin = end
        assert chart.rows() == draw(points[:end], axis, width=60, height=height, style=style)


def test_a_chart_does_not_move_between_its_cells():
    """Nor to another length of time: it is then drawn anew."""
    style = glyphs("braille")
    count = columns(60, style, Words())
    chart = Chart(Axis(start_ns=0, end_ns=count * S), width=60, height=8, style=style)
    assert not chart.move(Axis(start_ns=S // 2, end_ns=count * S + S // 2))
    assert not chart.move(Axis(start_ns=S, end_ns=count * S + S))
    assert not chart.move(Axis(start_ns=2 * S, end_ns=count * S + 3 * S))
    assert chart.move(Axis(start_ns=2 * S, end_ns=count * S + 2 * S))


@given(POINTS.filter(bool), st.integers(20, 120), st.integers(5, 40), KIND)
def test_the_highest_value_is_drawn_in_the_highest_row_of_the_curve(points, width, height, kind):
    """And that row is the one of its value: nothing measured is drawn above it."""
    style = glyphs(kind)
    rows = draw(points, Axis(start_ns=0, end_ns=100 * S), width=width, height=height, style=style)
    drawn = [
        i
        for i, row in enumerate(rows)
        if any(role == "measured" and set(text) & set(style.cells[1:]) for text, role in row)
    ]
    peak = max(value for _, value in points)
    top = max(peak, 1) + max(max(peak, 1) // 20, 1)
    dots = (height - 1) * style.down
    assert drawn[0] == round((1 - peak / top) * (dots - 1)) // style.down


def test_a_column_shows_the_highest_and_the_lowest_of_its_samples():
    """A spike between two quiet samples, and the dip after it: no mean hides either."""
    points = [(i * S // 100, 500) for i in range(1000)]
    points[500], points[505] = (5 * S, 1000), (5 * S + S // 20, 0)
    rows = draw(points, Axis(start_ns=0, end_ns=10 * S), width=28, height=9, style=glyphs("ascii"))
    column = [row[8 + 10] for row in text_of(rows)[:-1]]
    assert column == ["*"] * 8


def test_lines_are_named_in_words_and_what_lies_above_says_so():
    """Without colour, and without a legend to look up."""
    axis = Axis(start_ns=0, end_ns=S, plan=100 * MIB, capacity=24 * 1024 * MIB, unit="MiB")
    text = "\n".join(text_of(draw([(0, MIB)], axis, width=60, height=8, style=glyphs("ascii"))))
    assert "plan" in text
    assert "measured" in text
    assert "capacity ^" in text
    near = Axis(start_ns=0, end_ns=S, plan=100 * MIB, capacity=128 * MIB, unit="MiB")
    text = "\n".join(text_of(draw([(0, MIB)], near, width=60, height=8, style=glyphs("ascii"))))
    assert "====" in text
    assert "^" not in text


def test_charts_of_one_width_share_their_edges():
    """Stacked over one time axis, whatever their scales."""
    small = Axis(start_ns=0, end_ns=S, plan=3, unit="GiB")
    large = Axis(start_ns=0, end_ns=S, plan=2**60, unit="GiB")
    points = [(0, 1), (S, 1)]
    ends = []
    for axis in (small, large):
        rows = draw(points, axis, width=60, height=6, style=glyphs("ascii"), floor=False)
        line = next(row for row in text_of(rows) if "---" in row)
        ends.append((line.index("---"), line.rindex("-")))
    assert ends[0] == ends[1]


@given(POINTS, st.integers(2, 50))
def test_downsampling_keeps_peak_valley_and_order(points, limit):
    """However few points stay."""
    kept = downsample(points, limit)
    assert len(kept) <= limit
    assert [t for t, _ in kept] == sorted(t for t, _ in kept)
    assert set(kept) <= set(points)
    if points:
        assert max(v for _, v in kept) == max(v for _, v in points)
        assert min(v for _, v in kept) == min(v for _, v in points)


def test_nothing_is_drawn_across_a_gap():
    """Where nobody sampled nothing is known."""
    points = [(0, 100), (S, 100), (90 * S, 100), (100 * S, 100)]
    rows = draw(
        points, Axis(start_ns=0, end_ns=100 * S), width=119, height=6, style=glyphs("ascii")
    )
    line = next(row for row in text_of(rows) if "*" in row)
    assert "**" in line
    assert " " * 50 in line[8:90]


def test_what_lies_outside_of_the_window_is_not_drawn():
    """Neither the curve nor its scale."""
    axis = Axis(start_ns=50 * S, end_ns=60 * S, unit="MiB")
    rows = draw([(0, 10**12)], axis, width=60, height=6, style=glyphs("braille"))
    assert not any(role == "measured" for row in rows for _, role in row)


def test_a_limit_of_nothing_is_refused():
    """One point cannot be the highest and the lowest."""
    with pytest.raises(ValueError, match="1 points"):
        downsample([(0, 1)], 1)
