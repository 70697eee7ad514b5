"""The same store on SQLite and PostgreSQL: samples in every state, curves, events, retention."""

from __future__ import annotations

import contextlib
import itertools
import random
import sqlite3

import pytest
from factories import T0, make_device, make_phase, make_plan, make_run, make_sample

from memplan.errors import (
    NotStoredError,
    StoreError,
    StoreLockedError,
    StoreMissingError,
    UsageError,
)
from memplan.store import queries
from memplan.store.append import BLOCK_INSTANTS
from memplan.store.reader import StoreReader
from memplan.store.retention import Policy
from memplan.store.writer import RING_SAMPLES, LocalWriter
from memplan.types import Event, FrozenMap, Sample, Series

NS = 10**9
MINUTE, HOUR, DAY = 60 * NS, 3600 * NS, 86_400 * NS
BEGIN = T0 // HOUR * HOUR
"""A full hour, so that a test knows where minutes begin."""

HOST = Series(run_id=None, entity="host", metric="used_bytes")
GPU = Series(run_id=None, entity="gpu:GPU-1", metric="used_bytes")
CALM = Series(run_id=None, entity="daemon", metric="open_files_count")
LATE = Series(run_id=None, entity="gpu:GPU-2", metric="used_bytes")


def wave(i):
    """Return a value that goes up and down, with one peak a minute."""
    return 1000 + i % 60 * 7 + (5000 + i if i % 60 == 37 else 0)


def fill(writer, seconds, *, begin=BEGIN, series=(HOST, GPU), batch=30):
    """Write one sample a second of each series, in batches; return them."""
    samples = [
        Sample(series=one, t_ns=begin + i * NS, value=wave(i) + n)
        for i in range(seconds)
        for n, one in enumerate(series)
    ]
    for start in range(0, len(samples), batch * len(series)):
        writer.write_samples(samples[start : start + batch * len(series)])
    return samples


def test_documents_come_back(anywhere):
    """Plan, run, phase, device; saved twice, there is one."""
    with LocalWriter(anywhere) as writer, StoreReader(anywhere) as reader:
        plan = writer.save_plan(make_plan(id=None))
        for code in (0, 1):
            writer.save_run(make_run(exit_code=code))
            writer.save_phases([make_phase()])
            writer.save_devices([make_device()])
        assert reader.plan("last") == plan
        assert [run.exit_code for run in reader.runs()] == [1]
        assert reader.phases("r-1") == (make_phase(),)
        assert reader.devices() == (make_device(),)
        with pytest.raises(StoreLockedError):
            LocalWriter(anywhere)
        with pytest.raises(NotStoredError):
            reader.run("r-2")


def test_a_number_beyond_64_bits_is_left_out_and_stops_nothing(anywhere):
    """Also the block that it would have been in is packed."""
    with LocalWriter(anywhere) as writer, StoreReader(anywhere) as reader:
        nonsense = [
            Sample(series=HOST, t_ns=BEGIN - 2, value=2**63),
            Sample(series=GPU, t_ns=BEGIN - 2, value=-(2**63) - 1),
            Sample(series=HOST, t_ns=BEGIN - 1, value=2**64),
            Sample(series=GPU, t_ns=BEGIN - 1, value=2**63 - 1),
        ]
        writer.write_samples(nonsense)
        sent = fill(writer, BLOCK_INSTANTS)
        assert set(reader.samples(None).samples) == {nonsense[-1], *sent}
        assert max(peak.value for peak in reader.peaks(None)) == 2**63 - 1


def test_a_reader_sees_one_moment(anywhere):
    """What is written between two of its queries is not there yet, on a server neither."""
    with LocalWriter(anywhere) as writer, StoreReader(anywhere) as reader:
        fill(writer, BLOCK_INSTANTS)
        with reader._place(None) as place:
            names = {row[0] for row in place.rows(queries.PEAKS)}
            fill(writer, BLOCK_INSTANTS, begin=BEGIN + HOUR, series=(HOST, CALM, LATE))
            assert {row[0] for row in place.rows(queries.PEAKS)} == names
        assert len(reader.peaks(None)) == len(names) + 2


def test_samples_are_the_same_as_ticks_and_as_blocks(anywhere):
    """Half of them packed away, half of them waiting: in their order, each once."""
    with LocalWriter(anywhere) as writer, StoreReader(anywhere) as reader:
        sent = fill(writer, BLOCK_INSTANTS * 2 + 40)
        assert list(reader.samples(None).samples) == sent
        got, cursor = [], 0
        while (batch := reader.samples(None, after=cursor, limit=33)).samples:
            got += batch.samples
            cursor = batch.cursor
            assert batch.more == (got[-1] != sent[-1])
        assert got == sent
        assert not reader.samples(None).more
        window = reader.samples(None, since_ns=BEGIN + 50 * NS, until_ns=BEGIN + 70 * NS)
        assert list(window.samples) == [s for s in sent if 50 <= (s.t_ns - BEGIN) // NS <= 70]
        assert reader.last_sample_ns() == sent[-1].t_ns
        assert reader.span_ns(None) == (sent[0].t_ns, sent[-1].t_ns)


@pytest.mark.parametrize("limit", [1, 50, 10**6])
def test_columns_are_the_samples_by_series(anywhere, limit):
    """From ticks and blocks, behind a cursor and in a window, a part at a time."""
    with LocalWriter(anywhere) as writer, StoreReader(anywhere) as reader:
        fill(writer, 200)
        fill(writer, 30, begin=BEGIN + 200 * NS, series=(GPU,))
        for window in ({}, {"since_ns": BEGIN + 50 * NS, "until_ns": BEGIN + 215 * NS}):
            cursor, more, found = 0, True, {HOST: [], GPU: []}
            while more:
                batch = reader.columns(None, after=cursor, limit=limit, **window)
                cursor, more = batch.cursor, batch.more
                for series, (times, values) in batch.columns.items():
                    found[series] += zip(times, values, strict=True)
            wanted = reader.samples(None, **window).samples
            for series, points in found.items():
                assert points == [(s.t_ns, s.value) for s in wanted if s.series == series]
            assert reader.columns(None, after=cursor, **window).columns == {}


def test_a_chunk_is_found_by_its_block(tmp_path):
    """SQLite is told in which order to look: else it goes through every chunk that there is."""
    with LocalWriter(tmp_path / "m.db") as writer:
        fill(writer, 200)
    with sqlite3.connect(tmp_path / "m.db") as connection:
        query = queries.CHUNKS.format(blocks=queries.among(range(1, 17)), wanted="")
        rows = connection.execute(f"EXPLAIN QUERY PLAN {query}", {"host": 1}).fetchall()
    connection.close()
    steps = [row[3] for row in rows]
    assert steps[0].startswith("SEARCH block")
    assert steps[1] == "SEARCH chunk USING PRIMARY KEY (host_id=? AND day=? AND block_id=?)"


def test_a_block_is_the_same_from_memory_and_from_ticks_that_are_read_back(tmp_path):
    """One writer goes on until the block is made, of the other each batch is another life."""
    tables = ("tick", "block", "chunk", "rollup_1m", "rollup_1h", "peak")

    def samples(begin, end):
        for i in range(begin, end):
            for series, each in ((HOST, 1), (GPU, 15), (CALM, 5), (LATE, 7 if i > 90 else 999)):
                if i % each == 0:
                    value = 4096 if series is CALM else wave(i)
                    yield Sample(series=series, t_ns=BEGIN + i * NS, value=value)

    def stored(path, lives):
        for batches in lives:
            with LocalWriter(path) as writer:
                for begin in batches:
                    writer.write_samples(list(samples(begin, begin + 25)))
        with contextlib.closing(sqlite3.connect(path)) as connection:
            return [
                connection.execute(f"SELECT * FROM {t} ORDER BY 1, 2, 3, 4").fetchall()
                for t in tables
            ]

    begins = range(0, 300, 25)
    kept = stored(tmp_path / "a.db", [begins])
    assert all(kept)
    assert kept == stored(tmp_path / "b.db", [[begin] for begin in begins])


def test_peaks_are_those_of_all_samples(anywhere):
    """Over blocks and ticks; the first of equal ones counts."""
    with LocalWriter(anywhere) as writer, StoreReader(anywhere) as reader:
        sent = fill(writer, BLOCK_INSTANTS * 3 + 38)
        for peak in reader.peaks(None):
            values = [s for s in sent if s.series == peak.series]
            highest = max(values, key=lambda s: s.value)
            assert (peak.value, peak.t_ns) == (highest.value, highest.t_ns)
            assert peak.count == len(values)


@pytest.mark.parametrize("buckets", [1, 3, 7, 50, 1000])
def test_curves_keep_every_peak_at_its_time(anywhere, buckets):
    """Each bucket's highest value was sampled in it, all samples count once, and none is lost."""
    with LocalWriter(anywhere) as writer, StoreReader(anywhere) as reader:
        sent = fill(writer, 400)
        until = BEGIN + 400 * NS
        curve, _ = reader.curves(None, since_ns=BEGIN, until_ns=until, buckets=buckets)
        assert curve.series == GPU
        values = {s.t_ns: s.value for s in sent if s.series == GPU}
        assert sum(bucket.n for bucket in curve.buckets) == 400
        assert len(curve.buckets) <= buckets
        assert max(b.high for b in curve.buckets) == max(values.values())
        for bucket in curve.buckets:
            assert values[bucket.high_t_ns] == bucket.high
            assert bucket.t_ns <= bucket.high_t_ns < bucket.t_ns + curve.width_ns
            assert bucket.low <= bucket.mean <= bucket.high
        mean = sum(b.mean * b.n for b in curve.buckets) / 400
        assert mean == pytest.approx(sum(values.values()) / 400)
        assert min(b.low for b in curve.buckets) == min(values.values())


def test_a_curve_of_one_series_is_that_of_all(anywhere):
    """Chosen by thing and metric."""
    with LocalWriter(anywhere) as writer, StoreReader(anywhere) as reader:
        fill(writer, 130)
        window = {"since_ns": BEGIN, "until_ns": BEGIN + 130 * NS, "buckets": 5}
        both = reader.curves(None, **window)
        assert reader.curves(None, entity="host", **window) == (both[1],)
        assert reader.curves(None, metric="used_bytes", **window) == both
        assert reader.curves(None, entity="nobody", **window) == ()
        with pytest.raises(UsageError):
            reader.curves(None, since_ns=5, until_ns=5)


def test_a_stretch_without_samples_is_a_gap(anywhere):
    """And never a zero."""
    with LocalWriter(anywhere) as writer, StoreReader(anywhere) as reader:
        fill(writer, 60, series=(HOST,))
        fill(writer, 60, begin=BEGIN + HOUR, series=(HOST,))
        (curve,) = reader.curves(None, since_ns=BEGIN, until_ns=BEGIN + 2 * HOUR, buckets=24)
        assert [(b.t_ns - BEGIN) // (5 * MINUTE) for b in curve.buckets] == [0, 12]


def test_what_is_too_old_goes_and_its_peaks_stay(anywhere):
    """Samples first, minutes later; each tier shows the same highest values."""
    now = BEGIN + 2 * HOUR
    policy = Policy(raw_ns=HOUR, minute_ns=40 * DAY)
    with LocalWriter(anywhere, policy=policy, now_ns=lambda: now) as writer:
        sent = fill(writer, 7200, series=(HOST,), batch=600)
        with StoreReader(anywhere) as reader:
            before = reader.curves(None, since_ns=BEGIN, until_ns=now, buckets=12)[0]
            peaks = reader.peaks(None)
            writer.keep_house()
            after = reader.curves(None, since_ns=BEGIN, until_ns=now, buckets=12)[0]
            assert (before.tier, after.tier) == ("raw", "1m")
            assert [b.high for b in after.buckets] == [b.high for b in before.buckets]
            assert [b.high_t_ns for b in after.buckets] == [b.high_t_ns for b in before.buckets]
            assert sum(b.n for b in after.buckets) == 7200
            assert reader.peaks(None) == peaks
            left = reader.samples(None).samples
            assert left[0].t_ns >= BEGIN + HOUR - 2 * MINUTE
            assert left[-1] == sent[-1]


def test_hours_are_what_is_left_in_the_end(anywhere):
    """A window of days, when minutes are gone, too."""
    now = BEGIN + 6 * HOUR
    policy = Policy(raw_ns=HOUR, minute_ns=2 * HOUR)
    with LocalWriter(anywhere, policy=policy, now_ns=lambda: now) as writer:
        for hour in range(6):
            fill(writer, 180, begin=BEGIN + hour * HOUR, series=(HOST,), batch=180)
        writer.keep_house()
        with StoreReader(anywhere) as reader:
            (curve,) = reader.curves(None, since_ns=BEGIN, until_ns=now, buckets=6)
            assert curve.tier == "1h"
            assert [b.high for b in curve.buckets] == [wave(157)] * 6
            assert sum(b.n for b in curve.buckets) == 6 * 180
            (wide,) = reader.curves(None, since_ns=BEGIN, until_ns=now, buckets=2)
            assert [b.high for b in wide.buckets] == [wave(157)] * 2


def test_the_cap_drops_the_oldest_samples_first(tmp_path):
    """However young they are; peaks stay."""
    database = tmp_path / "m.db"
    series = [Series(run_id=None, entity=f"process:{i}", metric="rss_bytes") for i in range(20)]
    now = BEGIN + 1300 * NS
    cap = 200_000
    with (
        LocalWriter(database, policy=Policy(cap_bytes=cap), now_ns=lambda: now) as writer,
        StoreReader(database) as reader,
    ):
        for i in range(1300):
            noise = [(i * 7919 + n * 104_729) % 2**40 for n in range(20)]
            writer.write_samples(
                [
                    Sample(series=s, t_ns=BEGIN + i * NS, value=value)
                    for s, value in zip(series, noise, strict=True)
                ]
            )
        last = reader.samples(None, since_ns=BEGIN + 1299 * NS).samples
        writer.keep_house()
        connection = writer._core.connection
        used = "page_count - freelist_count FROM pragma_page_count, pragma_freelist_count"
        pages = connection.exec_driver_sql(f"SELECT {used}").scalar()
        connection.rollback()
        assert pages * 4096 <= cap
        assert reader.samples(None).samples[0].t_ns > BEGIN
        assert reader.samples(None, since_ns=BEGIN + 1299 * NS).samples == last
        assert len(reader.peaks(None)) == 20


def test_events_come_back_once_and_in_order(anywhere):
    """A second one of the same time, kind and thing is the same one."""
    events = [
        Event(kind="gpu.xid", t_ns=T0 + i, message=f"XID 7{i}", entity="gpu:GPU-1", run_id=run)
        for i, run in enumerate((None, "r-1", None))
    ]
    odd = Event(
        kind="host.oom",
        t_ns=T0 + 9,
        message="killed ü",
        severity="error",
        data=FrozenMap({"pid": "4711"}),
    )
    with LocalWriter(anywhere) as writer, StoreReader(anywhere) as reader:
        writer.save_events([*events[::-1], odd])
        writer.save_events(events[:1])
        assert reader.events() == (*events, odd)
        assert reader.events("r-1") == (events[1],)
        assert reader.events(limit=2) == (events[2], odd)
        assert reader.events(since_ns=T0 + 1, until_ns=T0 + 2) == tuple(events[1:])


def test_staged_samples_wait_for_their_flush(anywhere):
    """They come before whatever is written at once, and close() writes the rest."""
    clock = itertools.count()
    first = [make_sample(i, seconds=i, run_id=None) for i in range(3)]
    late = make_sample(5, seconds=20, run_id=None)
    writer = LocalWriter(anywhere, flush_s=5, monotonic_s=lambda: next(clock) / 2)
    with writer, StoreReader(anywhere) as reader:
        for sample in first[:2]:
            writer.stage_samples([sample])
        assert reader.samples(None).samples == ()
        writer.write_samples([make_sample(7, seconds=9)])
        assert list(reader.samples(None).samples) == first[:2]
        writer.stage_samples(first[2:])
        writer.flush()
        writer.stage_samples([late])
    with StoreReader(anywhere) as reader:
        assert list(reader.samples(None).samples) == [*first, late]


def test_a_run_that_has_ended_is_packed(anywhere):
    """Also when it was shorter than a block."""
    with LocalWriter(anywhere) as writer, StoreReader(anywhere) as reader:
        sent = [make_sample(i, seconds=i) for i in range(5)]
        writer.write_samples(sent)
        writer.save_run(make_run())
        assert writer._core.log.waiting() == []
        assert list(reader.samples("r-1").samples) == sent


def test_the_machine_has_a_number_and_a_name(anywhere):
    """Its own samples are found by either; a stranger's are not mixed in."""
    for key, name in (("k1", "one"), ("k2", "two")):
        with LocalWriter(anywhere, identity=(key, name)) as writer:
            writer.write_samples([make_sample(len(key + name), run_id=None, entity=name)])
    for host in ("one", "k1"):
        with StoreReader(anywhere, host=host) as reader:
            assert [s.series.entity for s in reader.samples(None).samples] == ["one"]
            assert reader.hosts() == ("one", "two")
    with StoreReader(anywhere, host="three") as reader, pytest.raises(NotStoredError) as caught:
        reader.peaks(None)
    assert "one, two" in caught.value.hint


def test_a_database_that_cannot_hold_every_text_is_refused(postgresql):
    """SQL_ASCII gives bytes for text."""
    from postgres import new_database

    with pytest.raises(StoreError, match="SQL_ASCII") as caught:
        LocalWriter(new_database(postgresql, "SQL_ASCII"))
    assert "UTF8" in caught.value.hint


def test_the_ring_is_bounded(tmp_path, monkeypatch):
    """A store that refuses for long costs the oldest samples, and they are counted."""
    monkeypatch.setattr("memplan.store.writer.RING_SAMPLES", 10)
    assert RING_SAMPLES > 1000
    with LocalWriter(tmp_path / "m.db", flush_s=1000) as writer:
        writer.stage_samples([make_sample(i, seconds=i, run_id=None) for i in range(25)])
        assert writer.dropped == 15
        writer.flush()
        with StoreReader(tmp_path / "m.db") as reader:
            assert [s.value for s in reader.samples(None).samples] == list(range(15, 25))


def test_a_reader_that_refuses_a_database_leaves_no_connection_behind(postgresql):
    """An empty one is tried again and again by whoever waits for it."""
    import psycopg
    from postgres import new_database

    url = new_database(postgresql)
    name = url.partition("@/")[2].partition("?")[0]
    for _ in range(3):
        with pytest.raises(StoreMissingError):
            StoreReader(url)
    with psycopg.connect(f"host={postgresql} user=memplan dbname=postgres") as admin:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
        assert admin.execute(query, (name,)).fetchone() == (0,)


@pytest.mark.parametrize("seconds", [30, 45, 90, 130, 200, 260, 700])
def test_wide_windows_show_every_peak_at_its_own_time_however_they_are_read(anywhere, seconds):
    """By samples, minutes or blocks: no sample is lost or counted twice, and no peak moves."""
    dice, ticks = random.Random(seconds), 10 * BLOCK_INSTANTS + 37
    series = Series(run_id=None, entity="host", metric="used_bytes")
    samples = [
        Sample(series=series, t_ns=T0 + i * NS, value=dice.randrange(1 << 40)) for i in range(ticks)
    ]
    with LocalWriter(anywhere) as writer:
        for begin in range(0, ticks, 10):
            writer.write_samples(samples[begin : begin + 10])
    since, until, width = T0 - 3 * NS, T0 + (ticks + 5) * NS, seconds * NS
    buckets = -(-(until - since) // width)
    with StoreReader(anywhere) as reader:
        (curve,) = reader.curves(None, since_ns=since, until_ns=until, buckets=buckets)
    assert sum(bucket.n for bucket in curve.buckets) == ticks
    assert max(b.high for b in curve.buckets) == max(s.value for s in samples)
    assert min(b.low for b in curve.buckets) == min(s.value for s in samples)
    when = {sample.t_ns: sample.value for sample in samples}
    for bucket in curve.buckets:
        assert when[bucket.high_t_ns] == bucket.high
        assert bucket.t_ns <= bucket.high_t_ns < bucket.t_ns + curve.width_ns
    total = sum(bucket.mean * bucket.n for bucket in curve.buckets)
    assert total == pytest.approx(sum(sample.value for sample in samples))
