"""Real daemons under the faults of their machine: kills, full and failing disks, limits, signals.

The numbers are those of the list of faults in docs/faults.md; `make faults` runs the slow ones.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import daemon_processes
import pytest
from memplan_daemon.lifecycle import daemon_status, log_path

from memplan.errors import StoreLockedError
from memplan.store.reader import StoreReader
from memplan.store.remote import RemoteWriter, encode_frame, socket_path
from memplan.store.upkeep import check
from memplan.store.writer import LocalWriter
from memplan.testing import FakeGpu
from memplan.types import Sample, Series

NS = 10**9
CLIENT = Series(run_id=None, entity="client", metric="value_count")


@pytest.fixture
def database(home):
    return str(home / "memplan.db")


@pytest.fixture
def forked(database):
    """Daemons that start at once; none outlives the test."""
    started = []

    def start(work=daemon_processes.sample, *arguments, interval_s=0.01):
        process = daemon_processes.start(work, database, interval_s, *arguments)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def times(database, entity="host", metric="used_bytes"):
    """Return when something of the host was sampled."""
    with StoreReader(database) as reader:
        (batch,) = [reader.columns(None, limit=10**9)]
    for series, (found, _) in batch.columns.items():
        if (series.entity, series.metric) == (entity, metric):
            return list(found)
    return []


def longest_pause_s(found):
    return max((after - before for before, after in itertools.pairwise(found))) / NS


def written(database):
    return daemon_status(database).samples_written or 0


def goes_on(database, until):
    """Wait until samples come again."""
    before = written(database)
    until(lambda: written(database) > before)


# 1. kill -9 of the daemon


def write_until_killed(process, database, seconds, first):
    """Write through the daemon, kill it, and return the last number that it had acknowledged."""
    end = time.monotonic() + seconds
    number = first
    with RemoteWriter(socket_path(database)) as client:
        while True:
            client.write_samples([Sample(series=CLIENT, t_ns=time.time_ns(), value=number)])
            if time.monotonic() >= end:
                break
            number += 1
        process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return number


@pytest.mark.parametrize("rounds", [2, pytest.param(50, marks=pytest.mark.faults)])
def test_1_no_kill_of_the_daemon_loses_what_it_has_acknowledged(forked, database, until, rounds):
    """At random moments: a sound file, each number once and in order, and a gap for each kill."""
    dice = random.Random(rounds)
    acknowledged = 0
    for number in range(rounds):
        process = forked()
        until(lambda: daemon_status(database).running)
        acknowledged = write_until_killed(process, database, dice.uniform(0, 0.3), acknowledged + 1)
        assert check(database).problems == ()
        with StoreReader(database) as reader:
            values = [
                s.value for s in reader.samples(None, limit=10**7).samples if s.series == CLIENT
            ]
            gaps = [event for event in reader.events() if event.kind == "store.gap"]
        assert values == list(range(1, acknowledged + 1))
        assert len(gaps) == number
    forked()
    until(lambda: daemon_status(database).running)
    with StoreReader(database) as reader:
        last = [event for event in reader.events() if event.kind == "store.gap"][-1]
        (peak,) = [peak for peak in reader.peaks(None) if peak.series == CLIENT]
    assert last.t_ns < int(last.data["until_ns"]) <= time.time_ns()
    assert (peak.value, peak.count) == (acknowledged, acknowledged), "no tick was packed twice"


@pytest.mark.faults
def test_1_a_kill_while_the_daemon_starts_does_no_harm(forked, database, until):
    """Ten times within its first tenths of a second; the next one starts."""
    dice = random.Random(7)
    for _ in range(10):
        process = forked()
        time.sleep(dice.uniform(0, 0.3))
        process.kill()
        process.join()
    forked()
    until(lambda: written(database) > 0)
    assert check(database).problems == ()


# 2. a probe that is stopped or killed


@pytest.mark.faults
@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_2_a_lost_probe_is_late_in_3_s_and_back_in_5_s(nvml, daemons, database, until, how):
    """With the deadlines as they are: the host's cadence of a second stays, no probe is left."""
    nvml.gpus = [FakeGpu(uuid="GPU-a", used=77)]
    nvml.write()
    process = daemons("--interval", "1")
    until(lambda: daemon_status(database).gpus == {"GPU-a": "ok"})
    (probe,) = children(process.pid)
    begun, wall = time.monotonic(), time.time_ns()
    os.kill(probe, how)
    if how == signal.SIGSTOP:
        until(lambda: daemon_status(database).gpus == {"GPU-a": "late"})
        assert time.monotonic() - begun <= 3.0
        begun = time.monotonic()
    until(lambda: daemon_status(database).probe_restarts == 1)
    until(lambda: daemon_status(database).gpus == {"GPU-a": "ok"})
    assert time.monotonic() - begun <= 5.0
    until(lambda: times(database)[-1] > wall + 6 * NS)
    assert longest_pause_s([t for t in times(database) if t > wall - 2 * NS]) < 1.5
    (new,) = children(process.pid)
    assert new != probe
    assert daemon_status(database).probe_restarts == 1


def children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# 3. a full disk, 4. one that fails


@contextlib.contextmanager
def loop_disk(folder, megabytes):
    """A file system of its own in a file: its errors are a disk's."""
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(megabytes * 1024**2)
    place = folder / "disk"
    place.mkdir()
    for command in (["mkfs.ext4", "-q", "-m", "0", image], ["mount", "-o", "loop", image, place]):
        try:
            done = subprocess.run(command, capture_output=True, check=False)
        except FileNotFoundError:
            pytest.skip(f"{command[0]} is not installed")
        if done.returncode:
            pytest.skip("a file system in a file cannot be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.faults
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_3_a_daemon_on_a_full_disk_says_so_and_heals_by_itself(
    tmp_path, daemons, monkeypatch, until
):
    """A mounted file of 24 MiB: status and log tell it, samples wait, nothing is restarted."""
    with loop_disk(tmp_path, 24) as disk:
        database = str(disk / "m.db")
        monkeypatch.setenv("MEMPLAN_DATABASE", database)
        process = daemons("--interval", "0.02")
        until(lambda: written(database) > 1000)
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(2**16))
        until(lambda: "full" in daemon_status(database).store_error)
        begun = time.time_ns()
        command = [sys.executable, "-m", "memplan", "daemon", "status"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "problem   cannot write to" in shown.stdout
        assert not (disk / "m.db.ballast").exists(), "it was let go of first"
        time.sleep(1)
        filler.unlink()
        ended = time.time_ns()
        until(lambda: not daemon_status(database).store_error)
        assert daemon_status(database).pid == process.pid
        goes_on(database, until)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
        assert process.returncode == 0
        assert log.count("the store writes nothing at the moment") == 1
        assert log.count("the store takes samples again") == 1
        found = [t for t in times(database) if begun <= t <= ended]
        assert len(found) > 20, "what waited in memory was written"
        assert longest_pause_s(found) < 0.5
        assert check(database).problems == ()


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    """A library that makes writes fail."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    target = tmp_path_factory.mktemp("shim") / "disk_fault.so"
    source = Path(__file__).with_name("disk_fault.c")
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", target, source, "-ldl"]
    subprocess.run(command, check=True)
    return target


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
def test_4_a_failing_disk_is_told_once_and_waited_for(
    shim, daemons, database, home, monkeypatch, until, number
):
    """Every write fails, as on a broken disk, or one that the kernel made read-only."""
    flag = home / "fault"
    monkeypatch.setenv("LD_PRELOAD", str(shim))
    monkeypatch.setenv("DISK_FAULT", str(flag))
    monkeypatch.setenv("DISK_FAULT_IN", database)
    process = daemons("--interval", "0.05")
    monkeypatch.delenv("LD_PRELOAD")
    until(lambda: written(database) > 100)
    flag.write_text(str(number))
    until(lambda: "disk I/O error" in daemon_status(database).store_error)
    begun, used = time.time_ns(), cpu_s(process.pid)
    time.sleep(2)
    assert cpu_s(process.pid) - used < 1.0, "forty ticks, and no busy loop"
    ended = time.time_ns()
    flag.unlink()
    until(lambda: not daemon_status(database).store_error)
    goes_on(database, until)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert log.count("the store writes nothing at the moment") == 1
    found = [t for t in times(database) if begun <= t <= ended]
    assert len(found) > 10, "what waited in memory was written"
    assert longest_pause_s(found) < 1
    assert check(database).problems == ()


def cpu_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# 16. damage


def test_16_a_daemon_starts_on_a_damaged_file_and_says_what_became_of_it(
    forked, daemons, database, until
):
    """Half of it is gone: the file is put aside with its time, and the log names it."""
    process = forked()
    until(lambda: written(database) > 500)
    process.terminate()
    process.join()
    os.truncate(database, Path(database).stat().st_size // 2 // 4096 * 4096)
    process = daemons("--interval", "0.05")
    until(lambda: written(database) > 0)
    (aside,) = Path(database).parent.glob("memplan.db.damaged-20??????T??????Z")
    with StoreReader(database) as reader:
        assert "store.quarantined" in [event.kind for event in reader.events()]
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=30)
    assert f"a damaged database was moved to {aside.name}" in log


def test_16_a_daemon_whose_file_is_removed_goes_on_in_a_new_one(daemons, database, until):
    """What it wrote into a file without a name would be lost."""
    process = daemons("--interval", "0.05")
    until(lambda: written(database) > 100)
    for path in Path(database).parent.glob("memplan.db*"):
        if path.suffix not in {".sock", ".peer"}:
            path.unlink()
    until(lambda: Path(f"{database}.lock").exists())
    with pytest.raises(StoreLockedError):
        LocalWriter(database)
    time.sleep(0.5)
    assert len(times(database)) > 3
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=30)
    assert log.count("was removed or replaced") == 1
    assert check(database).problems == ()


# 21. who may read what it leaves


def test_21_nothing_that_a_daemon_makes_is_open_to_others(daemons, database, until):
    """Whatever the umask: files 0600, sockets 0600."""
    before = os.umask(0)
    try:
        daemons("--interval", "0.05")
        until(lambda: written(database) > 0)
    finally:
        os.umask(before)
    made = list(Path(database).parent.glob("memplan.db*"))
    assert {path.suffix for path in made} >= {".db", ".sock", ".peer", ".lock", ".ballast"}
    assert [path.name for path in made if stat.S_IMODE(path.lstat().st_mode) & 0o077] == []


# 25. the kernel kills the daemon


@contextlib.contextmanager
def control_group(controller, **limits):
    """A version 1 control group of its own."""
    group = Path(f"/sys/fs/cgroup/{controller}/memplan-test-{os.getpid()}")
    try:
        group.mkdir()
        for name, value in limits.items():
            (group / name.replace("__", ".")).write_text(str(value))
    except OSError as error:
        pytest.skip(f"no version 1 {controller} controller that we may use: {error}")
    try:
        yield group
    finally:
        group.rmdir()


def test_25_a_daemon_that_the_kernel_killed_for_want_of_memory_starts_again(
    daemons, database, until, kernel_kills
):
    """A control group without room for a request: the next one marks the gap."""
    with control_group("memory", memory__limit_in_bytes=4 * 2**20, memory__swappiness=0) as group:
        process = daemons("--interval", "0.05")
        until(lambda: written(database) > 0)
        (group / "cgroup.procs").write_text(str(process.pid))
        with socket.socket(socket.AF_UNIX) as peer, contextlib.suppress(OSError):
            peer.connect(str(socket_path(database)))
            body = b" " * (15 * 2**20)
            peer.sendall(len(body).to_bytes(4, "big") + body)
        assert process.wait(60) == -signal.SIGKILL
    daemons("--interval", "0.05")
    until(lambda: written(database) > 0)
    with StoreReader(database) as reader:
        assert "store.gap" in [event.kind for event in reader.events()]
    assert check(database).problems == ()


# 26. limits


def test_26_without_descriptors_it_samples_on_and_turns_others_away(daemons, database, until):
    """No busy loop, two lines in the log at most, and all is well when they are there again."""
    process = daemons("--interval", "0.05")
    until(lambda: written(database) > 0)
    used = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
    limit = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (used + 20, limit[1]))
    held = []
    for place in ("sock", "peer"):
        kind = socket.SOCK_STREAM if place == "sock" else socket.SOCK_SEQPACKET
        for _ in range(40):
            one = socket.socket(socket.AF_UNIX, kind)
            one.connect(f"{database}.{place}")
            held.append(one)
    begun, cpu = time.time_ns(), cpu_s(process.pid)
    time.sleep(2)
    assert cpu_s(process.pid) - cpu < 1.0
    for one in held:
        one.close()
    until(lambda: daemon_status(database).running)
    found = [t for t in times(database) if t >= begun]
    assert len(found) > 10
    assert longest_pause_s(found) < 1
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert 1 <= log.count("connections are turned away") <= 2


def test_26_without_memory_a_request_is_dropped_and_sampling_goes_on(daemons, database, until):
    """Two MiB are left, and somebody sends seven."""
    process = daemons("--interval", "0.05")
    until(lambda: written(database) > 0)
    size = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0]) * resource.getpagesize()
    limit = resource.prlimit(process.pid, resource.RLIMIT_AS)
    resource.prlimit(process.pid, resource.RLIMIT_AS, (size + 2 * 2**20, limit[1]))
    body = b"x" * (7 * 2**20)
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as peer, contextlib.suppress(OSError):
            peer.settimeout(20)
            peer.connect(str(socket_path(database)))
            peer.sendall(len(body).to_bytes(4, "big") + body)
            assert b"x" not in peer.recv(1000)
    goes_on(database, until)
    resource.prlimit(process.pid, resource.RLIMIT_AS, limit)
    goes_on(database, until)
    assert process.poll() is None
    assert longest_pause_s(times(database)) < 2


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def scrape(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return answer.read()
    except (urllib.error.URLError, OSError):
        return None


def test_26_without_threads_it_samples_on(nvml, daemons, database, monkeypatch, port, until):
    """A scrape gets no answer and a dead probe no successor, until threads are there again."""
    pytest.importorskip("prometheus_client")
    nvml.gpus = [FakeGpu(uuid="GPU-a", used=77)]
    nvml.write()
    monkeypatch.setenv("MEMPLAN_PROMETHEUS", str(port))
    with control_group("pids") as group:
        process = daemons("--interval", "0.05")
        until(lambda: daemon_status(database).gpus == {"GPU-a": "ok"})
        assert scrape(port)
        (probe,) = children(process.pid)
        (group / "cgroup.procs").write_text(str(process.pid))
        (group / "pids.max").write_text((group / "pids.current").read_text())
        os.kill(probe, signal.SIGKILL)
        until(lambda: daemon_status(database).gpus == {"GPU-a": "late"})
        assert scrape(port) is None
        goes_on(database, until)
        (group / "pids.max").write_text("max")
        until(lambda: scrape(port))
        until(lambda: daemon_status(database).gpus == {"GPU-a": "ok"})
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        until(lambda: not (group / "cgroup.procs").read_text())


def test_26_a_daemon_that_starts_without_threads_samples_and_says_what_is_missing(
    database, monkeypatch, port, until
):
    """Nobody can scrape it, which is no reason to measure nothing."""
    pytest.importorskip("prometheus_client")
    monkeypatch.setenv("MEMPLAN_PROMETHEUS", str(port))
    with control_group("pids", pids__max=1) as group:
        code = (
            f"open('{group}/cgroup.procs', 'w').write('0')\n"
            "import sys; from memplan.cli.main import run\n"
            "sys.exit(run(['daemon', 'run', '--interval', '0.05']))"
        )
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        try:
            until(lambda: written(database) > 0)
        finally:
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=30)
            until(lambda: not (group / "cgroup.procs").read_text())
    assert process.returncode == 0
    assert "sampling goes on without" in log


# 27. the end, and a sampler that hangs


@contextlib.contextmanager
def black_hole():
    """A server that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    "state", ["idle", "probe stopped", "disk full", "old reader", "half a request", "network"]
)
def test_27_sigterm_ends_it_within_two_seconds_in_any_state(
    state, nvml, shim, daemons, database, home, monkeypatch, until
):
    """What was sampled is there; the exit code is 0."""
    nvml.gpus = [FakeGpu(uuid="GPU-a", used=77)]
    nvml.write()
    flag = home / "fault"
    with contextlib.ExitStack() as stack:
        if state == "network":
            pytest.importorskip("psycopg")
            pytest.importorskip("opentelemetry.sdk")
            port = stack.enter_context(black_hole())
            monkeypatch.setenv("MEMPLAN_OTLP", f"http://127.0.0.1:{port}/v1/metrics")
            monkeypatch.setenv("MEMPLAN_FLEET", f"postgresql+psycopg://me@127.0.0.1:{port}/x")
            monkeypatch.setenv("MEMPLAN_PROMETHEUS", str(port + 1 if port < 65535 else port - 1))
        monkeypatch.setenv("LD_PRELOAD", str(shim))
        monkeypatch.setenv("DISK_FAULT", str(flag))
        monkeypatch.setenv("DISK_FAULT_IN", database)
        process = daemons("--interval", "0.05", "--watch", "user:0")
        monkeypatch.delenv("LD_PRELOAD")
        until(lambda: daemon_status(database).gpus == {"GPU-a": "ok"})
        until(lambda: written(database) > 100)
        if state == "probe stopped":
            os.kill(children(process.pid)[0], signal.SIGSTOP)
        elif state == "disk full":
            flag.write_text(str(errno.ENOSPC))
            until(lambda: daemon_status(database).store_error)
        elif state == "old reader":
            reader = stack.enter_context(contextlib.closing(open_reader(database)))
            reader.execute("SELECT count(*) FROM tick").fetchone()
        elif state == "half a request":
            peer = stack.enter_context(socket.socket(socket.AF_UNIX))
            peer.connect(str(socket_path(database)))
            peer.sendall(encode_frame({"op": "ping"})[:-1])
        elif state == "network":
            time.sleep(4)  # blocks were closed, and the shipper waits for a greeting now
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        assert time.monotonic() - begin <= 2.0
    assert process.returncode == 0
    assert times(database)
    assert not socket_path(database).exists()


def open_reader(database):
    import sqlite3

    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, isolation_level=None)
    connection.execute("BEGIN")
    return connection


def test_27_the_watchdog_hears_nothing_from_a_sampler_that_hangs(
    forked, home, monkeypatch, port, until
):
    """Its process and its other threads live: the sign of life is the loop's alone."""
    pytest.importorskip("prometheus_client")
    monkeypatch.setenv("MEMPLAN_PROMETHEUS", str(port))
    flag = home / "hang"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(home / "notify"))
        manager.settimeout(20)
        code = (
            "import os, sys, daemon_processes as d\nd.sample_until(sys.argv[1], 0.05, sys.argv[2])"
        )
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(daemon_processes.__file__).parent),
            "NOTIFY_SOCKET": str(home / "notify"),
            "WATCHDOG_USEC": "1000000",
        }
        command = [sys.executable, "-c", code, str(home / "memplan.db"), str(flag)]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        try:
            while b"WATCHDOG=1" not in manager.recv(1000):
                pass
            flag.touch()
            time.sleep(0.5)
            manager.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                while True:
                    manager.recv(1000)
            manager.settimeout(1.5)
            with pytest.raises(TimeoutError):
                manager.recv(1000)
            assert scrape(port), "a thread of it answers all the same"
            flag.unlink()
            manager.settimeout(20)
            assert manager.recv(1000) == b"WATCHDOG=1"
        finally:
            process.kill()
            process.wait()


# 30. secrets


def test_30_no_file_of_a_daemon_holds_a_secret_of_what_it_watches(
    daemons, database, home, monkeypatch, until
):
    """Neither from a command line nor from the environment, asked for or not."""
    monkeypatch.setenv("MEMPLAN_STORE_COMMANDS", "yes")
    secret, other = "hf_ScharferKaese42", "Tilsiter4711"
    code = "import time; time.sleep(60)"
    child = subprocess.Popen(
        [sys.executable, "-c", code, "--token", secret, f"--url=https://me:{other}@host/x"],
        env={**os.environ, "API_KEY": other, "HF_TOKEN": secret},
    )
    try:
        process = daemons("--interval", "0.05", "--watch", f"pid:{child.pid}")
        until(lambda: daemon_status(database).watches.get(f"pid:{child.pid}"))
        goes_on(database, until)
    finally:
        child.kill()
        child.wait()
    goes_on(database, until)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=30)
    with StoreReader(database) as reader:
        (run,) = reader.runs()
    assert run.command[:2] == (sys.executable, "-c"), "asked for, it is there"
    texts = {str(path): path.read_bytes() for path in home.rglob("*") if path.is_file()}
    texts["log"] = log.encode()
    for name, text in texts.items():
        assert secret.encode() not in text, name
        assert other.encode() not in text, name


@pytest.mark.parametrize(
    "words",
    [
        ["doctor"],
        ["doctor", "--json"],
        ["daemon", "status"],
        ["daemon", "status", "--json"],
        ["daemon", "start"],
        ["config", "show"],
        ["config", "show", "--json"],
        ["runs"],
        ["db", "check"],
        ["db", "ship"],
    ],
)
def test_30_no_command_shows_the_password_of_a_database(words, monkeypatch):
    """What people paste into an issue."""
    url = "postgresql+psycopg://me:Tilsiter4711@127.0.0.1:1/x"
    monkeypatch.setenv("MEMPLAN_DATABASE", url)
    monkeypatch.setenv("MEMPLAN_FLEET", url)
    done = subprocess.run(
        [sys.executable, "-m", "memplan", *words], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    assert "Tilsiter" not in done.stdout + done.stderr
    log = log_path(url)
    assert not log.exists() or "Tilsiter" not in log.read_text()
