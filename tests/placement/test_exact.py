"""memplan.placement.exact: HiGHS against exhaustive search, and our fillings against HiGHS."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.placement.engines import PROFILES
from memplan.placement.exact import exact_fill, exact_spread
from memplan.placement.several import Block, spread
from memplan.placement.solve import fill_one
from memplan.placement.units import Unit
from memplan.units import GIB, MIB

pytest.importorskip("scipy")
STREAM = PROFILES["stream"]


def unit(position, size, block=None):
    return Unit(
        names=(f"m{position}",),
        layer=None,
        block=block,
        position=position,
        weight_bytes=size,
        buffer_bytes=0,
        reload_bytes=size,
        tensors=(),
    )


def best_by_trial(pieces, budget):
    """Return the most bytes that can stay, over all subsets; None when nothing can."""
    best = None
    for chosen in itertools.product((False, True), repeat=len(pieces)):
        stay = sum(u.weight_bytes for u, here in zip(pieces, chosen, strict=True) if here)
        away = [u.reload_bytes for u, here in zip(pieces, chosen, strict=True) if not here]
        if stay + max(away, default=0) <= budget:
            best = max(stay, best or 0)
    return best


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(0, 300))
@settings(max_examples=40, deadline=None)
def test_the_integer_program_finds_what_exhaustive_search_finds(sizes, budget):
    """Its optimum to the byte, and None when there is none."""
    pieces = [unit(i, size * MIB) for i, size in enumerate(sizes)]
    found = exact_fill(pieces, budget * MIB)
    best = best_by_trial(pieces, budget * MIB)
    assert (found is None) == (best is None)
    if found is not None:
        assert found.gain_bytes == pytest.approx(best, abs=MIB // 100)
        assert found.gap <= 1e-3


@given(
    st.lists(
        st.tuples(st.integers(1, 400), st.integers(1, 40)), min_size=1, max_size=5, unique=True
    ),
    st.integers(10, 100),
)
@settings(max_examples=40, deadline=None)
def test_our_filling_never_beats_the_optimum_and_hardly_falls_short(kinds, share):
    """Groups of equal modules, as models have them: short of it by less than one of them."""
    sizes = [size * MIB for size, count in kinds for _ in range(count)]
    pieces = [unit(i, size) for i, size in enumerate(sizes)]
    budget = share * sum(sizes) // MIB // 100 * MIB
    ours, exact = fill_one(pieces, budget), exact_fill(pieces, budget)
    assert (ours is None) == (exact is None)
    if ours is not None and exact is not None:
        stay = sum(u.weight_bytes for u in pieces if u.position in ours.resident)
        assert stay <= exact.bound_bytes + MIB
        assert stay > exact.gain_bytes - max(sizes)


def test_one_unit_is_given_up_for_two_that_fit_closer():
    """7 + 1 leaves two unused where 5 + 5 leaves none."""
    pieces = [unit(i, size * MIB) for i, size in enumerate([1, 5, 5, 7, 7, 7, 7, 7])]
    ours = fill_one(pieces, 17 * MIB)
    assert ours.resident == {1, 2}
    assert ours.reload_bytes == 7 * MIB


def test_pins_are_constraints_of_both():
    """What must go goes, and its buffer is there."""
    pieces = [unit(0, 50 * MIB), unit(1, 20 * MIB), unit(2, 20 * MIB)]
    ours = fill_one(pieces, 90 * MIB, pins={0: False})
    assert ours.resident == {1, 2}
    assert ours.reload_bytes == 50 * MIB
    assert exact_fill(pieces, 90 * MIB, pins={0: False}).gain_bytes == 40 * MIB
    assert fill_one(pieces, 80 * MIB, pins={0: True}).resident >= {0}
    assert fill_one(pieces, 40 * MIB, pins={0: False, 1: True}) is None


@given(
    st.integers(6, 30),
    st.lists(st.integers(200, 3000), min_size=2, max_size=4),
    st.integers(0, 3),
)
@settings(max_examples=25, deadline=None)
def test_several_gpus_are_filled_nearly_to_the_optimum(layers, rooms, heavy):
    """Layers of three modules, the first ones larger, one cache each, an end of 300 MiB."""
    blocks = []
    at = 0
    for layer in range(layers):
        more = 40 if layer < heavy else 0
        parts = (60 + more, 30, 10)
        units = tuple(unit(at + i, size * MIB, f"l{layer}") for i, size in enumerate(parts))
        blocks.append(Block(units, 5 * MIB))
        at += 3
    blocks.append(Block((unit(at, 300 * MIB),), 0))
    budgets = [room * MIB for room in rooms]
    found = spread(blocks, budgets, tight=budgets, engine=STREAM, pins={}, away=True, lookups=True)
    bounds = [
        exact_spread(
            [b.units for b in blocks],
            [b.cache_bytes for b in blocks],
            budgets[main:],
            engine=STREAM,
        )
        for main in range(len(budgets))
    ]
    exact = max((b.gain_bytes for b in bounds if b is not None), default=None)
    if found is None:
        return
    total = sum(b.weight_bytes for b in blocks)
    stay = sum(u.weight_bytes for b in blocks for u in b.units if u.position in found.fill.resident)
    assert stay <= exact + MIB
    # Three modules of a layer (100 MiB) at most, where the optimum takes layers out of order.
    assert stay >= exact - 100 * MIB
    _charged(blocks, budgets, found, total)


def _charged(blocks, budgets, found, total):
    held = [0] * len(budgets)
    for block, gpu in zip(blocks, found.runs, strict=True):
        held[gpu] += block.cache_bytes
        for piece in block.units:
            here = piece.position in found.fill.resident
            held[gpu] += piece.weight_bytes if here else 0
            assert here or gpu == found.main
    held[found.main] += found.fill.reload_bytes
    assert all(size <= room for size, room in zip(held, budgets, strict=True))
    assert total < 64 * GIB
