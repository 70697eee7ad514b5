"""memplan.search.ask: the largest value that fits, and questions answered step by step."""

from __future__ import annotations

from dataclasses import replace

import pytest
from factories import make_plan
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.errors import UsageError
from memplan.search.ask import Grow, Question, answer, largest
from memplan.types import Verdict


@settings(deadline=None)
@given(
    limit=st.integers(0, 5000),
    slope=st.integers(1, 10**6),
    bend=st.integers(0, 50),
    least=st.integers(1, 300),
    span=st.integers(0, 4000),
    step=st.sampled_from([1, 7, 64, 256]),
    guess=st.integers(0, 10_000),
)
def test_the_largest_is_what_trying_all_would_find(limit, slope, bend, least, span, step, guess):
    """Whatever the curve: all multiples of the step and both ends are candidates."""
    most = least + span
    asked = []

    def room(value):
        asked.append(value)
        return slope * (limit - value) + bend * (limit - value) ** 2 if value <= limit else None

    tried = [least, *(v for v in range(0, most + 1, step) if v > least), most]
    expected = max((value for value in tried if value <= limit), default=None)
    assert largest(room, least=least, most=most, step=step, guess=guess) == expected
    assert len(asked) == len(set(asked))


def test_a_straight_line_needs_few_looks():
    """Two points and the proof that one more does not fit."""
    asked = []

    def room(value):
        asked.append(value)
        return 1000 * (777 - value) if value <= 777 else None

    assert largest(room, least=1, most=100_000, guess=300) == 777
    assert len(asked) <= 5


@settings(deadline=None)
@given(limit=st.integers(1, 5000), probes=st.integers(1, 6))
def test_few_probes_find_something_that_fits(limit, probes):
    """Where each look takes seconds the answer may be smaller, never larger."""
    asked = []

    def room(value):
        asked.append(value)
        return (limit - value) if value <= limit else None

    found = largest(room, least=1, most=10_000, guess=2, probes=probes)
    assert found is not None
    assert 1 <= found <= limit
    assert len(asked) <= probes + 1


def planner_of(sizes):
    """Return a planner for which a setting of "quant" decides what is needed of 10 GiB."""

    def planner(settings):
        quant = settings.get("quant", "none")
        if quant == "odd":
            raise UsageError("no such thing")
        fits = sizes[quant] * settings.get("batch", 1) <= 10
        placement = replace(make_plan().placement, offloaded_bytes=0)
        return make_plan(verdict=Verdict(fits=fits, reason=""), placement=placement)

    return planner


def test_the_first_step_that_fits_is_taken():
    """Mildest first, what cannot be planned is noted, and nothing after it is tried."""
    steps = tuple({"quant": name} for name in ("none", "odd", "int8", "nf4"))
    found = answer(Question(name="q", steps=steps), planner_of({"none": 16, "int8": 9, "nf4": 5}))
    assert [tried.settings["quant"] for tried in found.found] == ["int8"]
    assert [str(problem) for problem in found.problems] == ["no such thing"]
    assert found.plans == 3


def test_nothing_that_fits_is_an_answer_too():
    """The plan that failed says why."""
    found = answer(Question(name="q", steps=({},)), planner_of({"none": 16}))
    assert found.found == ()
    assert not found.failed[0].verdict.fits


def test_an_error_of_the_program_is_no_answer():
    """Only what memplan says itself is noted."""

    def broken(settings):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        answer(Question(name="q", steps=({},), grow=Grow(option="batch", least=1, most=2)), broken)
