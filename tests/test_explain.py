"""memplan.explain: what makes up a gap, and what a plan has alive in each phase."""

from __future__ import annotations

from factories import T0, make_phase, make_plan, make_run
from hypothesis import given
from hypothesis import strategies as st

from memplan.compare import compare
from memplan.explain import gap_of, gap_sentence, phase_parts, phase_rows, worst
from memplan.types import FrozenMap, Peak, Series
from memplan.units import MIB

S = 10**9


def peaks(value):
    series = Series(run_id="r-1", entity="tree", metric="hwm_bytes")
    return (Peak(series=series, value=value, t_ns=T0, count=3),)


def phase(weights):
    counters = FrozenMap({"cpu.weights": weights})
    return make_phase(counters=counters)


@given(st.integers(0, 4000 * MIB), st.integers(0, 400 * MIB))
def test_the_terms_add_up_to_the_gap(peak, weights):
    """Each measured part's difference, and what nothing explains."""
    comparison = compare(make_plan(), make_run(), peaks=peaks(peak), phases=[phase(weights)])
    gap = gap_of(comparison.devices[0])
    assert sum(term.bytes for term in gap.terms) == gap.gap_bytes == peak - 588 * MIB
    sizes = [abs(term.bytes) for term in gap.terms]
    assert sizes == sorted(sizes, reverse=True)
    assert "activations" in gap.unmeasured
    assert "weights" not in gap.unmeasured


def test_the_sentence_names_size_share_side_and_causes():
    """One for people, in the unit that they chose."""
    found = compare(make_plan(), make_run(), peaks=peaks(620 * MIB), phases=[phase(160 * MIB)])
    words = gap_sentence(found, "MiB")
    assert words.startswith("cpu peaked 32.00 MiB (5.4%) above its plan, inside its band: ")
    assert "unaccounted +22.0, weights +10.0 MiB." in words
    assert "Not counted one by one: kv_cache, activations, overhead" in words
    exact = compare(make_plan(), make_run(), peaks=peaks(588 * MIB))
    assert gap_sentence(exact, "MiB") == "cpu peaked at its plan to the byte."


def test_nothing_planned_or_measured_has_no_gap():
    """And no sentence."""
    assert worst(compare(None, make_run(), peaks=peaks(5))) is None
    assert gap_sentence(compare(make_plan(), make_run(), peaks=()), "GiB") == ""


def test_each_phase_has_its_parts_and_its_peak():
    """Phases of one name are one row; the highest sample in any of them counts."""
    phases = [
        make_phase(name="load", started_ns=T0, ended_ns=T0 + 10 * S),
        make_phase(name="decode", started_ns=T0 + 10 * S, ended_ns=T0 + 20 * S),
        make_phase(name="decode", started_ns=T0 + 30 * S, ended_ns=None),
        make_phase(name="my own", started_ns=T0 + 50 * S, ended_ns=T0 + 51 * S),
    ]
    curve = [(T0 + i * S, i * MIB) for i in range(40)]
    rows = {r.name: r for r in phase_rows(make_plan(), phases, {"cpu": curve}, T0 + 35 * S)}
    assert rows["load"].planned_bytes == (150 + 400) * MIB
    assert rows["load"].peak_bytes == 10 * MIB
    assert rows["decode"].planned_bytes == (150 + 8 + 400) * MIB
    assert (rows["decode"].count, rows["decode"].peak_bytes) == (2, 35 * MIB)
    assert rows["decode"].seconds == 10
    assert rows["my own"].planned_bytes is None
    assert rows["my own"].peak_bytes is None


def test_phases_without_a_rule_are_not_planned():
    """The names that memplan.measure documents have one."""
    assert phase_parts("warm-up") is None
    for name in ("start", "load", "prefill", "decode", "forward", "backward", "optimizer_step"):
        assert "overhead" in phase_parts(name)
