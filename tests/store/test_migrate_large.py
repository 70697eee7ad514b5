"""Fault 20 with ten million samples: killed, out of space, two at once; old or new."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import old_database
import pytest
import test_faults
import test_migrate
import workers

from memplan.store.migrate import HEAD, copy_path
from memplan.store.reader import StoreReader
from memplan.store.writer import LocalWriter

pytestmark = [pytest.mark.faults, pytest.mark.slow]

TICKS = 50_000
SAMPLES = TICKS * old_database.SERIES
MOVING = ("INSERT INTO BLOCK",)
DROPPING = ("DROP TABLE",)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A database of the first layout with ten million samples."""
    database = tmp_path_factory.mktemp("old") / "m.db"
    old_database.make(database)
    old_database.fill(database, TICKS)
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    return database


def assert_old(database):
    assert test_migrate.old_is_whole(database) == ("0001", SAMPLES)


def assert_new(database):
    """Every series is there with its peak and its number, and samples are what they were."""
    assert test_migrate.version(database) == HEAD
    peaks = {}
    for _, number, value in old_database.values(2000):
        peaks[number] = max(value, peaks.get(number, 0))
    with StoreReader(database) as reader:
        found = reader.peaks(None)
        assert len(found) == old_database.SERIES
        assert {peak.count for peak in found} == {TICKS}
        for peak in found:
            assert peak.value >= peaks[int(peak.series.entity.partition(":")[2]) - 1000]
        end_ns = old_database.T0 + 2000 * old_database.NS
        read = reader.columns(None, until_ns=end_ns, limit=10**9).columns
    sent = {}
    for _, number, value in old_database.values(2000):
        sent.setdefault(f"process:{1000 + number}", []).append(value)
    assert {series.entity: list(values) for series, (_, values) in read.items()} == sent
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (count,) = connection.execute("SELECT sum(n) FROM chunk").fetchone()
    assert count == SAMPLES
    assert_old(copy_path(database))


def test_20_killed_half_way_and_at_the_end_it_is_the_old_one_and_two_at_once_mend_it(
    original, tmp_path
):
    """Ten million samples: kill -9 before the first, the middle and the last step."""
    database = tmp_path / "m.db"
    shutil.copy(original, database)
    blocks = TICKS // 60
    for signs, left in ((MOVING, 0), (MOVING, blocks // 2), (DROPPING, 6)):
        child, _ = workers.start(workers.migrate_and_die, database, left, signs)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert_old(database)
    command = [sys.executable, "-c", test_migrate.UPGRADE, str(database)]
    both = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [child.communicate()[1] for child in both]
    codes = [child.returncode for child in both]
    assert sorted(codes) in ([0, 0], [0, 1])
    assert all(
        code == 0 or "StoreLockedError" in text for code, text in zip(codes, said, strict=True)
    )
    assert_new(database)


def test_20_without_room_for_the_new_tables_it_is_the_old_one(original, tmp_path):
    """The copy still fits; then the disk is full while samples are moved, then there is room."""
    size = original.stat().st_size
    with test_faults.small_disk(tmp_path / "disk", f"{(2 * size >> 20) + 400}m") as disk:
        database = disk / "m.db"
        shutil.copy(original, database)
        filler = disk / "filler"
        filler.write_bytes(bytes(392 << 20))
        done = subprocess.run(
            [sys.executable, "-c", test_migrate.UPGRADE, str(database)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "StoreFullError" in done.stderr
        assert_old(database)
        assert_old(copy_path(database))
        filler.unlink()
        LocalWriter(database).close()
        assert_new(database)
