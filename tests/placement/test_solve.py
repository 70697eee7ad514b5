"""memplan.placement.solve: the fill and the split, held against exhaustive search."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from memplan.placement.solve import fill_one, split_layers
from memplan.placement.units import Unit
from memplan.units import MIB


def unit(position, weight, reload=None):
    return Unit(
        names=(f"m{position}",),
        layer=None,
        position=position,
        weight_bytes=weight,
        buffer_bytes=0,
        reload_bytes=weight if reload is None else reload,
        tensors=(),
    )


def units(sizes):
    return [unit(i, size * MIB) for i, size in enumerate(sizes)]


SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=9)


@given(SIZES, st.integers(-5, 400))
def test_a_fill_never_needs_more_than_its_budget(sizes, budget):
    """Resident bytes and the reload buffer together stay within it."""
    pieces = units(sizes)
    fill = fill_one(pieces, budget * MIB)
    if fill is None:
        return
    resident = sum(u.weight_bytes for u in pieces if u.position in fill.resident)
    away = [u.reload_bytes for u in pieces if u.position not in fill.resident]
    assert fill.reload_bytes == max(away, default=0)
    assert resident + fill.reload_bytes <= budget * MIB


@given(SIZES, st.integers(0, 400))
def test_a_fill_is_found_whenever_there_is_one_and_is_nearly_the_best(sizes, budget):
    """Against all subsets: feasible alike, and short of the best by less than the largest unit."""
    pieces = units(sizes)
    best = None
    for count in range(len(pieces) + 1):
        for chosen in itertools.combinations(pieces, count):
            away = [u for u in pieces if u not in chosen]
            resident = sum(u.weight_bytes for u in chosen)
            if resident + max((u.reload_bytes for u in away), default=0) <= budget * MIB:
                best = max(resident, best or 0)
    fill = fill_one(pieces, budget * MIB)
    assert (fill is None) == (best is None)
    if fill is not None and best is not None:
        resident = sum(u.weight_bytes for u in pieces if u.position in fill.resident)
        assert best - resident <= max(u.weight_bytes for u in pieces)


def test_what_is_too_large_to_reload_stays_resident():
    """A head of 100 MiB cannot be streamed through a buffer of 10."""
    pieces = units([100, 10, 10, 10, 10])
    fill = fill_one(pieces, 125 * MIB)
    assert fill is not None
    assert 0 in fill.resident
    assert fill.reload_bytes == 10 * MIB


def test_small_modules_stay_where_the_work_is():
    """Streaming a norm costs a call and saves nothing."""
    pieces = [*units([50, 50, 50]), unit(3, 1000), unit(4, 2000)]
    fill = fill_one(pieces, 120 * MIB)
    assert fill is not None
    assert {3, 4} <= fill.resident


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=9),
    st.lists(st.integers(0, 80), min_size=1, max_size=3),
)
def test_a_split_keeps_order_fits_and_is_found_whenever_there_is_one(loads, budgets):
    """Against all contiguous cuts."""
    cuts = itertools.combinations_with_replacement(range(len(loads) + 1), len(budgets) - 1)
    possible = False
    for cut in cuts:
        edges = (0, *cut, len(loads))
        sums = [sum(loads[a:b]) for a, b in itertools.pairwise(edges)]
        possible |= all(load <= budget for load, budget in zip(sums, budgets, strict=True))
    found = split_layers(loads, budgets)
    assert (found is not None) == possible
    if found is not None:
        assert found == sorted(found)
        for i, budget in enumerate(budgets):
            assert sum(x for x, d in zip(loads, found, strict=True) if d == i) <= budget


def test_a_split_leaves_the_fullest_device_as_empty_as_can_be():
    """Eight equal layers on two equal devices: four each, not as many as fit on the first."""
    assert split_layers([10] * 8, [100, 100]) == [0] * 4 + [1] * 4
