"""The sampler with clocks that move when told to."""

from __future__ import annotations

import logging

import pytest
from memplan_daemon.clock import NS, SystemClock
from memplan_daemon.collectors.base import Reading
from memplan_daemon.collectors.process import ProcessCollector
from memplan_daemon.sampler import BATCH_SAMPLES, BUFFER_S, Sampler

from memplan.errors import DaemonError, StoreError, UsageError
from memplan.store.reader import StoreReader
from memplan.store.writer import LocalWriter
from memplan.testing import ManualClock

KIB = 1024


class Constant:
    """Reads one number, of the host only."""

    def __init__(self, value=7, entity="host"):
        self.value = value
        self.entity = entity
        self.fail = None

    def collect(self, watch):
        if self.fail is not None:
            raise self.fail
        if watch.run_id is None:
            yield Reading(self.entity, "used_bytes", self.value)


@pytest.fixture
def clock():
    return ManualClock()


def make(clock, writer, *collectors, proc=None, interval=1.0, host=1.0, staged=False):
    return Sampler(
        clock=clock,
        collectors=collectors,
        writer=writer,
        interval_s=interval,
        host_interval_s=host,
        proc=proc.folder if proc is not None else None,
        staged=staged,
    )


def test_a_tick_is_one_batch_of_exact_values(clock, writer, proc):
    """Host and run readings go in one transaction, all with the tick's time."""
    proc.add(10, rss=1000, hwm=1200)
    proc.add(11, 10, rss=300, hwm=400)
    sampler = make(clock, writer, Constant(), ProcessCollector(clock), proc=proc)
    sampler.watch(10, "r-1")
    sampler.tick()
    assert len(writer.batches) == 1
    assert {s.t_ns for s in writer.samples} == {clock.wall_ns()}
    assert writer.values("host", "used_bytes") == [7]
    assert writer.values("tree", "rss_bytes") == [1300 * KIB]
    runs = {s.series.entity: s.series.run_id for s in writer.samples}
    assert (runs["host"], runs["tree"]) == (None, "r-1")
    assert sampler.counts.samples_written == len(writer.samples)


def test_ticks_stay_on_their_grid_and_late_ones_are_not_made_up_for(clock, writer):
    """After a stall of 3.5 intervals there is one tick, and the next is on the grid."""
    sampler = make(clock, writer, Constant())
    assert sampler.due_in_s() == 0
    sampler.tick()
    assert sampler.due_in_s() == 1.0
    clock.advance(4.5)
    assert sampler.due_in_s() == 0
    sampler.tick()
    assert sampler.due_in_s() == 0.5
    assert (sampler.counts.ticks, sampler.counts.late_ticks) == (2, 3)


def test_a_wall_clock_that_jumps_back_loses_nothing(clock, writer):
    """Cadence is monotonic; times are stored as they were read; no two ticks share one."""
    sampler = make(clock, writer, Constant())
    for jump in (0, -3600, 0, 86400, -86401):
        clock.jump_wall(jump)
        sampler.tick()
        clock.advance(1)
    times = [s.t_ns for s in writer.samples]
    assert len(times) == len(set(times)) == 5
    assert times[1] < times[0] - 3500 * 10**9
    assert sampler.counts.late_ticks == 0


def test_a_wall_clock_that_stands_still_makes_two_times(clock, writer):
    """Two ticks at one reading are told apart by a nanosecond."""
    sampler = make(clock, writer, Constant())
    sampler.tick()
    clock.advance(1)
    clock.jump_wall(-1)
    sampler.tick()
    first, second = (s.t_ns for s in writer.samples)
    assert second == first + 1


def test_the_host_is_sampled_at_its_own_pace(clock, writer):
    """A run at 10 Hz does not sample the host at 10 Hz."""
    sampler = make(clock, writer, Constant(), interval=0.1)
    for _ in range(21):
        sampler.tick()
        clock.advance(0.1)
    assert writer.values("host", "used_bytes") == [7, 7, 7]


def test_a_failing_collector_is_logged_once_and_the_others_go_on(clock, writer, caplog):
    """It is left out until it works again, and logged again when it fails anew."""
    bad, good = Constant(entity="gpu:x"), Constant()
    sampler = make(clock, writer, bad, good)
    bad.fail = ZeroDivisionError("a bug")
    with caplog.at_level(logging.WARNING, "memplan.daemon"):
        for _ in range(3):
            sampler.tick()
            clock.advance(1)
    assert [r.getMessage() for r in caplog.records] == ["Constant failed and is left out"]
    assert writer.values("host", "used_bytes") == [7, 7, 7]
    bad.fail = None
    sampler.tick()
    assert writer.values("gpu:x", "used_bytes") == [7]
    bad.fail = OSError("again")
    clock.advance(1)
    with caplog.at_level(logging.WARNING, "memplan.daemon"):
        sampler.tick()
    assert len(caplog.records) == 2


def test_samples_wait_while_the_store_is_full_and_go_when_it_is_not(clock, writer):
    """Nothing is lost and the order is kept."""
    counter = Constant()
    sampler = make(clock, writer, counter)
    writer.error = StoreError("the disk is full")
    for value in range(5):
        counter.value = value
        sampler.tick()
        clock.advance(1)
    assert sampler.store_error == "the disk is full"
    assert not sampler.store_gone
    assert writer.batches == []
    writer.error = None
    counter.value = 5
    sampler.tick()
    assert writer.values("host", "used_bytes") == [0, 1, 2, 3, 4, 5]
    assert (sampler.store_error, sampler.counts.samples_dropped) == ("", 0)


def test_what_waits_too_long_is_dropped_and_counted(clock, writer):
    """The oldest go first; a minute's worth stays."""
    sampler = make(clock, writer, Constant())
    writer.error = DaemonError("gone")
    for _ in range(int(BUFFER_S) + 11):
        sampler.tick()
        clock.advance(1)
    assert sampler.store_gone
    assert sampler.counts.samples_dropped == 10
    writer.error = None
    sampler.offer([])
    assert len(writer.samples) == BUFFER_S + 1
    assert not sampler.store_gone


def test_a_long_backlog_goes_in_parts_of_whole_ticks(clock, writer):
    """No transaction is larger than the limit, unless one tick is."""

    class Many:
        def collect(self, watch):
            return [Reading("host", f"m{i}_bytes", i) for i in range(9000)]

    sampler = make(clock, writer, Many())
    writer.error = StoreError("full")
    for _ in range(5):
        sampler.tick()
        clock.advance(1)
    writer.error = None
    sampler.offer([])
    assert [len(batch) for batch in writer.batches] == [18000, 18000, 9000]
    assert max(map(len, writer.batches)) <= BATCH_SAMPLES


def test_what_the_store_itself_gave_up_is_counted_too(clock, writer):
    """Its ring is not endless; what fell out of it was never written."""
    sampler = make(clock, writer, Constant())
    for _ in range(9):
        sampler.tick()
        clock.advance(1)
    writer.dropped = 7
    sampler.counts.samples_dropped = 1
    sampler.update_counts()
    assert sampler.dropped == 8
    assert sampler.counts.samples_written == 2


def test_what_the_store_holds_back_waits_and_is_not_written(clock, tmp_path):
    """A flush of its own, or one that a client causes, makes it written."""

    def monotonic_s():
        return clock.monotonic_ns() / NS

    with LocalWriter(tmp_path / "m.db", flush_s=10, monotonic_s=monotonic_s) as store:
        sampler = make(clock, store, Constant(), staged=True)
        counts = sampler.counts
        seen = []
        for _ in range(12):
            sampler.tick()
            clock.advance(1)
            seen.append((counts.samples_written, counts.samples_waiting))
        assert seen == [*((0, i) for i in range(1, 11)), (11, 0), (11, 1)]
        store.write_samples([])
        sampler.update_counts()
        assert (counts.samples_written, counts.samples_waiting) == (12, 0)
        with StoreReader(tmp_path / "m.db") as reader:
            assert len(reader.samples(None).samples) == 12


def test_what_the_store_refuses_waits(clock, writer):
    """Until it goes, or is given up."""
    sampler = make(clock, writer, Constant())
    writer.error = StoreError("full")
    sampler.tick()
    assert (sampler.counts.samples_written, sampler.counts.samples_waiting) == (0, 1)
    writer.error = None
    sampler.offer([])
    assert (sampler.counts.samples_written, sampler.counts.samples_waiting) == (1, 0)


def test_what_waits_at_the_end_is_counted_as_dropped(clock, writer):
    """Nobody is told that all is well."""
    sampler = make(clock, writer, Constant())
    writer.error = StoreError("full")
    sampler.tick()
    sampler.close()
    assert sampler.counts.samples_dropped == 1


def test_a_watch_ends_with_its_tree(clock, writer, proc):
    """After the last process ended it has a final row; no more samples, and no run is watched."""
    proc.add(10, rss=1000)
    sampler = make(clock, writer, ProcessCollector(clock), proc=proc, host=None)
    sampler.watch(10, "r-1")
    assert sampler.watched == {"r-1": 10}
    sampler.tick()
    proc.remove(10)
    sampler.tick()
    assert sampler.watched == {}
    assert len(writer.batches) == 2
    assert {s.series.metric: s.value for s in writer.batches[1]} == {
        "final_rss_bytes": 1000 * KIB,
        "final_hwm_bytes": 1000 * KIB,
    }
    sampler.tick()
    assert len(writer.batches) == 2
    assert sampler._layouts._runs.keys() <= {None}


def test_a_process_that_is_not_there_cannot_be_watched(clock, writer, proc):
    """It is an error of whoever asks."""
    with pytest.raises(DaemonError, match="no process 99"):
        make(clock, writer, proc=proc).watch(99, "r-1")


@pytest.mark.parametrize("interval", [0, -1, 0.001, float("nan"), float("inf")])
def test_an_interval_that_makes_no_sense_is_refused(clock, writer, interval):
    """Below 10 ms the sampler would be a load of its own."""
    with pytest.raises(UsageError, match="makes no sense"):
        make(clock, writer, interval=interval)


def test_system_clocks_are_nanoseconds():
    """Both run forward here, and the wall clock is after 2025."""
    clock = SystemClock()
    first = clock.monotonic_ns()
    assert clock.wall_ns() > 1_735_000_000 * 10**9
    assert clock.monotonic_ns() >= first
