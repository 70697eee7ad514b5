"""memplan.report: golden texts."""

from __future__ import annotations

from dataclasses import replace

from factories import T0, make_phase, make_plan, make_run, make_sample
from goldens import check_golden
from hypothesis import HealthCheck, given, settings
from strategies import instances

from memplan.compare import compare
from memplan.report import comparison_text, plan_text, run_text, table
from memplan.types import Change, FrozenMap, Peak, Plan, Series
from memplan.units import MIB

PEAKS = [
    Peak(series=make_sample().series, value=620 * MIB, t_ns=T0, count=10),
    Peak(series=make_sample(metric="hwm_bytes").series, value=630 * MIB, t_ns=T0, count=10),
    Peak(series=make_sample(metric="processes_count").series, value=3, t_ns=T0, count=10),
]
PHASES = [
    make_phase(name="start", counters=FrozenMap({"process.rss": 333 * MIB})),
    make_phase(counters=FrozenMap({"cpu.weights": 150 * MIB, "disk.weights": 50 * MIB})),
]


def test_a_plan_reads_like_this():
    """Offload on a host, sizes in MiB."""
    check_golden("plan.txt", plan_text(make_plan(), unit="MiB"))


def test_a_plan_that_does_not_fit_says_what_would():
    """Changes and no bars."""
    plan = make_plan(id=None)
    change = Change(option="context", value="256", total_bytes=600 * MIB, note="a shorter context")
    verdict = replace(plan.verdict, fits=False, reason="cpu lacks 1.00 GiB", changes=(change,))
    text = plan_text(replace(plan, verdict=verdict), unit="MiB", bars=False)
    check_golden("plan_does_not_fit.txt", text)


def test_a_comparison_reads_like_this():
    """Weights planned = measured, an unaccounted line, a verdict in words."""
    comparison = compare(make_plan(), make_run(), peaks=PEAKS, phases=PHASES)
    check_golden("comparison.txt", comparison_text(comparison, plan=make_plan(), unit="MiB"))


def test_a_peak_above_its_band_says_by_how_much():
    """The distance is to the band's edge."""
    peaks = [replace(PEAKS[1], value=900 * MIB)]
    text = comparison_text(compare(make_plan(), make_run(), peaks=peaks), unit="MiB")
    assert "OVER: cpu peaked 92.00 MiB above its planned band" in text
    assert "ABOVE" in text


def test_a_run_reads_like_this():
    """Phases with their counters, peaks with their samples."""
    check_golden("run.txt", run_text(make_run(), phases=PHASES, peaks=PEAKS, unit="MiB"))


def test_a_run_of_which_nothing_is_known_says_so():
    """No empty tables."""
    text = run_text(replace(make_run(), ended_ns=None, exit_code=None, status="running"))
    assert "nothing was measured" in text


def test_columns_are_as_wide_as_their_widest_cell():
    """Left and right alignment, nothing trailing."""
    lines = table([["a", "1"], ["long", "22"]], "lr", "")
    assert lines == ["a      1", "long  22"]


@given(instances(Plan))
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=30)
def test_every_plan_can_be_printed(plan):
    """Whatever its numbers are."""
    assert plan_text(plan).endswith("\n")


def test_a_run_lists_its_largest_processes_and_counts_the_rest():
    """Helpers that come and go do not hide the program."""
    peaks = [
        Peak(
            series=Series(run_id="r-1", entity=f"process:{pid}", metric="rss_bytes"),
            value=pid * MIB,
            t_ns=T0,
            count=1,
        )
        for pid in range(1, 10)
    ]
    text = run_text(make_run(), peaks=peaks, unit="MiB")
    assert "process:9" in text
    assert "process:6" in text
    assert "process:5" not in text
    assert "and 5 smaller processes: memplan export" in text
