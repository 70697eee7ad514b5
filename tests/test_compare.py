"""memplan.compare: planned beside measured, with what nothing explains."""

from __future__ import annotations

from dataclasses import replace

import pytest
from factories import T0, make_line, make_phase, make_plan, make_run, make_sample

from memplan.compare import compare
from memplan.types import Device, Footprint, FrozenMap, Ledger, Peak
from memplan.units import GIB, MIB


def peak(value, entity="tree", metric="hwm_bytes"):
    series = make_sample(entity=entity, metric=metric).series
    return Peak(series=series, value=value, t_ns=T0, count=10)


def gpu_plan():
    """One GPU: weights 200, cache 8, overhead 400 (300..600) MiB."""
    parts = {"weights": 200 * MIB, "kv_cache": 8 * MIB, "overhead": 400 * MIB}
    ledger = Ledger(
        name="cuda:0",
        kind="gpu",
        capacity_bytes=GIB,
        reserve_bytes=0,
        parts=FrozenMap(parts),
        low_bytes=508 * MIB,
        high_bytes=808 * MIB,
    )
    lines = (
        make_line(),
        make_line(part="kv_cache", bytes=8 * MIB, low_bytes=8 * MIB, high_bytes=8 * MIB),
        make_line(part="overhead", bytes=400 * MIB, low_bytes=300 * MIB, high_bytes=600 * MIB),
    )
    return make_plan(devices=(ledger,), footprint=Footprint(lines=lines))


def test_the_unaccounted_line_is_the_peak_less_every_part():
    """Measured parts count as measured, the others as planned."""
    phases = [make_phase(counters=FrozenMap({"cpu.weights": 155 * MIB}))]
    result = compare(make_plan(), make_run(), peaks=[peak(620 * MIB)], phases=phases)
    cpu = result.devices[0]
    assert cpu.peak_bytes == 620 * MIB
    assert cpu.gap_bytes == 32 * MIB
    assert cpu.unaccounted_bytes == (620 - 155 - 8 - 30 - 400) * MIB
    assert cpu.measured_by == "peak RSS of the process tree"


@pytest.mark.parametrize(
    ("measured", "verdict"), [(478, "within"), (808, "within"), (809, "over"), (477, "under")]
)
def test_the_verdict_is_decided_at_the_edges_of_the_band(measured, verdict):
    """Both ends belong to it."""
    result = compare(make_plan(), make_run(), peaks=[peak(measured * MIB)])
    assert result.verdict == verdict
    assert result.devices[0].within_band == (verdict == "within")


def test_nothing_measured_is_no_verdict_and_no_zero():
    """None all through, and a note."""
    result = compare(make_plan(), make_run(), peaks=[])
    assert result.verdict is None
    assert all(row.peak_bytes is None and row.gap_bytes is None for row in result.devices)
    assert "nothing was measured on cpu" in result.notes


def test_offloaded_weights_are_measured_where_they_lie():
    """The disk's share is counted from inside."""
    phases = [make_phase(counters=FrozenMap({"disk.weights": 50 * MIB}))]
    result = compare(make_plan(), make_run(), peaks=[], phases=phases)
    disk = result.devices[1]
    assert (disk.peak_bytes, disk.gap_bytes, disk.within_band) == (50 * MIB, 0, True)


def test_weights_that_are_read_from_the_checkpoint_are_planned_there():
    """They take no new space on the disk, and they lie there all the same."""
    plan = make_plan()
    disk = plan.devices[1]
    read = replace(disk, parts=FrozenMap({}), low_bytes=0, high_bytes=0, reused_bytes=50 * MIB)
    phases = [make_phase(counters=FrozenMap({"disk.weights": 50 * MIB}))]
    again = replace(plan, devices=(plan.devices[0], read))
    row = compare(again, make_run(), peaks=[], phases=phases).devices[1]
    assert (row.planned_bytes, row.gap_bytes, row.within_band) == (50 * MIB, 0, True)
    assert [(part.part, part.planned_bytes) for part in row.parts] == [("weights", 50 * MIB)]


def test_the_start_phase_measures_the_overhead_of_a_host_process():
    """RSS after the imports and before the first weight."""
    phases = [make_phase(name="start", counters=FrozenMap({"process.rss": 333 * MIB}))]
    result = compare(make_plan(), make_run(), peaks=[peak(620 * MIB)], phases=phases)
    parts = {part.part: part.measured_bytes for part in result.devices[0].parts}
    assert parts["overhead"] == 333 * MIB


def test_a_process_on_a_gpu_is_held_against_the_whole_plan():
    """NVML's figure has the context in it; reserved and process are two numbers."""
    peaks = [
        peak(700 * MIB, "gpu:GPU-1/tree", "used_bytes"),
        peak(300 * MIB, "torch:cuda:0", "reserved_bytes"),
        peak(250 * MIB, "torch:cuda:0", "peak_allocated_bytes"),
    ]
    row = compare(gpu_plan(), make_run(), peaks=peaks).devices[0]
    assert (row.planned_bytes, row.peak_bytes) == (608 * MIB, 700 * MIB)
    assert row.peak_reserved_bytes == 300 * MIB
    overhead = next(part for part in row.parts if part.part == "overhead")
    assert overhead.measured_bytes == 400 * MIB


def test_an_allocator_reading_is_held_against_the_plan_without_overhead():
    """Like with like."""
    peaks = [peak(215 * MIB, "torch:cuda:0", "peak_allocated_bytes")]
    result = compare(gpu_plan(), make_run(), peaks=peaks)
    row = result.devices[0]
    assert (row.planned_bytes, row.low_bytes, row.high_bytes) == (208 * MIB, 208 * MIB, 208 * MIB)
    assert result.verdict == "over"
    assert all(part.part != "overhead" for part in row.parts)
    assert any("overhead is left out" in note for note in result.notes)


def test_the_device_table_tells_several_gpus_apart():
    """By uuid, whatever the order of the readings."""
    devices = [
        Device(name="cuda:0", kind="gpu", capacity_bytes=GIB, uuid="GPU-9"),
        Device(name="cuda:1", kind="gpu", capacity_bytes=GIB, uuid="GPU-1"),
    ]
    peaks = [
        peak(111 * MIB, "gpu:GPU-1/tree", "used_bytes"),
        peak(600 * MIB, "gpu:GPU-9/tree", "used_bytes"),
    ]
    row = compare(gpu_plan(), make_run(), peaks=peaks, devices=devices).devices[0]
    assert row.peak_bytes == 600 * MIB


def test_a_run_without_a_plan_shows_what_was_measured():
    """Unknown plan is None, not 0."""
    phases = [make_phase(counters=FrozenMap({"cpu.weights": 155 * MIB}))]
    result = compare(None, make_run(plan_id=None), peaks=[peak(620 * MIB)], phases=phases)
    (row,) = result.devices
    assert row.planned_bytes is None
    assert row.peak_bytes == 620 * MIB
    assert row.unaccounted_bytes == 465 * MIB
    assert result.verdict is None


@pytest.mark.parametrize(
    ("status", "word"), [("lost", "sampler died"), ("running", "still"), ("failed", "failed")]
)
def test_a_run_that_did_not_end_well_says_so(status, word):
    """A reader must know."""
    run = replace(make_run(), status=status, exit_code=3)
    assert any(word in note for note in compare(make_plan(), run, peaks=[]).notes)
