"""Service files and the notification protocol."""

from __future__ import annotations

import plistlib
import re
import shutil
import socket
import subprocess

import pytest
from memplan_daemon import units
from memplan_daemon.notify import Notifier
from memplan_daemon.units import MARKER, install, uninstall, unit

from memplan.errors import DaemonError, UsageError

HIGHEST_EXPOSURE = 2.0


@pytest.fixture
def system(tmp_path):
    return unit("system", root=tmp_path)


def test_the_systems_service_is_hardly_exposed(tmp_path, system):
    """At most 2.0 of 10 by systemd's own judgement."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: apt install systemd")
    path = tmp_path / "memplan.service"
    path.write_text(system.text)
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Unknown" in done.stderr or "unrecognized" in done.stderr:
        pytest.skip("this systemd-analyze cannot judge a file")
    found = re.search(r"Overall exposure level for memplan.service: ([0-9.]+)", done.stdout)
    assert float(found[1]) <= HIGHEST_EXPOSURE


@pytest.mark.parametrize("kind", ["system", "user"])
def test_systemd_understands_the_file(tmp_path, kind):
    """No unknown directive, no command that is not there."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: apt install systemd")
    path = tmp_path / "memplan.service"
    path.write_text(unit(kind, root=tmp_path).text)
    command = ["systemd-analyze", "verify", "--man=no", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "memplan.service:" in line]
    assert ours == []


def test_a_users_service_asks_for_nothing_that_its_manager_cannot_do(tmp_path):
    """Namespaces and dropped capabilities end in 218 there: two directives are safe."""
    text = unit("user", root=tmp_path).text
    hardening = [
        line for line in text.splitlines() if re.match(r"(Private|Protect|Restrict|No)", line)
    ]
    assert hardening == ["NoNewPrivileges=yes", "RestrictSUIDSGID=yes"]
    assert not re.search(
        r"^(CapabilityBoundingSet|DynamicUser|User|SystemCallFilter)", text, re.MULTILINE
    )


def test_both_are_told_when_it_is_ready_and_watch_it():
    """Notification, watchdog, reload by signal."""
    for kind in ("system", "user"):
        text = unit(kind).text
        for line in ("Type=notify", "WatchdogSec=60", "ExecReload=/bin/kill -HUP $MAINPID"):
            assert line in text.splitlines()


def test_the_launchd_file_is_a_property_list(tmp_path):
    """Also for an interpreter with a hostile path."""
    text = unit("launchd", root=tmp_path, python="/a & b/<python>").text
    found = plistlib.loads(text.encode())
    assert found["ProgramArguments"][0] == "/a & b/<python>"
    assert found["ProgramArguments"][1:] == ["-m", "memplan", "daemon", "run"]


def test_a_blank_in_the_interpreters_path_is_quoted(tmp_path):
    """And systemd's own signs are doubled."""
    text = unit("system", root=tmp_path, python="/my env/100%/$x/python").text
    assert "ExecStart='/my env/100%%/$$x/python' -m memplan daemon run" in text


def test_our_own_file_is_written_renewed_and_removed(system):
    """Nothing is done twice."""
    assert install(system) is True
    assert install(system) is False
    system.path.write_text(f"# {MARKER}, by an older version")
    assert install(system) is True
    assert system.path.read_text() == system.text
    assert system.path.stat().st_mode & 0o777 == 0o644
    uninstall(system)
    assert not system.path.exists()
    with pytest.raises(UsageError, match="there is no"):
        uninstall(system)


def test_a_foreign_file_is_neither_overwritten_nor_removed(system):
    """Unless that is asked for."""
    system.path.parent.mkdir(parents=True)
    system.path.write_text("[Service]\nExecStart=/usr/bin/other\n")
    for action in (install, uninstall):
        with pytest.raises(DaemonError, match="was not written by memplan"):
            action(system)
    assert "other" in system.path.read_text()
    assert install(system, force=True) is True


def test_a_link_is_not_followed(system, tmp_path):
    """Somebody who can write there could point it anywhere."""
    precious = tmp_path / "precious"
    precious.write_text("x")
    system.path.parent.mkdir(parents=True)
    system.path.symlink_to(precious)
    with pytest.raises(DaemonError, match="is a link"):
        install(system, force=True)
    assert precious.read_text() == "x"


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    """With the user's service as the way out."""
    (tmp_path / "etc").write_text("no folder")
    with pytest.raises(DaemonError) as caught:
        install(unit("system", root=tmp_path))
    assert "--user" in caught.value.hint


@pytest.fixture
def manager(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(str(tmp_path / "notify"))
        found.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "3000000")
        yield found


def test_a_service_manager_is_told(manager):
    """Ready, reloading with its time, alive, stopping."""
    notifier = Notifier()
    assert notifier.watchdog_s == 3.0
    for act in (lambda: notifier.ready("x"), notifier.reloading, notifier.alive, notifier.stopping):
        act()
    said = [manager.recv(500).decode() for _ in range(4)]
    assert said[0].startswith("READY=1\nSTATUS=x\nMAINPID=")
    assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", said[1])
    assert said[2:] == ["WATCHDOG=1", "STOPPING=1"]


def test_without_a_manager_nothing_happens(monkeypatch, manager):
    """Also when it is gone, or when the watchdog means another process."""
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert Notifier().watchdog_s is None
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    Notifier().ready("x")
    monkeypatch.delenv("NOTIFY_SOCKET")
    Notifier().ready("x")
    assert units.MARKER
