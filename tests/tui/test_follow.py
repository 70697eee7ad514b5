"""memplan_tui.follow and the poller: what is read when, and that nothing is read twice."""

from __future__ import annotations

import pytest
from factories import T0, make_run, make_sample
from memplan_tui import follow
from memplan_tui.messages import Request
from memplan_tui.poller import GLANCED_RUNS, Poller
from memplan_tui.tracks import Tracks

from memplan.store.reader import StoreReader
from memplan.store.writer import LocalWriter
from memplan.types import Series

S = 10**9
GOING = {"status": "running", "ended_ns": None, "exit_code": None}
MINUTE = Request(window_ns=60 * S)


class Counting(StoreReader):
    """Counts the samples that are read one by one, and remembers the cursors."""

    read = 0

    def columns(self, run_id, **asked):
        batch = super().columns(run_id, **asked)
        Counting.read += sum(len(times) for times, _ in batch.columns.values())
        return batch


@pytest.fixture
def path(tmp_path):
    """Return a database with ten minutes of a run, whose peak came early, and of the machine."""
    Counting.read = 0
    place = tmp_path / "m.db"
    with LocalWriter(place) as writer:
        writer.save_run(make_run(plan_id=None, **GOING))
        gone = [make_sample(70 + i, seconds=i, entity="process:1") for i in range(3)]
        writer.write_samples(gone)
        for i in range(600):
            machine = {"run_id": None, "entity": "host", "metric": "used_bytes"}
            value = 10**6 if i == 77 else 1000 + i
            writer.write_samples(
                [make_sample(value, seconds=i), make_sample(i, seconds=i, **machine)]
            )
    return place


def poller_on(path, seconds=600):
    return Poller(path, open_reader=Counting, now_ns=lambda: T0 + seconds * S)


def peak_of(snapshot, entity="tree"):
    return next(peak for peak in snapshot.detail.peaks if peak.series.entity == entity)


def test_only_new_samples_are_read(path):
    """The cursor moves; the curve grows by what is new."""
    source = poller_on(path)
    before = source.poll().detail.history["cpu"]
    read = Counting.read
    with LocalWriter(path) as writer:
        writer.write_samples([make_sample(7, seconds=599.5)])
    after = source.poll().detail.history["cpu"]
    assert tuple(after) == (*before, (T0 + 599.5 * S, 7))
    assert Counting.read == read + 1
    assert peak_of(source.poll()).count == 601
    source.close()


def test_a_first_look_reads_little_and_knows_what_is_now_and_was_highest(path):
    """Curves come with the next answer, and the peak stays what it was."""
    source = poller_on(path)
    glance = source.glance(MINUTE)
    assert glance.glance
    assert Counting.read <= 4 * (follow.RECENT_NS // S + 1)
    assert glance.detail.now["cpu"] == 1599
    assert glance.machine.history["cpu"][-1][1] == 599
    assert (peak_of(glance).value, peak_of(glance).count) == (10**6, 600)
    assert peak_of(glance, "process:1").value == 72
    whole = source.poll(Request())
    assert not whole.glance
    assert len(whole.detail.history["cpu"]) == 600
    assert peak_of(whole) == peak_of(glance)
    assert source.glance(MINUTE) is whole
    source.close()


def test_of_a_long_run_only_the_window_is_read(path, monkeypatch):
    """Its older samples in buckets; its peak, and those of processes that are gone, are known."""
    monkeypatch.setattr(follow, "WHOLE_SAMPLES", 100)
    source = poller_on(path)
    shown = source.poll(MINUTE)
    assert Counting.read < 50
    assert shown.detail.history["cpu"][0][0] >= T0 + 540 * S
    assert max(value for _, value in shown.detail.history["cpu"]) == 1599
    assert (peak_of(shown).value, peak_of(shown).t_ns) == (10**6, T0 + 77 * S)
    assert peak_of(shown).count == 600
    assert peak_of(shown, "process:1").value == 72
    longer = source.poll(Request(window_ns=None))
    assert max(value for _, value in longer.detail.history["cpu"]) == 10**6
    assert longer.detail.history["cpu"][0][0] == T0
    assert peak_of(longer) == peak_of(shown)
    source.close()


def test_a_machine_that_is_sampled_no_more_is_not_read_whole(path):
    """A run goes on and nobody samples the machine: its last sample is the begin."""
    with LocalWriter(path) as writer:
        writer.write_samples([make_sample(5, seconds=1200)])
    source = poller_on(path, seconds=1201)
    for _ in range(3):
        source.poll(MINUTE)
    host = source._host.tracks
    assert sum(len(track.times) for track in host.series.values()) <= follow.RECENT_NS // S + 1
    source.close()


def test_a_run_that_has_ended_is_read_once(path):
    """With all of its phases and samples."""
    source = poller_on(path)
    source.poll()
    with LocalWriter(path) as writer:
        writer.write_samples([make_sample(9, seconds=600)])
        writer.save_run(make_run(plan_id=None, ended_ns=T0 + 601 * S))
    assert source.poll(Request(run_id="r-1")).detail.history["cpu"][-1][1] == 9
    read = Counting.read
    with LocalWriter(path) as writer:
        writer.write_samples([make_sample(10, seconds=600.5)])
    assert source.poll(Request(run_id="r-1")).detail.history["cpu"][-1][1] == 9
    assert Counting.read == read
    source.close()


def test_a_first_look_chooses_among_few_runs(tmp_path):
    """Hundreds take a while to read; all are there with the next answer."""
    with LocalWriter(tmp_path / "m.db") as writer:
        for i in range(GLANCED_RUNS + 3):
            writer.save_run(make_run(id=f"r-{i}", plan_id=None, started_ns=T0 + i))
    source = poller_on(tmp_path / "m.db")
    assert len(source.glance(MINUTE).runs) == GLANCED_RUNS
    assert len(source.poll(MINUTE).runs) == GLANCED_RUNS + 3
    source.close()


def test_a_process_that_does_not_move_lives_until_its_final_row():
    """It is stored every quarter of a minute; without a final row it has ended after a minute."""
    tracks = Tracks("r")

    def seen(entity, metric, *seconds):
        times = [T0 + s * S for s in seconds]
        series = Series(run_id="r", entity=entity, metric=metric)
        tracks.add({series: (times, [7] * len(times))})

    def living(seconds):
        return sorted(process.pid for process in tracks.processes((), T0 + seconds * S))

    seen("tree", "rss_bytes", *range(100))
    for pid in (1, 2, 3):
        seen(f"process:{pid}", "rss_bytes", 0)
    seen("process:2", "final_rss_bytes", 5)
    seen("process:3", "rss_bytes", 15, 30, 45, 60, 75, 90)
    assert living(4) == [1, 2, 3]
    assert living(59) == [1, 3]
    assert living(99) == [3]
