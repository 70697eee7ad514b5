"""Deleting a run: all of it goes, nothing else does, and nothing brings it back."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import sqlite3
from dataclasses import replace

import pytest
import sqlalchemy
import workers
from factories import T0, make_phase, make_plan, make_run
from postgres import new_database

from memplan.errors import NotStoredError, UsageError
from memplan.store import tables
from memplan.store.batch import Instant, Instants
from memplan.store.engine import writer_engine
from memplan.store.reader import StoreReader
from memplan.store.retention import Policy
from memplan.store.ship import Shipper, ship_all
from memplan.store.upkeep import check
from memplan.store.writer import LocalWriter
from memplan.types import Event, Sample, Series

NS = 10**9
MIB = 1024**2
HOURS = 3 * 3600
FOREVER = Policy(raw_ns=1 << 62, minute_ns=1 << 62, hour_ns=1 << 62)


def open_writer(database, **options):
    """Return a writer for whom nothing is ever too old."""
    return LocalWriter(database, policy=FOREVER, **options)


def series(run_id):
    return [Series(run_id=run_id, entity=f"gpu:GPU-{i}", metric="used_bytes") for i in range(3)]


def fill(writer, run_id, ticks=300, step=HOURS // 300):
    """Write a run that lasts three hours, and say that it ended."""
    writer.save_run(make_run(id=run_id, status="running", ended_ns=None, exit_code=None))
    for i in range(ticks):
        t_ns = T0 + i * step * NS
        writer.write_samples([Sample(series=s, t_ns=t_ns, value=i) for s in series(run_id)])
    writer.save_phases([make_phase(run_id=run_id)])
    writer.save_events([Event(kind="gpu.xid", t_ns=T0, message="XID", run_id=run_id)])
    writer.save_run(make_run(id=run_id))


def rows(database):
    """Return the rows of each table, and how many of them belong to each run."""
    engine, found = writer_engine(database), {}
    with engine.connect() as connection, connection.begin():
        for table in tables.metadata.sorted_tables:
            query = sqlalchemy.select(sqlalchemy.func.count()).select_from(table)
            found[table.name] = connection.execute(query).scalar()
    engine.dispose()
    return found


def erase(writer, run_id):
    calls = 1
    while writer.delete_run(run_id):
        calls += 1
    return calls


def test_a_run_goes_with_all_that_belongs_to_it(anywhere):
    """Every table is as if it had never been, but for its plan and the mark that it was deleted."""
    with open_writer(anywhere) as writer:
        writer.save_plan(make_plan())
        fill(writer, "r-1")
        writer.write_samples([Sample(series=s, t_ns=T0, value=7) for s in series(None)])
    before = rows(anywhere)
    with open_writer(anywhere) as writer:
        fill(writer, "r-2")
        writer.write_samples([Sample(series=s, t_ns=T0, value=7) for s in series("r-2")])
        assert erase(writer, "r-2") > 3
    after = rows(anywhere)
    assert after.pop("meta") == before.pop("meta") + 1
    assert after == before
    with StoreReader(anywhere) as reader:
        assert [run.id for run in reader.runs()] == ["r-1"]
        assert len(reader.samples("r-1").samples) == 900
        assert reader.plan("last").id == make_plan().id


def test_the_objects_that_name_series_have_new_numbers_after_their_run_was_deleted(tmp_path):
    """A series is known by the object that names it, or by its like, until its run is forgotten."""
    database, mine = tmp_path / "m.db", tuple(series("r-1"))
    others = tuple(replace(one) for one in mine)

    def numbers():
        with contextlib.closing(sqlite3.connect(database)) as connection:
            found = connection.execute("SELECT id FROM series ORDER BY id").fetchall()
        return [number for (number,) in found]

    with open_writer(database) as writer:
        writer.save_run(make_run())
        for t_ns, names in ((T0, mine), (T0 + 1, others), (T0 + 2, mine)):
            writer.write_samples(Instants([Instant(t_ns, names, [7, 8, 9])]))
        assert numbers() == [1, 2, 3]
        erase(writer, "r-1")
        assert numbers() == []
        writer.write_samples(Instants([Instant(T0 + 3, mine, [7, 8, 9])]))
        assert numbers() == [4, 5, 6]


def test_it_is_in_no_list_from_the_first_moment_on_and_housekeeping_does_the_rest(tmp_path):
    """Whoever asked for it may be killed: the next writer goes on."""
    database = tmp_path / "m.db"
    with open_writer(database) as writer:
        fill(writer, "r-1")
        assert writer.delete_run("r-1")
        with StoreReader(database) as reader:
            assert reader.runs() == ()
        with pytest.raises(NotStoredError):
            writer.delete_run("r-9")
    assert rows(database)["peak"] == 3
    with open_writer(database) as writer:
        writer.keep_house()
    left = rows(database)
    assert not any(left[name] for name in ("series", "peak", "rollup_1m", "rollup_1h", "chunk"))
    assert check(database).problems == ()


def test_a_run_that_is_measured_is_refused(tmp_path):
    """And a number that was given to a series is not used again for another run."""
    database = tmp_path / "m.db"
    with open_writer(database) as writer:
        writer.save_run(make_run(status="running", ended_ns=None, exit_code=None))
        with pytest.raises(UsageError, match="running"):
            writer.delete_run("r-1")
        fill(writer, "r-1", 5)
        erase(writer, "r-1")
        fill(writer, "r-2", 5)
    with StoreReader(database) as reader:
        assert len(reader.peaks("r-2")) == 3
        assert reader.peaks("r-1") == ()


def test_space_is_given_back(tmp_path):
    """In the file system, not only inside of the file."""
    database = tmp_path / "m.db"
    with open_writer(database) as writer:
        fill(writer, "r-1", 120)
        writer.checkpoint()
        small = database.stat().st_size
        many = [Series(run_id="r-2", entity=f"process:{i}", metric="rss_bytes") for i in range(999)]
        dice = random.Random(1)
        for i in range(240):
            t_ns = T0 + i * NS
            writer.write_samples(
                [Sample(series=s, t_ns=t_ns, value=dice.getrandbits(60)) for s in many]
            )
        writer.save_run(make_run(id="r-2"))
        writer.checkpoint()
        large = database.stat().st_size
        erase(writer, "r-2")
        writer.checkpoint()
        assert large - small > 2 * MIB
        assert database.stat().st_size < small + 1.2 * MIB
        assert writer.longest_batch_s < 1


@pytest.mark.parametrize("statements", [0, 2, 5, 9, 14])
def test_a_deletion_that_is_killed_is_finished_by_the_next_writer(tmp_path, statements):
    """At whichever statement."""
    database = tmp_path / "m.db"
    with open_writer(database) as writer:
        fill(writer, "r-1")
        fill(writer, "r-2")
    child, _ = workers.start(workers.delete_and_die, database, "r-1", statements)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    with open_writer(database) as writer:
        writer.keep_house()
        with StoreReader(database) as reader:
            gone = "r-1" not in [run.id for run in reader.runs()]
            assert len(reader.peaks("r-2")) == 3
            assert len(reader.samples("r-1").samples) == (0 if gone else 900)
        assert gone == (statements > 3)  # the first four are one transaction
    assert check(database).problems == ()


def test_a_fleet_deletes_it_too_and_does_not_take_it_again(postgresql, tmp_path):
    """What was on its way, what is noted anew later, and what another copy of it sends."""
    url, database, copy = new_database(postgresql), tmp_path / "m.db", tmp_path / "copy.db"
    with open_writer(database, outbox_bytes=64 * MIB) as writer:
        fill(writer, "r-1")
        fill(writer, "r-2")
        writer.checkpoint()
    copy.write_bytes(database.read_bytes())
    with open_writer(database, outbox_bytes=64 * MIB) as writer:
        shipper = Shipper(database, url, raw=True)
        ship_all(shipper, writer.shipped)
        assert rows(url)["run"] == 2
        erase(writer, "r-1")
        ship_all(shipper, writer.shipped)
        shipper.close()
    with StoreReader(url) as reader:
        assert [run.id for run in reader.runs()] == ["r-2"]
        assert reader.peaks("r-1") == ()
        assert len(reader.samples("r-2").samples) == 900
    there = rows(url)
    with open_writer(copy, outbox_bytes=64 * MIB) as writer:
        shipper = Shipper(copy, url, raw=True)
        assert ship_all(shipper, writer.shipped)
        shipper.close()
    assert rows(url) == there
    assert there["series"] == 3


def test_deleting_in_the_fleet_keeps_its_hosts_from_bringing_it_back(postgresql, tmp_path):
    """Its operator deleted it there; the host knows nothing of that."""
    url, database = new_database(postgresql), tmp_path / "m.db"
    with open_writer(database, outbox_bytes=64 * MIB) as writer:
        fill(writer, "r-1")
        shipper = Shipper(database, url)
        upto = shipper.step().upto
        with open_writer(url, identity=("operator", "operator")) as fleet:
            erase(fleet, "r-1")
        writer.save_run(make_run(id="r-1"))
        ship_all(shipper, writer.shipped)
        shipper.close()
        assert upto is not None
    left = rows(url)
    assert not any(left[n] for n in ("run", "series", "peak", "rollup_1m", "rollup_1h", "event"))


def test_the_note_of_it_is_json(tmp_path):
    """A run's id may hold any character."""
    database, name = tmp_path / "m.db", 'r-"1'
    with open_writer(database, outbox_bytes=MIB) as writer:
        fill(writer, name, 5)
        erase(writer, name)
    engine = writer_engine(database)
    with engine.connect() as connection, connection.begin():
        query = sqlalchemy.select(tables.outbox.c.key).where(tables.outbox.c.kind == "erased")
        assert [json.loads(key) for key in connection.execute(query).scalars()] == [name]
    engine.dispose()
