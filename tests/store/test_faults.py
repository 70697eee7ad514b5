"""The store under faults: kills, full disks, damage, clock jumps, second writers, long readers.

The numbers are those of the list of faults that the daemon has to survive; the slow ones run with
`make faults`.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import sqlalchemy
import workers
from factories import T0, make_plan, make_run, make_sample

from memplan.errors import (
    StoreDamagedError,
    StoreError,
    StoreFullError,
    StoreLockedError,
    StoreVersionError,
)
from memplan.store import engine, migrate, quarantine, readonly
from memplan.store.engine import sqlite_affected, sqlite_problem
from memplan.store.lock import log_holders
from memplan.store.reader import StoreReader
from memplan.store.retention import Policy
from memplan.store.space import ballast_path
from memplan.store.upkeep import check, repair
from memplan.store.writer import LocalWriter
from memplan.types import Sample, Series

NS = 10**9
SERIES = [Series(run_id=None, entity=f"process:{i}", metric="rss_bytes") for i in range(8)]


def batch(i, *, wide=False):
    """Return one instant of eight series; wide = values that do not pack well."""
    big = random.Random(i).randrange(2**60) if wide else i * 4096
    return [Sample(series=s, t_ns=T0 + i * NS, value=big + n) for n, s in enumerate(SERIES)]


def sound(database):
    found = check(database)
    return not found.problems or found.problems


# 1. kill -9


def kill_at_random(database, busy, dice, begin_ns):
    """Let a writer write, kill it; return the last batch that it had acknowledged, and in what.

    A writer that is to be killed while it is busy is killed shortly after it says that it begins.
    """
    child, said = workers.start(workers.write, database, begin_ns, busy)
    heard = [said.recv()]
    end = time.monotonic() + dice.uniform(0, 0.4)  # some blocks long
    while time.monotonic() < end or (busy != "nothing" and heard[-1] != f"in {busy}"):
        heard.append(said.recv())
    if busy != "nothing":
        time.sleep(dice.uniform(0, 0.002))
    child.kill()
    with suppress(EOFError):
        while True:
            heard.append(said.recv())
    child.join()
    assert child.exitcode == -signal.SIGKILL
    return [word for word in heard if isinstance(word, int)][-1], heard[-1]


@pytest.mark.parametrize(
    ("busy", "rounds"),
    [
        ("nothing", 1),
        ("retention", 1),
        pytest.param("nothing", 50, marks=pytest.mark.faults),
        pytest.param("checkpoint", 14, marks=pytest.mark.faults),
        pytest.param("roll-up", 14, marks=pytest.mark.faults),
        pytest.param("retention", 14, marks=pytest.mark.faults),
    ],
)
def test_1_no_acknowledged_flush_is_lost_by_kill_9(tmp_path, busy, rounds):
    """At random moments, and in the middle of what a writer does besides: so many times in it.

    (The migration's own kills are in test_migrate.py: at each statement.)
    """
    database = tmp_path / "m.db"
    dice = random.Random(rounds)
    inside = number = 0
    all_instants = []
    while (number if busy == "nothing" else inside) < rounds:
        start = T0 + number * 10**6 * NS
        last, doing = kill_at_random(database, busy, dice, start)
        inside += doing == f"in {busy}"
        assert sound(database) is True
        with StoreReader(database) as reader:
            samples = reader.samples(None, since_ns=start, limit=10**7).samples
            gaps = reader.events()
        instants = [s.value for s in samples[::8]]
        assert instants[-1] in (last, last + 1)
        assert instants == list(range(instants[0], instants[-1] + 1))
        assert len(samples) == 8 * len(instants)
        if busy != "retention":
            assert instants[0] == start // NS % 10**6
        assert len(gaps) == number
        all_instants += instants
        number += 1
        assert number < 6 * rounds, "it is hardly ever hit"
    LocalWriter(database).close()
    with StoreReader(database) as reader:
        gap = reader.events()[-1]
        assert gap.kind == "store.gap"
        assert (gap.t_ns, gap.run_id) == (samples[-1].t_ns, None)
        assert int(gap.data["until_ns"]) > time.time_ns() - 60 * NS
        if busy != "retention":  # what waited in ticks was packed once, by the next writer
            samples = reader.samples(None, limit=10**7).samples
            assert [s.value for s in samples[::8]] == all_instants
            assert {peak.count for peak in reader.peaks(None)} == {len(all_instants)}


# 3. full disk, 4. a disk that fails or becomes read-only


@contextmanager
def small_disk(folder, size="12m"):
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "memplan-test", folder],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill_disk(folder, leave=0):
    """Take all free space with a file, and return it."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                break
        file.truncate(max(file.tell() - leave, 0))
    return filler


def test_3_a_full_disk_costs_no_acknowledged_row_and_heals_by_itself(tmp_path, monkeypatch):
    """Ballast let go, oldest samples dropped, then a ring in memory; no restart."""
    monkeypatch.setattr("memplan.store.space.PLENTY_BYTES", 2 * 1024**2)
    with small_disk(tmp_path / "disk") as disk:
        database = disk / "m.db"
        writer = LocalWriter(database, flush_s=0)
        acknowledged = [writer.write_samples(batch(i, wide=True)) or i for i in range(300)]
        assert ballast_path(database).stat().st_size == 1024**2
        filler = fill_disk(disk)
        refused = None
        for i in range(300, 5000):
            try:
                writer.write_samples(batch(i, wide=True))
            except StoreFullError as error:
                refused = error
                break
            acknowledged.append(i)
        assert refused is not None
        assert "disk space" in refused.hint
        assert writer.degraded
        assert not ballast_path(database).exists()
        with StoreReader(database) as reader:
            kept = [s.t_ns for s in reader.samples(None, limit=10**7).samples[::8]]
            peaks = reader.peaks(None)
        wanted = [T0 + i * NS for i in acknowledged]
        assert kept == wanted[-len(kept) :]
        assert peaks[0].count == len(acknowledged)
        writer.stage_samples(batch(9000))
        filler.unlink()
        writer.stage_samples(batch(9001))
        assert not writer.degraded
        assert ballast_path(database).exists()
        writer.close()
        with StoreReader(database) as reader:
            kept = [s.t_ns for s in reader.samples(None, limit=10**7).samples[::8]]
        assert kept[-2:] == [T0 + 9000 * NS, T0 + 9001 * NS]
        assert sound(database) is True


def test_3_a_log_that_cannot_be_moved_into_the_file_is_safe(tmp_path):
    """The disk is full at a checkpoint: everything is read from the log, and moved later."""
    with small_disk(tmp_path / "disk") as disk:
        database = disk / "m.db"
        with LocalWriter(database) as writer:
            writer._core.connection.exec_driver_sql("PRAGMA wal_autocheckpoint = 0")
            writer._core.connection.rollback()
            for i in range(300):
                writer.write_samples(batch(i, wide=True))
            fill_disk(disk)
            before = database.stat().st_size
            writer.checkpoint()
            assert database.stat().st_size == before, "then it was not full"
            with StoreReader(database) as reader:
                assert len(reader.samples(None, limit=10**7).samples) == 300 * 8
            (disk / "filler").unlink()
            writer.checkpoint()
            assert database.stat().st_size > before
            assert Path(f"{database}-wal").stat().st_size == 0
            assert sound(database) is True


def test_3_a_backup_that_does_not_fit_leaves_nothing(tmp_path):
    """And the database is untouched."""
    from memplan.store.upkeep import backup

    with small_disk(tmp_path / "disk") as disk:
        database = disk / "m.db"
        with LocalWriter(database) as writer:
            for i in range(200):
                writer.write_samples(batch(i, wide=True))
        fill_disk(disk)
        with pytest.raises(StoreFullError):
            backup(database, disk / "copy.db")
        (disk / "filler").unlink()
        assert sorted(p.name for p in disk.iterdir() if "copy" in p.name) == []
        assert sound(database) is True


def test_4_a_disk_that_becomes_read_only_is_waited_for(tmp_path):
    """Refused with a reason, no busy loop, and it goes on when the disk takes writes again."""
    with small_disk(tmp_path / "disk") as disk, LocalWriter(disk / "m.db") as writer:
        writer.write_samples(batch(0))
        remount = ["mount", "-o", "remount,ro", disk]
        if subprocess.run(remount, capture_output=True, check=False).returncode:
            # open files forbid it: the kernel's own way to fail a write is a page limit
            writer._core.connection.exec_driver_sql("PRAGMA query_only = ON")
            writer._core.connection.rollback()
        begun = time.process_time()
        for i in range(1, 20):
            writer.stage_samples(batch(i))
        assert writer.degraded
        assert time.process_time() - begun < 5
        subprocess.run(["mount", "-o", "remount,rw", disk], capture_output=True, check=False)
        writer._core.connection.exec_driver_sql("PRAGMA query_only = OFF")
        writer._core.connection.rollback()
        writer.flush()
        assert not writer.degraded
        with StoreReader(disk / "m.db") as reader:
            assert len(reader.samples(None).samples) == 20 * 8


# 5. clocks


def test_5_clock_jumps_keep_every_sample_and_their_order(tmp_path):
    """An hour back, a day forth, a slow slew, a suspended machine."""
    times, now = [], T0
    for step in (1, 1, -3600, 1, 1, 86_400, 1, -86_400, 0, 1, 1e-3, 1e-3, 7200, 1):
        now += round(step * NS)
        times += [now + i * NS // 10 for i in range(30)]
    with LocalWriter(tmp_path / "m.db") as writer, StoreReader(tmp_path / "m.db") as reader:
        for i, t_ns in enumerate(times):
            writer.write_samples([Sample(series=SERIES[0], t_ns=t_ns, value=i)])
        got = reader.samples(None).samples
        assert [(s.t_ns, s.value) for s in got] == list(zip(times, range(len(times)), strict=True))
        (peak,) = reader.peaks(None)
        assert (peak.value, peak.count) == (len(times) - 1, len(times))
        (curve,) = reader.curves(None, since_ns=min(times), until_ns=max(times) + 1, buckets=100)
        assert sum(b.n for b in curve.buckets) == len(times)
        assert sound(tmp_path / "m.db") is True


# 16. damage


def make_database(database, ticks=6000):
    with LocalWriter(database) as writer:
        writer.save_plan(make_plan())
        writer.save_run(make_run())
        for begin in range(0, ticks, 65):
            rows = [batch(i, wide=True) for i in range(begin, min(begin + 65, ticks))]
            writer.write_samples([sample for row in rows for sample in row])
        writer.checkpoint()


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """The bytes of a database of some size, and its samples."""
    database = tmp_path_factory.mktemp("large") / "m.db"
    make_database(database)
    assert database.stat().st_size > 150 * 4096
    with StoreReader(database) as reader:
        return database.read_bytes(), set(reader.samples(None, limit=10**7).samples)


def zero_header(data):
    data[:100] = bytes(100)


def random_page(data):
    page = len(data) // 4096 // 2
    data[page * 4096 : (page + 1) * 4096] = random.Random(1).randbytes(4096)


def truncated(data):
    del data[len(data) * 3 // 4 // 4096 * 4096 :]


def flipped_bit(data):
    """Flip a bit in the middle of what a chunk holds."""
    alone = bytearray(data)
    alone[18:20] = b"\1\1"  # no log: it is read from memory
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.deserialize(bytes(alone))
        query = "SELECT data FROM chunk ORDER BY length(data) DESC LIMIT 1"
        (blob,) = connection.execute(query).fetchone()
    data[data.index(blob[:64]) + 32] ^= 4  # its end may lie on another page


def zero_first_page(data):
    data[:4096] = bytes(4096)


@pytest.mark.parametrize(
    "damage", [zero_header, random_page, truncated, flipped_bit, zero_first_page]
)
def test_16_a_damaged_file_is_put_aside_and_what_is_sound_is_saved(tmp_path, large, damage):
    """A new database under the old name, every packed column whose checksum is right in it."""
    database = tmp_path / "m.db"
    data, before = bytearray(large[0]), large[1]
    damage(data)
    database.write_bytes(data)
    assert check(database).problems
    rescue = repair(database)
    assert rescue is not None
    assert rescue.aside.read_bytes() == data
    assert sound(database) is True
    with StoreReader(database) as reader:
        after = reader.samples(None, limit=10**7).samples
        assert set(after) <= before
        assert len(after) >= len(before) // 2
        events = reader.events()
        assert "store.quarantined" in [event.kind for event in events]
        assert reader.runs() == (make_run(),)
    assert repair(database) is None


def test_16_the_writer_repairs_what_it_cannot_open(tmp_path):
    """The daemon starts, whatever the last power cut has left."""
    database = tmp_path / "m.db"
    make_database(database, 130)
    data = bytearray(database.read_bytes())
    zero_header(data)
    database.write_bytes(data)
    with LocalWriter(database) as writer:
        writer.write_samples(batch(999))
    with StoreReader(database) as reader:
        assert len(reader.samples(None).samples) == 131 * 8
    assert len(list(tmp_path.glob("m.db.damaged-*"))) == 1


def test_16_damage_that_is_met_while_writing_does_not_end_the_writer(tmp_path, caplog):
    """The page behind a table is gone: put aside, saved, told once, and the batch is written."""
    database = tmp_path / "m.db"
    make_database(database, 200)
    with LocalWriter(database) as writer:
        with closing(sqlite3.connect(database)) as other:
            root = other.execute("SELECT rootpage FROM sqlite_master WHERE name = 'tick'")
            page = root.fetchone()[0]
        writer.checkpoint()
        with database.open("r+b") as file:
            file.seek((page - 1) * 4096)
            file.write(bytes([255]) * 4096)
        writer._core.connection.exec_driver_sql("PRAGMA shrink_memory")
        writer._core.connection.rollback()
        with closing(sqlite3.connect(database)) as other:  # makes the writer look again
            other.execute("PRAGMA user_version = 7")
        writer.write_samples(batch(999))
        with StoreReader(database) as reader:
            assert reader.samples(None, since_ns=T0 + 999 * NS).samples == tuple(batch(999))
            (event,) = reader.events()
            assert event.kind == "store.quarantined"
    assert [event.message] == [record.getMessage() for record in caplog.records]
    assert len(list(tmp_path.glob("m.db.damaged-*"))) == 1


def test_16_a_log_that_is_gone_leaves_what_was_checkpointed(tmp_path):
    """An older, sound state."""
    database = tmp_path / "m.db"
    writer = LocalWriter(database)
    for i in range(70):
        writer.write_samples(batch(i))
    writer.checkpoint()
    for i in range(70, 90):
        writer.write_samples(batch(i))
    copy = tmp_path / "copy.db"
    copy.write_bytes(database.read_bytes())
    writer.close()
    LocalWriter(copy).close()
    assert sound(copy) is True
    with StoreReader(copy) as reader:
        assert len(reader.samples(None).samples) == 70 * 8


def test_16_a_file_that_was_removed_or_replaced_is_begun_anew(tmp_path):
    """Not written on under no name; with a lock that others see; a stranger's file stays."""
    database = tmp_path / "m.db"
    with LocalWriter(database) as writer:
        writer.write_samples(batch(0))
        for path in tmp_path.glob("m.db*"):
            path.unlink()
        writer.write_samples(batch(1))
        with pytest.raises(StoreLockedError):
            LocalWriter(database)
        with StoreReader(database) as reader:
            assert reader.samples(None).samples == tuple(batch(1))
        database.rename(tmp_path / "elsewhere.db")
        database.write_text("a stranger's" * 1000)
        writer.stage_samples(batch(2))
        assert "not a database" in writer.degraded
        assert database.read_text() == "a stranger's" * 1000
        database.unlink()
        writer.stage_samples(batch(3))
        assert not writer.degraded
        with StoreReader(database) as reader:
            assert reader.samples(None).samples == (*batch(2), *batch(3))


def test_16_a_file_that_is_replaced_while_it_is_opened_is_not_written_on(tmp_path, monkeypatch):
    """Between its opening and the first write nobody has looked yet."""
    database = tmp_path / "m.db"
    real = migrate.migrate

    def replaced(*arguments):
        real(*arguments)
        monkeypatch.undo()
        for path in tmp_path.glob("m.db*"):
            if path.suffix != ".lock":
                path.unlink()
        database.touch(0o600)

    monkeypatch.setattr("memplan.store.connection.migrate", replaced)
    with LocalWriter(database) as writer:
        writer.write_samples(batch(0))
        with StoreReader(database) as reader:
            assert reader.samples(None).samples == tuple(batch(0))


def test_16_a_file_that_is_replaced_at_its_very_opening_is_an_error(tmp_path, monkeypatch):
    """Nobody knows which of the two is open: whoever writes tries again."""
    database = tmp_path / "m.db"
    real = engine.writer_engine

    def replaced(path):
        made = real(path)
        sqlalchemy.event.listen(made, "connect", lambda *_: (path.unlink(), path.touch(0o600)))
        return made

    with LocalWriter(database) as writer:
        writer.write_samples(batch(0))
        monkeypatch.setattr("memplan.store.connection.writer_engine", replaced)
        database.unlink()
        with pytest.raises(StoreError, match="replaced while it was opened"):
            writer.write_samples(batch(1))
        monkeypatch.undo()
        writer.write_samples(batch(2))
        with StoreReader(database) as reader:
            assert reader.samples(None).samples == tuple(batch(2))


def test_16_another_disk_over_the_database_is_noticed(tmp_path):
    """A file of the same number there is another one: numbers are counted on each disk."""
    with small_disk(tmp_path / "disk") as disk, LocalWriter(disk / "m.db") as writer:
        writer.write_samples(batch(0))
        number = (disk / "m.db").stat().st_ino
        (disk / "over").mkdir()
        with small_disk(disk / "over" / "disk") as other:
            for i in range(2 * number):  # on a fresh disk they are counted up
                file = other / f"{i}"
                file.touch(0o600)
                if file.stat().st_ino == number:
                    break
            else:
                pytest.skip("this kernel counts differently")
            file.rename(other / "m.db")
            subprocess.run(["mount", "--bind", other, disk], check=True)
            try:
                writer.write_samples(batch(1))
                with StoreReader(disk / "m.db") as reader:
                    assert reader.samples(None).samples == tuple(batch(1))
            finally:
                writer.close()
                subprocess.run(["umount", "-l", disk], check=True)


def test_16_a_strangers_file_is_left_alone(tmp_path):
    """Neither moved nor written, by the writer and by repair."""
    stranger = tmp_path / "stranger.db"
    with closing(sqlite3.connect(stranger)) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    text = tmp_path / "text.db"
    text.write_bytes(b"no database at all" * 1000)
    for path in (stranger, text):
        before = path.read_bytes()
        for attempt in (LocalWriter, repair):
            with pytest.raises(StoreDamagedError):
                attempt(path)
        assert path.read_bytes() == before
        assert not quarantine.is_ours(path)


def test_16_a_newer_schema_is_no_damage(tmp_path):
    """It is refused with the command that helps, and stays where it is."""
    database = tmp_path / "m.db"
    LocalWriter(database).close()
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '0099'")
    with pytest.raises(StoreVersionError) as caught:
        LocalWriter(database)
    assert "upgrade" in caught.value.hint
    assert repair(database) is None
    assert list(tmp_path.glob("*.damaged*")) == []


# 17. two writers, 18. affected SQLite


def test_17_a_second_daemon_ends_with_a_clear_code_and_writes_nothing(tmp_path):
    """In another process; 2 is "could not do it"."""
    database = tmp_path / "m.db"
    with LocalWriter(database) as writer:
        writer.write_samples(batch(0))
        before = database.read_bytes()
        done = subprocess.run(
            [sys.executable, "-m", "memplan", "daemon", "run"],
            env={**os.environ, "MEMPLAN_DATABASE": str(database)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert f"process {os.getpid()}" in done.stderr
        assert "Traceback" not in done.stderr
        assert database.read_bytes() == before


OPEN_AS_NOBODY = """
import os, sys
from memplan.errors import StoreError
from memplan.store.writer import LocalWriter
LocalWriter(sys.argv[2]).close()  # imports what nobody may not be allowed to read
os.setuid(65534)
try:
    writer = LocalWriter(sys.argv[1])
except StoreError as error:
    sys.exit(f"{type(error).__name__}: {error}")
print("open", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("first", ["root", "nobody"])
def test_17_two_daemons_of_different_users_do_not_write_to_one_database(tmp_path, first):
    """Whoever came first holds the lock; the other is refused, and nothing is written."""
    with tempfile.TemporaryDirectory(prefix="mp-17-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        database = folder / "m.db"
        command = [sys.executable, "-c", OPEN_AS_NOBODY, str(database), str(tmp_path / "other.db")]
        if first == "root":
            with LocalWriter(database) as writer:
                writer.write_samples(batch(0))
                before = database.read_bytes()
                done = subprocess.run(
                    command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
                )
                assert done.returncode == 1
                assert done.stderr.startswith("Store"), done.stderr
                assert database.read_bytes() == before
        else:
            with subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as child:
                assert child.stdout.readline() == "open\n"
                before = database.read_bytes()
                with pytest.raises(StoreLockedError, match=str(child.pid)):
                    LocalWriter(database)
                assert database.read_bytes() == before
                child.stdin.close()
        assert sound(database) is True


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_17_a_network_file_system_is_refused(tmp_path, kind):
    """Two hosts could hold one lock there."""
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nserver:/x {tmp_path} {kind} rw 0 0\n")
    with pytest.raises(StoreError, match=kind) as caught:
        engine._refuse_network(tmp_path / "m.db", mounts)
    assert "MEMPLAN_DATABASE" in caught.value.hint
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nserver:/x {tmp_path}/other {kind} rw 0 0\n")
    engine._refuse_network(tmp_path / "m.db", mounts)


def test_18_an_affected_sqlite_is_named_and_a_second_writer_is_refused(tmp_path):
    """Whatever SQLite this Python links: the lock keeps the race away."""
    assert "WAL-reset" in sqlite_problem("3.40.1")
    assert sqlite_problem("3.51.3") is None
    assert (sqlite_problem() is not None) == sqlite_affected(sqlite3.sqlite_version)
    with LocalWriter(tmp_path / "m.db"), pytest.raises(StoreLockedError):
        LocalWriter(tmp_path / "m.db")


READ = """
import sys, time
from memplan.store.reader import StoreReader
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    with StoreReader(sys.argv[1]) as reader:
        reader.samples(None, limit=1000)
        reader.peaks(None)
"""


@pytest.mark.faults
def test_18_one_writer_that_checkpoints_beside_two_readers_stays_sound(tmp_path):
    """The load that corrupts an affected SQLite has a second writer; ours never has one."""
    database = tmp_path / "m.db"
    with LocalWriter(database) as writer:
        writer.write_samples(batch(0))
        command = [sys.executable, "-c", READ, str(database), "30"]
        readers = [subprocess.Popen(command) for _ in range(2)]
        i = 0
        while any(child.poll() is None for child in readers):
            i += 1
            writer.write_samples(batch(i))
            if i % 5 == 0:
                writer.checkpoint()
    assert [child.returncode for child in readers] == [0, 0]
    assert sound(database) is True


# 19. a reader that holds its transaction


def test_19_the_log_stays_under_its_cap_while_somebody_reads_an_old_state(tmp_path):
    """Samples wait in memory, the culprit is named, and all is written when it lets go."""
    database, cap = tmp_path / "m.db", 512 * 1024
    hold = (
        "import sqlite3, sys\n"
        "c = sqlite3.connect(f'file:{sys.argv[1]}?mode=ro', uri=True, isolation_level=None)\n"
        "c.execute('BEGIN'); c.execute('SELECT count(*) FROM tick').fetchone()\n"
        "print('held', flush=True); sys.stdin.read()\n"
    )
    with LocalWriter(database, log_cap_bytes=cap) as writer:
        writer.write_samples(batch(0))
        command = [sys.executable, "-c", hold, str(database)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout.readline() == "held\n"
            sent = 0
            while not writer.degraded:
                sent += 1
                writer.stage_samples(batch(sent, wide=True))
                assert sent < 5000
            assert log_holders(database) == (child.pid,)
            assert str(child.pid) in writer.degraded
            for _ in range(50):
                sent += 1
                writer.stage_samples(batch(sent, wide=True))
            assert Path(f"{database}-wal").stat().st_size < cap + 512 * 1024
            child.stdin.close()
            child.wait()
        writer.flush()
        assert not writer.degraded
        with StoreReader(database) as reader:
            assert len(reader.samples(None, limit=10**7).samples) == (sent + 1) * 8


def test_19_our_own_readers_are_cut(tmp_path, monkeypatch):
    """A query that takes too long ends with an error, and its snapshot with it."""
    make_database(tmp_path / "m.db", 130)
    monkeypatch.setattr(readonly, "LONGEST_READ_S", -1.0)
    monkeypatch.setattr(readonly, "_PROGRESS_STEPS", 10)
    with pytest.raises(StoreError, match="cut") as caught, StoreReader(tmp_path / "m.db") as reader:
        reader.samples(None)
    assert "shorter" in caught.value.hint


# retention takes no long lock


def test_housekeeping_goes_in_short_transactions(tmp_path):
    """Thousands of blocks, deleted and given back; a sample in between never waits for them."""
    now = T0 + 10**6 * NS
    with LocalWriter(tmp_path / "m.db", policy=Policy(raw_ns=NS), now_ns=lambda: now) as writer:
        for i in range(700):
            writer.write_samples(batch(i, wide=True))
        steps = 0
        while writer.keep_house(batches=1):
            steps += 1
            writer.write_samples([make_sample(steps, seconds=10**6, run_id=None)])
        assert steps >= 1
        with StoreReader(tmp_path / "m.db") as reader:
            assert len(reader.samples(None).samples) >= steps


def test_pages_are_given_back_in_batches(tmp_path, monkeypatch):
    """A pragma that is not stepped to its end frees one page at a time."""
    monkeypatch.setattr("memplan.store.retention._VACUUM_PAGES", 32)
    database = tmp_path / "m.db"
    make_database(database)
    before = database.stat().st_size
    with LocalWriter(database, policy=Policy(raw_ns=NS)) as writer:
        steps = 0
        while writer.keep_house(batches=1):
            steps += 1
        writer.checkpoint()
    gone = (before - database.stat().st_size) // 4096
    assert gone > 64
    assert steps < gone // 2
