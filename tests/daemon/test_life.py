"""A real daemon from outside: reload, logs, watches, signals, the watchdog, the kernel's kills."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from memplan_daemon.collectors.gpu import nvidia_problem
from memplan_daemon.lifecycle import (
    daemon_status,
    log_lines,
    reload_daemon,
    start_daemon,
    stop_daemon,
)

from memplan.errors import DaemonError, UsageError
from memplan.store.reader import StoreReader
from memplan.testing import FakeGpu


@pytest.fixture
def database(home):
    return str(home / "memplan.db")


@pytest.fixture
def running(daemons, database, until):
    def start(*options):
        process = daemons("--interval", "0.05", *options)
        until(lambda: daemon_status(database).running)
        until(lambda: (daemon_status(database).samples_written or 0) > 0)
        return process

    return start


def memplan(*words):
    command = [sys.executable, "-m", "memplan", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def settings(home, text):
    folder = home / "config" / "memplan"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(text)


def test_a_reload_takes_new_settings_and_a_bad_one_changes_nothing(daemons, database, home, until):
    """By command and by SIGHUP; the daemon stays up, and says what is wrong."""
    settings(home, "interval = 0.1\n")
    process = daemons()
    until(lambda: daemon_status(database).running)
    settings(home, 'interval = 0.2\nwatch = "name:nobody"\n')
    reload_daemon(database)
    assert daemon_status(database).interval_s == 0.2
    assert daemon_status(database).watches == {"name:nobody": []}
    settings(home, 'interval = 0\notlp = "http://127.0.0.1:9/"\n')
    with pytest.raises(UsageError, match="interval makes no sense"):
        reload_daemon(database)
    settings(home, 'interval = 0.3\nwatch = "nonsense"\n')
    with pytest.raises(UsageError, match="nothing to watch"):
        reload_daemon(database)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert daemon_status(database).interval_s == 0.2
    settings(home, "interval = 0.4\n")
    process.send_signal(signal.SIGHUP)
    until(lambda: daemon_status(database).interval_s == 0.4)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "the settings stay as they were" in log


def test_a_reload_tells_of_a_bad_setting_that_the_command_line_overrides(
    daemons, database, home, until
):
    """A start warns, as there is nothing to keep; a reload keeps all as it was, and says why."""
    settings(home, 'interval = "fast"\n')
    process = daemons("--interval", "0.1")
    until(lambda: daemon_status(database).running)
    settings(home, 'interval = "faster"\nwatch = "name:nobody"\n')
    done = memplan("daemon", "reload")
    assert done.returncode == 2
    assert "config.toml: interval, which is overridden, is bad: " in done.stderr
    assert "'faster'" in done.stderr
    assert daemon_status(database).watches == {}
    settings(home, 'interval = 0\nprometheus = "off"\n')
    assert memplan("daemon", "reload").returncode == 2
    settings(home, 'interval = 0.5\nwatch = "name:nobody"\n')
    assert memplan("daemon", "reload").returncode == 0
    assert daemon_status(database).watches == {"name:nobody": []}
    assert daemon_status(database).interval_s == 0.1
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    (warning,) = [line for line in log.splitlines() if "overridden" in line]
    assert "'fast'" in warning


def test_the_log_of_a_daemon_in_the_background_is_shown(database):
    """The last lines; without a daemon the way to one."""
    with pytest.raises(DaemonError, match="no log"):
        list(log_lines(database, 5, follow=False))
    start_daemon(database, 0.5)
    stop_daemon(database)
    done = memplan("daemon", "logs", "-n", "1")
    assert "ended after" in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_what_is_watched_is_changed_while_it_runs(running, database, until):
    """From the command line; runs come and end."""
    running()
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert memplan("watch", "add", f"pid:{child.pid}").stdout == f"watching pid:{child.pid}\n"
        until(lambda: daemon_status(database).watches[f"pid:{child.pid}"])
        listed = json.loads(memplan("watch", "list", "--json").stdout)
        (run_id,) = listed[f"pid:{child.pid}"]
    finally:
        child.kill()
        child.wait()

    def stored():
        with StoreReader(database) as reader:
            return reader.run(run_id)

    until(lambda: stored().status == "finished")
    assert stored().command == ("sleep",)
    assert memplan("watch", "remove", "name:x").returncode == 2
    assert "error: " in memplan("watch", "add", "nonsense").stderr


def test_gpus_of_a_real_daemon_survive_a_driver_that_hangs(nvml, running, database, until):
    """The host goes on, the GPU is late, then back, and no probe is left."""
    nvml.gpus = [FakeGpu(uuid="GPU-a", used=77)]
    nvml.write()
    running()
    until(lambda: daemon_status(database).gpus == {"GPU-a": "ok"})
    (probe,) = children(daemon_status(database).pid)
    os.kill(probe, signal.SIGSTOP)
    until(lambda: daemon_status(database).gpus == {"GPU-a": "late"})
    before = daemon_status(database).samples_written
    until(lambda: daemon_status(database).samples_written > before)
    until(lambda: daemon_status(database).gpus == {"GPU-a": "ok"})
    status = daemon_status(database)
    assert status.probe_restarts == 1
    assert probe not in children(status.pid)
    nvml.xid("GPU-a", 79)
    until(lambda: [e for e in daemon_status(database).events if e["kind"] == "gpu.xid"])
    time.sleep(0.3)
    with StoreReader(database) as reader:
        found = [event for event in reader.events() if event.kind == "gpu.xid"]
    assert [event.data["code"] for event in found] == ["79"]


def children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_without_a_gpu_library_it_runs_says_so_once_and_ends_with_0(running, database, until):
    """A laptop is no error."""
    if not nvidia_problem():
        pytest.skip("this machine has the library")
    process = running()
    before = daemon_status(database).samples_written
    until(lambda: daemon_status(database).samples_written > before + 100)
    assert "libnvidia-ml" in daemon_status(database).gpu_problem
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert log.count("no GPU readings") == 1


def test_it_listens_to_no_network_unless_asked(running, database):
    """By the kernel's tables of its own network namespace and its own descriptors."""
    assert listening(running().pid) == []


def listening(pid):
    """Return (table, address) of each network socket of a process, by the kernel."""
    inodes, found = set(), []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a file that it has read meanwhile
            if (target := str(link.readlink())).startswith("socket:["):
                inodes.add(target[8:-1])
    assert inodes, "it has sockets, of the machine's own kind"
    for table in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6", "packet"):
        path = Path(f"/proc/{pid}/net/{table}")
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            words = line.split()
            if inodes & set(words):
                found.append((table, words[1]))
    return found


def test_asked_it_listens_at_one_port_of_this_machine(running, monkeypatch):
    """By the same tables: they do show what listens."""
    pytest.importorskip("prometheus_client")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("MEMPLAN_PROMETHEUS", str(port))
    assert listening(running().pid) == [("tcp", f"0100007F:{port:04X}")]


class Manager:
    """A service manager's end of the notification socket."""

    def __init__(self, folder, monkeypatch, watchdog_s):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(folder / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", str(int(watchdog_s * 1e6)))

    def said(self, wait_s):
        self.socket.settimeout(wait_s)
        try:
            return self.socket.recv(1000).decode()
        except TimeoutError:
            return ""

    def until(self, word, wait_s=90.0):
        end = time.monotonic() + wait_s
        while time.monotonic() < end:
            if word in self.said(1.0):
                return
        raise AssertionError(f"never said {word}")


@pytest.fixture
def manager(home, monkeypatch):
    made = Manager(home, monkeypatch, 3.0)
    yield made
    made.socket.close()


def test_a_service_manager_hears_all_and_a_sampler_that_hangs_is_silent(manager, daemons):
    """The sign of life comes from the sampler's own loop: a stopped one gives none."""
    process = daemons("--interval", "60")
    manager.until("READY=1")
    manager.until("WATCHDOG=1")
    process.send_signal(signal.SIGHUP)
    manager.until("RELOADING=1")
    manager.until("READY=1")
    process.send_signal(signal.SIGSTOP)
    while manager.said(0.2):
        pass
    assert manager.said(3.5) == ""
    process.send_signal(signal.SIGCONT)
    manager.until("WATCHDOG=1")
    process.send_signal(signal.SIGTERM)
    manager.until("STOPPING=1")


def test_a_tracked_process_that_the_kernel_kills_for_want_of_memory_is_named(
    running, database, until, kernel_kills
):
    """A real kill in a control group of 32 MiB."""
    group = Path("/sys/fs/cgroup/memory/memplan-test")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(32 * 2**20))
        (group / "memory.swappiness").write_text("0")
    except OSError as error:
        pytest.skip(f"no version 1 memory controller that we may use: {error}")
    try:
        running()
        code = (
            "import os, time\n"
            f"open('{group}/cgroup.procs', 'w').write(str(os.getpid()))\n"
            "time.sleep(1); b = bytearray(b'x') * (100 * 2**20)"
        )
        done = subprocess.Popen([sys.executable, "-c", code])
        assert done.wait(60) == -signal.SIGKILL
        until(lambda: [e for e in daemon_status(database).events if "oom_kill" in e["kind"]])
        (event,) = [e for e in daemon_status(database).events if e["kind"] == "host.oom_kill"]
        if event["code"]:  # the kernel's log may be read here
            assert event["code"] == done.pid
            assert re.search(r"killed process \d+ \(python", event["text"])
    finally:
        group.rmdir()


def test_the_kernel_may_kill_the_daemon_itself(running, database):
    """Nothing is left in the way of the next one."""
    running().kill()
    time.sleep(0.2)
    assert running().poll() is None
