"""memplan.store under kill -9: what was committed is there, what was half done is not."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys

import pytest

from memplan.store.reader import StoreReader
from memplan.store.writer import LocalWriter

WRITE_FOREVER = """
import itertools, sys
from memplan.store.writer import LocalWriter
from memplan.types import Sample, Series

series = [Series(run_id="r-1", entity=f"process:{i}", metric="rss_bytes") for i in range(20)]
writer = LocalWriter(sys.argv[1])
for n in itertools.count(1):
    writer.write_samples([Sample(series=s, t_ns=n, value=n) for s in series])
    print(n, flush=True)
"""

DIE_WHILE_MIGRATING = """
import os, signal, sys
import sqlalchemy
from memplan.store.writer import LocalWriter

left = int(sys.argv[2])

@sqlalchemy.event.listens_for(sqlalchemy.Engine, "before_cursor_execute")
def count(connection, cursor, statement, *rest):
    global left
    if statement.lstrip().upper().startswith(("CREATE", "INSERT")):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

LocalWriter(sys.argv[1])
print("migrated")
"""


def integrity(database):
    connection = sqlite3.connect(database)
    try:
        return connection.execute("PRAGMA integrity_check").fetchone()[0]
    finally:
        connection.close()


@pytest.mark.parametrize("acknowledged", [1, 7, 60])
def test_no_committed_sample_is_lost_by_kill_9(tmp_path, acknowledged):
    """Everything that the writer had acknowledged is read afterwards, and writing goes on."""
    database = tmp_path / "m.db"
    child = subprocess.Popen(
        [sys.executable, "-c", WRITE_FOREVER, str(database)], stdout=subprocess.PIPE, text=True
    )
    with child:
        last = 0
        for line in child.stdout:
            last = int(line)
            if last >= acknowledged:
                break
        child.kill()
        rest = child.stdout.read().split()
    last = int(rest[-1]) if rest else last
    with StoreReader(database) as reader:
        samples = reader.samples("r-1").samples
    assert len(samples) >= 20 * last
    assert len(samples) % 20 == 0
    with LocalWriter(database) as writer:
        writer.write_samples(samples[:1])
    assert integrity(database) == "ok"


@pytest.mark.parametrize("statements", [0, 1, 2, 5, 9, 11])
def test_a_migration_that_is_killed_leaves_nothing_and_the_next_one_works(tmp_path, statements):
    """Whichever statement is the last."""
    database = tmp_path / "m.db"
    done = subprocess.run(
        [sys.executable, "-c", DIE_WHILE_MIGRATING, str(database), str(statements)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    connection = sqlite3.connect(database)
    assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    connection.close()
    LocalWriter(database).close()
    assert integrity(database) == "ok"


def test_the_statements_of_a_migration_are_as_many_as_were_tried(tmp_path):
    """Guards the test above: with enough statements allowed, the migration ends."""
    done = subprocess.run(
        [sys.executable, "-c", DIE_WHILE_MIGRATING, str(tmp_path / "m.db"), "1000"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "migrated\n"


def test_the_lock_of_a_killed_writer_is_free(tmp_path):
    """The kernel gives it back; the file that stays behind is no obstacle."""
    database = tmp_path / "m.db"
    child = subprocess.Popen(
        [sys.executable, "-c", WRITE_FOREVER, str(database)], stdout=subprocess.PIPE, text=True
    )
    with child:
        child.stdout.readline()
        os.kill(child.pid, signal.SIGKILL)
    assert (tmp_path / "m.db.lock").exists()
    LocalWriter(database).close()


def test_a_reader_works_on_what_a_killed_writer_left_in_a_folder_it_cannot_write(tmp_path):
    """After a clean end: without log and shared memory the file is read as it stands."""
    database = tmp_path / "m.db"
    with LocalWriter(database) as writer:
        from factories import make_sample

        writer.write_samples([make_sample(3)])
    tmp_path.chmod(0o500)
    try:
        with StoreReader(database) as reader:
            assert len(reader.samples("r-1").samples) == 1
    finally:
        tmp_path.chmod(0o700)
