"""From the first layout to the packed one: nothing is lost, and nothing is half done."""

from __future__ import annotations

import importlib
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import old_database
import pytest
import workers
from factories import make_device, make_phase, make_plan, make_run

from memplan.errors import StoreError, StoreFullError, StoreLockedError, StoreVersionError
from memplan.serialize import dumps
from memplan.store.migrate import HEAD, copy_path
from memplan.store.reader import StoreReader
from memplan.store.writer import LocalWriter
from memplan.types import Sample, Series

UPGRADE = """
import sys
from memplan.store.writer import LocalWriter

LocalWriter(sys.argv[1]).close()
"""

STATEMENTS = ("CREATE", "INSERT", "ALTER", "DROP", "UPDATE")

SERIES = [
    Series(run_id=run_id, entity=entity, metric="rss_bytes")
    for run_id in (None, "r-1")
    for entity in ("tree", "gpu:GPU-1")
]


def make_old(database, ticks=150):
    """Make a database of the first layout, as that version wrote it; return its samples."""
    old_database.make(database)
    samples = []
    connection = sqlite3.connect(database)
    with connection:
        plan, run, phase, device = make_plan(), make_run(), make_phase(), make_device()
        connection.execute(
            "INSERT INTO plan VALUES (?, ?, ?, ?, ?)",
            (plan.id, plan.created_ns, plan.model.name, True, dumps(plan, indent=None)),
        )
        connection.execute(
            "INSERT INTO run VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, ?)",
            (
                run.id,
                run.plan_id,
                run.host,
                run.pid,
                run.started_ns,
                run.ended_ns,
                run.exit_code,
                run.status,
                dumps(run, indent=None),
            ),
        )
        connection.execute(
            "INSERT INTO phase VALUES (?, ?, ?, ?, ?, ?)",
            ("r-1", phase.pid, phase.name, phase.started_ns, phase.ended_ns, dumps(phase)),
        )
        connection.execute("INSERT INTO device VALUES (?, '', ?)", (device.name, dumps(device)))
        for number, series in enumerate(SERIES, 1):
            row = (number, series.run_id or "", series.entity, series.metric)
            connection.execute("INSERT INTO series VALUES (?, ?, ?, ?, 1)", row)
        for seq in range(1, ticks + 1):
            t_ns = 10**18 + seq * 10**9 - (seq % 50 == 0) * 3 * 10**9
            connection.execute("INSERT INTO tick VALUES (?, ?)", (seq, t_ns))
            for number, series in enumerate(SERIES, 1):
                if seq % number:
                    continue
                value = (seq * 4096 * number) % 99_991
                connection.execute("INSERT INTO sample VALUES (?, ?, ?)", (seq, number, value))
                samples.append(Sample(series=series, t_ns=t_ns, value=value))
    connection.close()
    return samples


def version(database):
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]


def old_is_whole(database):
    with closing(sqlite3.connect(database)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM sample").fetchone()
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    return version(database), count


def assert_all_there(database, samples):
    with StoreReader(database) as reader:
        assert reader.plans() == (make_plan(),)
        assert reader.runs() == (make_run(),)
        assert reader.phases("r-1") == (make_phase(),)
        assert reader.devices() == (make_device(),)
        for run_id in (None, "r-1"):
            sent = [s for s in samples if s.series.run_id == run_id]
            assert list(reader.samples(run_id).samples) == sent
            for peak in reader.peaks(run_id):
                highest = max((s for s in sent if s.series == peak.series), key=lambda s: s.value)
                assert (peak.value, peak.t_ns) == (highest.value, highest.t_ns)


def test_everything_of_the_first_layout_is_kept(tmp_path):
    """Documents, samples in their order across a clock that jumped, peaks; and a copy as it was."""
    database = tmp_path / "m.db"
    samples = make_old(database)
    LocalWriter(database).close()
    assert_all_there(database, samples)
    assert old_is_whole(copy_path(database)) == ("0001", len(samples))
    connection = sqlite3.connect(database)
    assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    connection.close()
    assert not any(name.startswith("old_") for name in tables)


@pytest.mark.parametrize("statements", [0, 3, 9, 25, pytest.param(None, marks=pytest.mark.faults)])
def test_a_migration_of_old_samples_that_is_killed_changes_nothing(tmp_path, statements):
    """Old or new, never between: killed at a statement (None: at each one), then tried again."""
    database = tmp_path / "m.db"
    samples = make_old(database)
    tried = range(10_000) if statements is None else [statements]
    for number in tried:
        child, _ = workers.start(workers.migrate_and_die, database, number, STATEMENTS)
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        if version(database) == HEAD:  # killed behind the migration: all is new already
            assert_all_there(database, samples)
            assert number > 25, "too early: then the migration itself was not killed"
            break
        assert old_is_whole(database) == ("0001", len(samples))
    LocalWriter(database).close()
    assert_all_there(database, samples)
    assert old_is_whole(copy_path(database)) == ("0001", len(samples))


def test_an_old_writer_that_still_runs_is_not_migrated_under(tmp_path):
    """It holds the lock, whatever its version."""
    from memplan.store.lock import WriterLock

    database = tmp_path / "m.db"
    samples = make_old(database)
    lock = WriterLock(database)
    lock.acquire()
    with pytest.raises(StoreLockedError):
        LocalWriter(database)
    lock.release()
    assert old_is_whole(database) == ("0001", len(samples))


def test_a_new_database_is_what_all_revisions_make(tmp_path):
    """It is made without Alembic, which takes longer to import than all the rest."""

    def schema(database):
        with closing(sqlite3.connect(database)) as connection:
            rows = connection.execute("SELECT type, name, sql FROM sqlite_master")
            made = {(kind, name): " ".join((sql or "").split()) for kind, name, sql in rows}
            return made, connection.execute("SELECT version_num FROM alembic_version").fetchall()

    LocalWriter(tmp_path / "new.db").close()
    old_database.make(tmp_path / "upgraded.db", "head")
    assert schema(tmp_path / "new.db") == schema(tmp_path / "upgraded.db")
    made = "import sys; from memplan.store.writer import LocalWriter; LocalWriter(sys.argv[1])"
    program = f"{made}; sys.exit('alembic' in sys.modules)"
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "newer.db")], check=True)


def test_two_upgraders_at_once_leave_one_new_database(tmp_path):
    """One wins the lock; the other finds it done, or is told to wait."""
    database = tmp_path / "m.db"
    samples = make_old(database)
    command = [sys.executable, "-c", UPGRADE, str(database)]
    both = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [child.communicate()[1] for child in both]
    assert 0 in [child.returncode for child in both]
    for child, text in zip(both, said, strict=True):
        assert child.returncode == 0 or "StoreLockedError" in text
    assert_all_there(database, samples)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_disk_that_is_really_full_leaves_the_old_database(tmp_path):
    """Room for nothing, for the copy only, for half of the tables: the old one; then the new."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "memplan-test", disk]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        database = disk / "m.db"
        samples = make_old(database, 2000)
        size = database.stat().st_size
        refused = 0
        for room in (4096, size + 64 * 1024, 2 * size, 3 * size):
            filler = fill(disk, room)
            try:
                LocalWriter(database).close()
            except StoreFullError:
                refused += 1
            filler.unlink()
            if version(database) == "0001":
                assert old_is_whole(database) == ("0001", len(samples))
            assert list(disk.glob("*.part")) == []
            if version(database) == HEAD:
                break
        assert refused >= 2, "one without a copy, one without tables"
        LocalWriter(database).close()
        assert_all_there(database, samples)
        assert old_is_whole(copy_path(database)) == ("0001", len(samples))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def fill(disk, leave):
    """Take all space but some bytes with a file, and return it."""
    filler = disk / "filler"
    room = os.statvfs(disk)
    with filler.open("wb") as file:
        file.write(bytes(max(room.f_bavail * room.f_frsize - leave, 0)))
    return filler


def test_a_full_disk_leaves_the_old_database(tmp_path):
    """No room for the copy, or none for the new tables."""
    database = tmp_path / "m.db"
    samples = make_old(database)
    blocked = copy_path(database).with_name(copy_path(database).name + ".part")
    blocked.mkdir()  # stands for a copy that cannot be written
    with pytest.raises(StoreError):
        LocalWriter(database)
    assert old_is_whole(database) == ("0001", len(samples))
    blocked.rmdir()
    LocalWriter(database).close()
    assert_all_there(database, samples)


def test_a_reader_does_not_migrate(tmp_path):
    """It says which command does."""
    database = tmp_path / "m.db"
    make_old(database)
    with pytest.raises(StoreError) as caught:
        StoreReader(database)
    assert "memplan" in caught.value.hint
    assert old_is_whole(database)[0] == "0001" != HEAD


def test_there_is_no_way_back_but_the_copy(tmp_path):
    """And the refusal says so."""
    revision = importlib.import_module("memplan_migrations.versions.0002_packed")
    with pytest.raises(StoreVersionError) as caught:
        revision.downgrade()
    assert "before-0002" in caught.value.hint
