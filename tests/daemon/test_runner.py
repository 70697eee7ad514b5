"""Commands under the sampler, in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from factories import make_plan
from memplan_daemon.lifecycle import daemon_status
from memplan_daemon.runner import run_command
from memplan_daemon.spawn import CommandNotFoundError, SpawnError

from memplan.errors import StoreError, StoreLockedError
from memplan.store.reader import StoreReader
from memplan.store.remote import RemoteWriter, socket_path
from memplan.store.writer import LocalWriter
from memplan.units import MIB


@pytest.fixture
def database(home):
    return str(home / "memplan.db")


def run(database, *command, **options):
    return run_command(command, database=database, interval_s=0.02, **options)


def peaks(database, run_id):
    with StoreReader(database) as reader:
        return {(p.series.entity, p.series.metric): p.value for p in reader.peaks(run_id)}


def python(code):
    return (sys.executable, "-c", code)


@pytest.mark.parametrize(("code", "status"), [(0, "finished"), (1, "failed"), (77, "failed")])
def test_the_exit_code_is_kept(database, code, status):
    """As the run's and as the outcome's."""
    outcome = run(database, "sh", "-c", f"exit {code}")
    assert (outcome.run.exit_code, outcome.run.status) == (code, status)
    assert outcome.warnings == ()
    with StoreReader(database) as reader:
        assert reader.run("last") == outcome.run


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_killed_command_has_128_plus_its_signal(database, number):
    """As a shell reports it."""
    outcome = run(database, "sh", "-c", f"kill -{number.value} $$")
    assert outcome.run.exit_code == 128 + number


def test_a_command_that_is_not_there_is_127_and_one_that_is_no_program_126(database, tmp_path):
    """With one clear line each, and a run that failed."""
    with pytest.raises(CommandNotFoundError, match="nosuchprogram: command not found") as caught:
        run(database, "nosuchprogram")
    assert caught.value.exit_code == 127
    with pytest.raises(CommandNotFoundError, match="No such file"):
        run(database, str(tmp_path / "missing"))
    with pytest.raises(SpawnError, match="Permission denied") as caught:
        run(database, str(tmp_path))
    assert caught.value.exit_code == 126
    with StoreReader(database) as reader:
        assert [r.exit_code for r in reader.runs()] == [126, 127, 127]


def test_a_grandchild_is_measured(database):
    """A child forks a grandchild that touches 50 MiB: the tree has them."""
    inner = "import time; b = bytearray(b'x') * (50 * 2**20); time.sleep(1.5)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    outcome = run(database, *python(outer))
    found = peaks(database, outcome.run.id)
    assert found["tree", "processes_count"] == 2
    assert 50 * MIB < found["tree", "rss_anon_bytes"] < 50 * MIB + 60 * MIB
    assert found["tree", "hwm_bytes"] >= found["tree", "rss_bytes"] > 50 * MIB


def test_a_peak_between_two_samples_is_not_lost(database):
    """160 MiB for a moment at the end: the kernel's mark has them, however slow we look.

    In a process of its own that a big one starts: `memplan run` inherits the big one's mark, and
    must not take it for its own.
    """
    code = "b = bytearray(b'x') * (160 * 2**20); import os; os._exit(0)"
    command = [sys.executable, "-m", "memplan", "run", "--interval", "60", "--", *python(code)]
    environment = {**os.environ, "MEMPLAN_DATABASE": str(database)}
    big = bytearray(b"x") * (400 * MIB)
    subprocess.run(command, check=True, capture_output=True, env=environment)
    del big
    with StoreReader(database) as reader:
        run_id = reader.run("last").id
    assert 160 * MIB < peaks(database, run_id)["tree", "hwm_bytes"] < 240 * MIB


def test_a_small_command_does_not_get_the_mark_of_the_one_that_started_it(database):
    """ru_maxrss is inherited across exec: our own size must not become the child's."""
    big = bytearray(b"x") * (64 * MIB)
    outcome = run(database, "sleep", "0.2")
    del big
    assert peaks(database, outcome.run.id)["tree", "hwm_bytes"] < 20 * MIB


def test_the_command_sees_where_to_report(database):
    """Socket, run and database, as absolute places."""
    code = (
        "import os, sys; from memplan import measure\n"
        "assert os.environ['MEMPLAN_DATABASE'] == sys.argv[1]\n"
        "with measure.track('load'): pass\n"
        "with measure.track('prefill'): pass\n"
    )
    outcome = run(database, *python(code), database)
    assert outcome.run.exit_code == 0
    with StoreReader(database) as reader:
        phases = reader.phases(outcome.run.id)
    assert [p.name for p in phases] == ["load", "prefill"]
    assert {p.pid for p in phases} == {outcome.run.pid}
    assert all(p.counters["process.rss"] > MIB for p in phases)
    assert all(p.ended_ns >= p.started_ns for p in phases)


def test_a_plan_from_a_file_is_stored_with_the_run(database):
    """The run names it."""
    outcome = run(database, "true", plan=make_plan(id=None), save_plan=True)
    with StoreReader(database) as reader:
        assert reader.plan("last").id == outcome.run.plan_id is not None


def test_a_run_beside_a_daemon_goes_through_it(daemons, database, until):
    """The daemon keeps the database; samples and phases of the run are there."""
    process = daemons("--interval", "0.5")
    until(lambda: daemon_status(database).running)
    code = "from memplan import measure\nwith measure.track('load'): pass"
    outcome = run(database, *python(code))
    assert outcome.warnings == ()
    assert daemon_status(database).pid == process.pid
    assert peaks(database, outcome.run.id)["tree", "rss_bytes"] > MIB
    with StoreReader(database) as reader:
        assert [p.name for p in reader.phases(outcome.run.id)] == ["load"]


def test_a_run_goes_on_when_the_daemon_is_killed(daemons, database, until, tmp_path):
    """It takes the database over; the run ends as finished, with samples from before and after."""
    process = daemons("--interval", "0.5")
    until(lambda: daemon_status(database).running)
    flag = tmp_path / "flag"
    code = (
        "import os, signal, sys, time; from memplan import measure\n"
        "with measure.track('load'): pass\n"
        "os.kill(int(sys.argv[1]), signal.SIGKILL)\n"
        "time.sleep(2.0)\n"
        "open(sys.argv[2], 'w').close()\n"
    )
    outcome = run(database, *python(code), str(process.pid), str(flag))
    assert flag.exists()
    assert (outcome.run.exit_code, outcome.run.status) == (0, "finished")
    assert outcome.warnings == ()
    with StoreReader(database) as reader:
        assert reader.run("last").status == "finished"
        assert [p.name for p in reader.phases(outcome.run.id)] == ["load"]
        times = [s.t_ns for s in reader.samples(outcome.run.id).samples]
    assert max(times) - min(times) > 1.0e9


def test_a_full_disk_does_not_harm_the_command(database, monkeypatch):
    """The command ends as it would; a warning says what is missing."""

    def full(self, samples):
        raise StoreError("the disk is full")

    monkeypatch.setattr(LocalWriter, "write_samples", full)
    outcome = run(database, "sh", "-c", "sleep 0.2; exit 3")
    assert outcome.run.exit_code == 3
    assert "samples could not be stored: the disk is full" in outcome.warnings[0]


def test_a_database_that_is_held_in_silence_is_refused_before_the_command_starts(
    home, database, monkeypatch, tmp_path
):
    """Rather no run than one that nobody measured."""
    monkeypatch.setattr("memplan.store.open.PATIENCE_S", 0.0)
    holder = subprocess.Popen(
        python(
            "import sys; from memplan.store.writer import LocalWriter\n"
            f"w = LocalWriter({database!r}); print('held', flush=True); sys.stdin.read()"
        ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StoreLockedError, match=str(holder.pid)):
            run(database, "touch", str(tmp_path / "started"))
        assert not (tmp_path / "started").exists()
    finally:
        holder.communicate()


def test_while_a_run_holds_the_database_another_one_writes_through_it(database, until):
    """Two runs at once, one lock."""
    first = subprocess.Popen([sys.executable, "-m", "memplan", "run", "--", "sleep", "60"])
    try:
        until(lambda: daemon_status(database).kind == "run")
        with RemoteWriter(socket_path(database)) as remote:
            assert remote.save_plan(make_plan(id=None)).id is not None
        outcome = run(database, "true")
        assert (outcome.run.exit_code, outcome.warnings) == (0, ())
    finally:
        first.terminate()
    assert first.wait(20) == 128 + signal.SIGTERM


TRAP = (
    "import signal, sys, time\n"
    "got = []\n"
    "for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):\n"
    "    signal.signal(s, lambda n, f: got.append(n))\n"
    "open(sys.argv[1], 'w').write('ready')\n"
    "end = time.monotonic() + 30\n"
    "while not got and time.monotonic() < end: time.sleep(0.01)\n"
    "time.sleep(0.3)\n"
    "open(sys.argv[1], 'w').write(repr(got))\n"
    "sys.exit(5)\n"
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_is_passed_on_once_and_the_commands_answer_counts(
    database, until, tmp_path, number
):
    """The command decides what becomes of it."""
    note = tmp_path / "note"
    process = subprocess.Popen(
        [sys.executable, "-m", "memplan", "run", "--", *python(TRAP), str(note)],
        stderr=subprocess.PIPE,
        process_group=0,
    )
    until(lambda: note.exists() and note.read_text() == "ready")
    process.send_signal(number)
    _, text = process.communicate(timeout=30)
    assert process.returncode == 5, text
    assert note.read_text() == repr([number.value])


def test_ctrl_c_on_a_terminal_reaches_the_command_once(database, until, tmp_path):
    """The terminal tells the whole group itself; passing it on as well would be twice."""
    import pty

    note = tmp_path / "note"
    pid, terminal = pty.fork()
    if pid == 0:
        command = [sys.executable, "-m", "memplan", "run", "--", *python(TRAP), str(note)]
        os.execv(sys.executable, command)
    until(lambda: note.exists() and note.read_text() == "ready")
    os.write(terminal, b"\x03")
    deadline = time.monotonic() + 30
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        assert time.monotonic() < deadline
        _read_some(terminal)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(ended[1]) == 5
    assert note.read_text() == repr([signal.SIGINT.value])


def _read_some(terminal):
    """Empty the terminal, so that nobody waits for room in it."""
    import select

    if select.select([terminal], [], [], 0.05)[0]:
        try:
            os.read(terminal, 4096)
        except OSError:
            time.sleep(0.01)


def test_a_stopped_run_stops_its_command_and_goes_on_with_it(database, until, tmp_path):
    """As ^Z and fg do."""
    code = "import sys, time; open(sys.argv[1], 'w').close(); time.sleep(1.0)"
    note = tmp_path / "note"
    process = subprocess.Popen(
        [sys.executable, "-m", "memplan", "run", "--", *python(code), str(note)],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until(note.exists)

    def state(pid):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

    process.send_signal(signal.SIGTSTP)
    until(lambda: state(process.pid) == "T")
    process.send_signal(signal.SIGCONT)
    assert process.wait(30) == 0
