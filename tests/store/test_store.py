"""memplan.store: what is written is read again, whatever happens in between."""

from __future__ import annotations

import os
import sqlite3
import stat
from dataclasses import replace

import pytest
from factories import T0, make_device, make_phase, make_plan, make_run, make_sample
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memplan.errors import (
    NotStoredError,
    StoreDamagedError,
    StoreError,
    StoreLockedError,
    StoreMissingError,
    StoreVersionError,
)
from memplan.store.engine import sqlite_affected
from memplan.store.reader import StoreReader
from memplan.store.writer import LocalWriter, new_id
from memplan.types import Sample, Series


@pytest.fixture
def database(tmp_path):
    return tmp_path / "folder" / "memplan.db"


@pytest.fixture
def writer(database):
    with LocalWriter(database) as opened:
        yield opened


@pytest.fixture
def reader(writer, database):
    with StoreReader(database) as opened:
        yield opened


def test_everything_comes_back_as_it_was(writer, reader):
    """Plan, run, phase, device."""
    plan = writer.save_plan(make_plan(id=None))
    run = make_run(plan_id=plan.id)
    writer.save_run(run)
    writer.save_phases([make_phase()])
    writer.save_devices([make_device(), make_device(name="cuda:0", kind="gpu", uuid="GPU-1")])
    assert plan.id
    assert reader.plan(plan.id) == reader.plan("last") == plan
    assert reader.plans() == (plan,)
    assert reader.run("r-1") == run
    assert reader.phases("r-1") == (make_phase(),)
    assert {device.name for device in reader.devices()} == {"cpu", "cuda:0"}


def test_saving_again_replaces(writer, reader):
    """A run that ends, a phase that ends, a device that grew."""
    writer.save_run(make_run(status="running", ended_ns=None, exit_code=None))
    writer.save_run(make_run(exit_code=3, status="failed"))
    writer.save_phases([make_phase(ended_ns=None)])
    writer.save_phases([make_phase()])
    assert [run.exit_code for run in reader.runs()] == [3]
    assert reader.phases("r-1") == (make_phase(),)


def test_a_plan_keeps_its_id(writer, reader):
    """Only a new one gets one."""
    assert writer.save_plan(make_plan(id="p-mine")).id == "p-mine"
    assert reader.plan("p-mi").id == "p-mine"


def test_ids_sort_by_time_and_have_no_letters_that_look_alike():
    """Short enough to type."""
    ids = {new_id("r") for _ in range(200)}
    assert len(ids) > 190
    for name in ids:
        assert len(name) == 11
        assert not set(name[2:]) & set("ilou")


def test_runs_are_listed_newest_first(writer, reader):
    """By their start."""
    for i in (2, 0, 1):
        writer.save_run(make_run(id=f"r-{i}", started_ns=T0 + i))
    assert [run.id for run in reader.runs()] == ["r-2", "r-1", "r-0"]
    assert [run.id for run in reader.runs(1)] == ["r-2"]
    assert reader.run("last").id == "r-2"


@pytest.mark.parametrize(("key", "hint"), [("r-1", "r-11"), ("x", "memplan runs"), ("", "memplan")])
def test_a_name_that_is_not_one_run_is_refused(writer, reader, key, hint):
    """Ambiguous, unknown, empty; and % is no wildcard."""
    writer.save_run(make_run(id="r-11"))
    writer.save_run(make_run(id="r-12"))
    with pytest.raises(NotStoredError) as caught:
        reader.run(key)
    assert hint in caught.value.hint
    with pytest.raises(NotStoredError):
        reader.run("%")


def test_peaks_are_the_highest_values_and_when_they_were_first_reached(writer, reader):
    """One per series; another run's samples do not count."""
    values = [3, 9, 9, 1]
    for i, value in enumerate(values):
        writer.write_samples([make_sample(value, seconds=i)])
    writer.write_samples(
        [make_sample(1000, run_id="r-2"), make_sample(7, run_id=None, entity="host")]
    )
    (peak,) = reader.peaks("r-1")
    assert (peak.value, peak.t_ns, peak.count) == (9, T0 + 10**9, 4)
    (host,) = reader.peaks(None)
    assert (host.value, host.series.run_id) == (7, None)
    assert reader.peaks("r-none") == ()


def test_a_cursor_reads_each_sample_once_and_never_cuts_a_tick(writer, reader):
    """Also when one tick has more samples than the limit."""
    sent = []
    for i in range(7):
        batch = [make_sample(i, seconds=i, entity=f"process:{n}") for n in range(5)]
        writer.write_samples(batch)
        sent += batch
    for limit in (1, 5, 7, 12, 100):
        got, cursor = [], 0
        while (batch := reader.samples("r-1", after=cursor, limit=limit)).samples:
            assert len(batch.samples) % 5 == 0
            got += batch.samples
            cursor = batch.cursor
        assert got == sent
        assert batch.cursor == cursor


def test_a_window_of_time_is_a_window_of_samples(writer, reader):
    """Both ends belong to it."""
    for i in range(10):
        writer.write_samples([make_sample(i, seconds=i)])
    window = reader.samples("r-1", since_ns=T0 + 3 * 10**9, until_ns=T0 + 5 * 10**9)
    assert [sample.value for sample in window.samples] == [3, 4, 5]


def test_a_reader_sees_what_is_committed_while_the_writer_lives(writer, reader):
    """Live tail."""
    assert reader.last_sample_ns() is None
    assert reader.samples("r-1").samples == ()
    writer.write_samples([make_sample(1)])
    first = reader.samples("r-1")
    writer.write_samples([make_sample(2, seconds=1)])
    assert [s.value for s in reader.samples("r-1", after=first.cursor).samples] == [2]
    assert reader.last_sample_ns() == T0 + 10**9


def test_a_clock_that_jumps_back_loses_nothing(writer, reader):
    """The key is a running number, not the time."""
    for seconds in (10, 5, 5, 10, 0):
        writer.write_samples([make_sample(seconds, seconds=seconds)])
    assert [s.value for s in reader.samples("r-1").samples] == [10, 5, 5, 10, 0]


SERIES = st.builds(
    Series,
    run_id=st.sampled_from([None, "r-1", "r-2"]),
    entity=st.sampled_from(["host", "tree", "gpu:GPU-1/tree"]),
    metric=st.sampled_from(["rss_bytes", "used_bytes"]),
)
SAMPLES = st.lists(
    st.builds(
        Sample,
        series=SERIES,
        t_ns=st.integers(0, 5) | st.integers(0, 2**62),
        value=st.integers(-(2**63), 2**63 - 1),
    ),
    max_size=30,
)


@given(st.lists(SAMPLES, max_size=4))
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25
)
def test_any_batches_come_back_sample_by_sample(tmp_path_factory, batches):
    """Order within a series is kept, values are 64 bits, the same series twice is no collision."""
    database = tmp_path_factory.mktemp("db") / "m.db"
    with LocalWriter(database) as first:
        for batch in batches:
            first.write_samples(batch)
    with StoreReader(database) as reading:
        for run_id in (None, "r-1", "r-2"):
            sent = [s for batch in batches for s in batch if s.series.run_id == run_id]
            got = reading.samples(run_id).samples
            for series in {s.series for s in sent}:
                assert [s for s in got if s.series == series] == [
                    s for s in sent if s.series == series
                ]
            assert len(got) == len(sent)


def test_ten_thousand_series_in_one_tick(writer, reader):
    """One batch, one transaction, and their peaks."""
    batch = [make_sample(i, entity=f"process:{i}") for i in range(10_000)]
    writer.write_samples(batch)
    assert len(reader.peaks("r-1")) == 10_000
    assert len(reader.samples("r-1").samples) == 10_000


def test_a_second_writer_is_refused_with_the_holders_pid(writer, database):
    """And closing the first lets it in."""
    with pytest.raises(StoreLockedError, match=f"process {os.getpid()}") as caught:
        LocalWriter(database)
    assert "memplan daemon status" in caught.value.hint
    writer.close()
    writer.close()
    LocalWriter(database).close()


def test_only_the_owner_may_read_the_database(writer, database):
    """Commands and their arguments can be secret."""
    assert stat.S_IMODE(database.stat().st_mode) == 0o600
    assert stat.S_IMODE(database.parent.stat().st_mode) == 0o700


def test_no_database_yet_is_said_so(tmp_path):
    """With the command that makes one."""
    with pytest.raises(StoreMissingError) as caught:
        StoreReader(tmp_path / "none.db")
    assert "memplan run" in caught.value.hint
    (tmp_path / "empty.db").touch()
    with pytest.raises(StoreMissingError):
        StoreReader(tmp_path / "empty.db")


def test_what_is_no_database_is_refused_and_left_alone(tmp_path):
    """A text file, and another program's database."""
    text = tmp_path / "text.db"
    text.write_bytes(b"just some text, long enough to be no header" * 100)
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()
    before = text.read_bytes()
    for path in (text, foreign):
        for opening in (LocalWriter, StoreReader):
            with pytest.raises(StoreDamagedError) as caught:
                opening(path)
            assert caught.value.hint
    assert text.read_bytes() == before


def test_a_newer_database_is_refused_by_all(writer, database):
    """Nothing is downgraded."""
    writer.close()
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    for opening in (LocalWriter, StoreReader):
        with pytest.raises(StoreVersionError) as caught:
            opening(database)
        assert "upgrade" in caught.value.hint


def test_a_failed_write_keeps_what_was_committed_and_the_next_one_works(writer, reader):
    """As on a full disk: the page limit stands for it."""
    writer.write_samples([make_sample(1)])
    connection = writer._core.connection
    pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    connection.rollback()
    big = [make_sample(i, entity=f"process:{i}", seconds=1) for i in range(5000)]
    with pytest.raises(StoreError, match="full") as caught:
        writer.write_samples(big)
    assert "disk space" in caught.value.hint
    assert [s.value for s in reader.samples("r-1").samples] == [1]
    connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    connection.rollback()
    writer.write_samples(big)
    assert len(reader.samples("r-1").samples) == 5001


def test_numbers_that_a_failed_write_gave_away_are_read_anew(writer, reader, monkeypatch):
    """Also when that fails, too: a series must not be written under a number that nobody knows."""
    from memplan.store import connection

    writer.write_samples([make_sample(1)])
    real = connection.SampleLog.append
    monkeypatch.setattr(
        connection.SampleLog,
        "append",
        lambda self, c, samples: (real(self, c, samples), 1 / 0),
    )
    with pytest.raises(ZeroDivisionError):
        writer.write_samples([make_sample(2, entity="process:7")])
    monkeypatch.undo()

    def fails(*_):
        raise StoreError("no reading, either")

    monkeypatch.setattr(connection, "SampleLog", fails)
    with pytest.raises(StoreError, match="either"):
        writer.write_samples([make_sample(3, entity="process:7")])
    monkeypatch.undo()
    writer.write_samples([make_sample(4, entity="process:7", seconds=1)])
    assert [(s.series.entity, s.value) for s in reader.samples("r-1").samples] == [
        ("tree", 1),
        ("process:7", 4),
    ]


def test_a_run_whose_sampler_died_is_marked_as_lost(database):
    """By the next writer on the same host; it ended with its last sample."""
    import platform

    run = make_run(status="running", ended_ns=None, exit_code=None, host=platform.node())
    with LocalWriter(database) as first:
        first.save_run(run)
        first.save_run(replace(run, id="r-other", host="elsewhere"))
        first.write_samples([make_sample(5, seconds=7)])
    LocalWriter(database).close()
    with StoreReader(database) as reading:
        lost = reading.run("r-1")
        assert (lost.status, lost.ended_ns) == ("lost", T0 + 7 * 10**9)
        assert reading.run("r-other").status == "running"


def test_late_samples_of_an_ended_run_still_belong_to_it(writer, reader):
    """The exit's own peak is written after the exit."""
    writer.write_samples([make_sample(1)])
    writer.save_run(make_run())
    writer.write_samples([make_sample(9, run_id="r-2")])
    writer.write_samples([make_sample(5, seconds=1)])
    assert [peak.value for peak in reader.peaks("r-1")] == [5]


@pytest.mark.parametrize(
    ("version", "affected"),
    [
        ("3.40.1", True),
        ("3.44.6", False),
        ("3.45.0", True),
        ("3.50.6", True),
        ("3.50.7", False),
        ("3.51.2", True),
        ("3.51.3", False),
        ("3.54.1", False),
    ],
)
def test_versions_with_the_wal_reset_race_are_known(version, affected):
    """Fixed in 3.51.3, and in 3.44.6 and 3.50.7."""
    assert sqlite_affected(version) == affected
