"""memplan.devices.measure: bounded, leaves nothing behind, and is used by plans that follow."""

from __future__ import annotations

import itertools
import json

import pytest

from memplan.cli.main import run
from memplan.config import cache_dir
from memplan.devices import measure
from memplan.devices.measure import known_speed, known_speeds, measure_speeds
from memplan.devices.parse import parse_hardware
from memplan.errors import DeviceError
from memplan.units import GIB, MIB


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Measure a disk of 16 MiB with a clock that ticks a second each time it is read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "_RAM_BYTES", 4 * MIB)
    monkeypatch.setattr(measure, "_gpus", list)
    ticks = itertools.count()
    return measure_speeds(tmp_path, clock=lambda: float(next(ticks)), disk_bytes=16 * MIB)


def test_bytes_over_seconds(measured, tmp_path):
    """With a second for each run: what was moved in it."""
    ram, disk = measured
    assert (ram.name, disk.name) == ("ram", "disk")
    assert ram.bandwidth == pytest.approx(4 * MIB, rel=0.01)
    assert disk.bandwidth == 8 * MIB
    assert disk.low <= disk.bandwidth <= disk.high
    assert "page cache" in disk.how


def test_nothing_is_left_behind(measured, tmp_path):
    """Neither the file nor a piece of it."""
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_removed_when_reading_fails(tmp_path, monkeypatch):
    """A full disk, an interrupted run."""

    def broken(path, size, clock):
        raise OSError("cannot read")

    monkeypatch.setattr(measure, "_read", broken)
    with pytest.raises(DeviceError, match="cannot read"):
        measure_speeds(tmp_path, disk_bytes=8 * MIB)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_room_is_an_error(tmp_path):
    """No file is written."""
    with pytest.raises(DeviceError, match="no room"):
        measure_speeds(tmp_path, disk_bytes=1)


def test_plans_for_this_machine_use_what_was_measured(measured, capsys):
    """And say so, with the day; what the user states comes first."""
    disk = known_speed("disk")
    assert disk is not None
    hardware = parse_hardware(["24GiB"])
    store = hardware.devices[-1]
    assert (store.bandwidth, store.measured) == (disk.bandwidth, disk.date)
    assert parse_hardware(["24GiB"], disk_bandwidth=5).devices[-1].bandwidth == 5
    assert parse_hardware(["24GiB"], disk=GIB).devices[-1].measured == ""
    (host,) = [x for x in parse_hardware(["cpu"]).devices if x.kind == "cpu"]
    assert host.memory_bandwidth == known_speed("ram").bandwidth
    assert parse_hardware(["cpu"], host_memory=GIB).devices[0].memory_bandwidth is None
    assert run(["plan", "smollm2-135m", "--device", "cpu"]) == 0
    assert f"measured here {disk.date}" in capsys.readouterr().out


def test_another_machine_s_file_says_nothing(measured):
    """A home folder may be shared."""
    path = cache_dir() / "speeds.json"
    rows = json.loads(path.read_text())
    for row in rows:
        row["place"] = "elsewhere:" + row["place"].partition(":")[2]
    path.write_text(json.dumps(rows))
    assert known_speeds() == ()
    path.write_text("{damaged")
    assert known_speeds() == ()


def test_a_gpu_is_known_by_its_uuid(measured):
    """Copies to another card are not those of this one."""
    path = cache_dir() / "speeds.json"
    rows = json.loads(path.read_text())
    host = rows[0]["place"].partition(":")[0]
    rows.append({**rows[0], "name": "cuda:0", "place": f"{host}:GPU-1"})
    path.write_text(json.dumps(rows))
    assert known_speed("cuda:0", "GPU-1") is not None
    assert known_speed("cuda:0", "GPU-2") is None


def test_the_command_prints_and_lists_them(tmp_path, monkeypatch, capsys):
    """--measure once; then `memplan devices` knows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "_DISK_BYTES", 16 * MIB)
    monkeypatch.setattr(measure, "_RAM_BYTES", 4 * MIB)
    monkeypatch.setattr(measure, "_gpus", list)
    assert run(["devices", "--measure", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == "memplan.speeds/1"
    assert [speed["name"] for speed in data["speeds"]] == ["ram", "disk"]
    assert run(["devices"]) == 0
    assert "16 MiB read" in capsys.readouterr().out
