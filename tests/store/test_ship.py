"""Shipping to a fleet's PostgreSQL: nothing that was committed is lost, and nothing doubled."""

from __future__ import annotations

import random
import signal

import pytest
import workers
from factories import T0, make_device, make_phase, make_plan, make_run
from postgres import new_database

from memplan.errors import StoreError
from memplan.store import tables
from memplan.store.engine import writer_engine
from memplan.store.reader import StoreReader
from memplan.store.retention import Policy
from memplan.store.ship import Backoff, Shipper, ship_all
from memplan.store.writer import LocalWriter
from memplan.types import Event, Sample, Series

NS = 10**9
SERIES = [Series(run_id=None, entity=f"gpu:GPU-{i}", metric="used_bytes") for i in range(3)]
MIB = 1024**2


def fill(writer, ticks, begin=0):
    for i in range(begin, begin + ticks):
        writer.write_samples(
            [Sample(series=s, t_ns=T0 + i * NS, value=i * 7 + n) for n, s in enumerate(SERIES)]
        )


def contents(database, *names):
    """Return every row of some tables without the host's number."""
    engine = writer_engine(database)
    found = {}
    with engine.connect() as connection, connection.begin():
        for table in names or ("series", "entity", "rollup_1m", "rollup_1h", "peak"):
            columns = [c for c in tables.metadata.tables[table].c if c.name != "host_id"]
            rows = connection.execute(tables.metadata.tables[table].select()).mappings().all()
            found[table] = sorted(tuple(row[c.name] for c in columns) for row in rows)
    engine.dispose()
    return found


def test_everything_that_is_to_be_shipped_arrives(postgresql, tmp_path):
    """Roll-ups, peaks, documents, events; read there as here."""
    url, database = new_database(postgresql), tmp_path / "m.db"
    event = Event(kind="gpu.xid", t_ns=T0, message="XID 79", severity="error", run_id="r-1")
    with LocalWriter(database, outbox_bytes=MIB) as writer:
        writer.save_plan(make_plan())
        writer.save_run(make_run(status="running", ended_ns=None, exit_code=None))
        writer.save_run(make_run())
        writer.save_phases([make_phase()])
        writer.save_devices([make_device()])
        writer.save_events([event])
        fill(writer, 240)
        shipper = Shipper(database, url)
        assert ship_all(shipper, writer.shipped) == 1
        shipper.close()
        assert contents(database, "outbox") == {"outbox": []}
    assert contents(url) == contents(database)
    assert contents(url, "chunk", "tick", "block") == {"chunk": [], "tick": [], "block": []}
    with StoreReader(url) as there, StoreReader(database) as here:
        assert there.plans() == here.plans()
        assert there.runs() == here.runs() == (make_run(),)
        assert there.phases("r-1") == (make_phase(),)
        assert there.devices() == here.devices()
        assert there.events() == (event,)
        assert there.peaks(None) == here.peaks(None)
        window = {"since_ns": T0, "until_ns": T0 + 240 * NS, "buckets": 1}
        highest = [[b.high for b in c.buckets] for c in there.curves(None, **window)]
        assert highest == [[b.high for b in c.buckets] for c in here.curves(None, **window)]


def test_samples_go_on_demand_and_are_the_same_there(postgresql, tmp_path):
    """Packed as they are."""
    url, database = new_database(postgresql), tmp_path / "m.db"
    with LocalWriter(database, outbox_bytes=MIB) as writer:
        fill(writer, 120)
        shipper = Shipper(database, url, raw=True)
        ship_all(shipper, writer.shipped)
        shipper.close()
    with StoreReader(url) as there, StoreReader(database) as here:
        assert there.samples(None).samples == here.samples(None).samples != ()


def test_sending_twice_changes_nothing(postgresql, tmp_path):
    """The writer did not hear that it had arrived; more came meanwhile."""
    url, database = new_database(postgresql), tmp_path / "m.db"
    shipper = Shipper(database, url)
    with LocalWriter(database, outbox_bytes=MIB) as writer:
        fill(writer, 90)
        assert shipper.step() == shipper.step()
        fill(writer, 90, 90)
        writer.shipped(shipper.step().upto)
        assert shipper.step().upto is None
    shipper.close()
    assert contents(url) == contents(database)


def test_what_was_there_before_the_fleet_is_shipped_once(postgresql, tmp_path):
    """Turning it on later loses nothing."""
    url, database = new_database(postgresql), tmp_path / "m.db"
    with LocalWriter(database) as writer:
        writer.save_run(make_run())
        fill(writer, 130)
        assert contents(database, "outbox") == {"outbox": []}
    for _ in range(2):
        with LocalWriter(database, outbox_bytes=MIB) as writer:
            shipper = Shipper(database, url)
            ship_all(shipper, writer.shipped)
            shipper.close()
    assert contents(url) == contents(database)


def test_the_outbox_is_bounded_by_bytes_and_outlives_its_samples(postgresql, tmp_path):
    """The oldest notes go first and are counted; roll-ups go though their samples are gone."""
    url, database = new_database(postgresql), tmp_path / "m.db"
    later = T0 + 10**6 * NS
    policy = Policy(raw_ns=NS)
    with LocalWriter(database, outbox_bytes=150, policy=policy, now_ns=lambda: later) as writer:
        fill(writer, 600)
        notes = len(contents(database, "outbox")["outbox"])
        writer.keep_house()
        left = contents(database, "outbox")["outbox"]
        assert 0 < len(left) < notes
        assert writer.outbox_lost == notes - len(left)
        assert sum(size for *_, size in left) <= 150
        assert contents(database, "chunk") == {"chunk": []}
        shipper = Shipper(database, url)
        ship_all(shipper, writer.shipped)
        shipper.close()
    assert 0 < len(contents(url)["rollup_1m"]) < len(contents(database)["rollup_1m"])
    assert contents(url)["peak"] == contents(database)["peak"]


def test_old_days_are_dropped_as_partitions(postgresql):
    """A writer that is a fleet's database itself: dropping a day costs no rows."""
    url = new_database(postgresql)
    later = T0 + 40 * 86_400 * NS
    with LocalWriter(url, now_ns=lambda: later) as writer:
        fill(writer, 250)
        assert len(contents(url, "chunk")["chunk"]) == 6
        writer.keep_house()
    found = contents(url, "chunk", "rollup_1m", "rollup_1h", "peak")
    assert found["chunk"] == found["rollup_1m"] == []
    assert len(found["rollup_1h"]) >= 3
    assert len(found["peak"]) == 3


def test_a_fleet_that_cannot_be_reached_is_tried_again_ever_more_slowly():
    """From a second to five minutes, never in step with others."""
    backoff = Backoff(1.0, 300.0)
    waits = [backoff.failed() for _ in range(12)]
    assert 0.5 <= waits[0] <= 1.0
    assert all(wait <= 300 for wait in waits)
    assert waits[-1] >= 150
    backoff.succeeded()
    assert backoff.failed() <= 1.0


def test_what_is_no_url_is_refused(tmp_path):
    """With an example."""
    with pytest.raises(StoreError) as caught:
        Shipper(tmp_path / "m.db", "somewhere")
    assert "postgresql+psycopg" in caught.value.hint


@pytest.mark.parametrize("count", [3, pytest.param(20, marks=pytest.mark.faults)])
def test_many_shippers_at_once_with_one_killed(postgresql, tmp_path, count):
    """Every host's roll-ups and peaks are there once, as they are in its own database."""
    url = new_database(postgresql)
    LocalWriter(url).close()

    def start(number):
        database = tmp_path / f"{number}.db"
        return workers.start(workers.ship_ticks, f"host{number}", database, url, 480)

    started = [start(number) for number in range(count)]
    victim = random.Random(count).randrange(count)
    assert started[victim][1].recv() == "sent"
    started[victim][0].kill()
    for number, (child, _) in enumerate(started):
        child.join()
        assert child.exitcode == (-signal.SIGKILL if number == victim else 0)
    again, _ = start(victim)
    again.join()
    assert again.exitcode == 0
    there = contents(url)
    here = [contents(tmp_path / f"{number}.db") for number in range(count)]
    for table in there:
        assert there[table] == sorted(row for one in here for row in one[table])
    for number in range(count):
        with StoreReader(url, host=f"host{number}") as reader:
            peaks = reader.peaks(None)
        with StoreReader(tmp_path / f"{number}.db") as reader:
            assert peaks == reader.peaks(None)
            assert (peaks[0].value, peaks[0].count) == (480, 480)
