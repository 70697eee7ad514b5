"""Shipping from a running daemon to a real PostgreSQL: no tick waits for it, nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import postgres
import pytest
from factories import T0, make_run
from memplan_daemon.clock import SystemClock
from memplan_daemon.lifecycle import daemon_status
from memplan_daemon.loop import Loop
from memplan_daemon.settings import read_settings
from memplan_daemon.shipping import Shipping

from memplan.errors import MemplanError, UsageError
from memplan.store.reader import StoreReader
from memplan.store.remote import RemoteWriter, socket_path
from memplan.store.writer import LocalWriter
from memplan.types import Sample, Series

NS = 10**9
MIB = 1024**2
BLOCK = 120


@pytest.fixture
def server():
    """A cluster that the test may stop and start."""
    with postgres.cluster() as folder:
        yield folder


class Ticks:
    """Stands for the sampler: due every 20 ms; the longest time between two of its ticks."""

    def __init__(self):
        self.last_s, self.longest_s, self.count = time.monotonic(), 0.0, 0

    def due_in_s(self):
        return max(self.last_s + 0.02 - time.monotonic(), 0.0)

    def tick(self):
        now = time.monotonic()
        self.longest_s = max(self.longest_s, now - self.last_s)
        self.last_s, self.count = now, self.count + 1


class Shop:
    """A writer, a loop and what ships beside them."""

    def __init__(self, database, pause_s=0.1):
        self.database = database
        self.writer = LocalWriter(database)
        self.ticks = Ticks()
        self.loop = Loop(self.ticks)
        self.shipping = Shipping(
            database=str(database),
            writer=self.writer,
            loop=self.loop,
            clock=SystemClock(),
            pause_s=pause_s,
        )
        self.written = 0

    def ship_to(self, url, outbox_bytes=64 * MIB, *, raw=False):
        self.shipping.apply(url, raw=raw, outbox_bytes=outbox_bytes)

    def write(self, ticks=BLOCK):
        series = Series(run_id="r-1", entity="tree", metric="rss_bytes")
        for i in range(self.written, self.written + ticks):
            sample = Sample(series=series, t_ns=T0 + i * NS, value=i)
            self.writer.write_samples([sample])
        self.written += ticks

    def until(self, condition, seconds=90.0):
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, self.shipping.describe()
            for _ in range(10):
                self.loop.round(0.05)
        return found

    def empty(self):
        return self.shipping.describe()["waiting_notes"] == 0

    def close(self):
        self.shipping.close()
        self.loop.close()
        self.writer.close()


@pytest.fixture
def shop(tmp_path):
    made = Shop(tmp_path / "m.db")
    yield made
    made.close()


def peak(database):
    """Return value and count of the run's only peak that a database has; None when it has none."""
    try:
        with StoreReader(database) as reader:
            found = reader.peaks("r-1")
    except MemplanError:
        return None
    return (found[0].value, found[0].count) if found else None


def with_password(url):
    return url.replace("memplan@", "memplan:sesame@")


def test_what_is_written_arrives_and_is_forgotten(shop, postgresql):
    """Also what was there before there was a fleet; without one nothing is noted."""
    url = postgres.new_database(postgresql)
    shop.writer.save_run(make_run())
    shop.write()
    assert shop.shipping.describe() == {}
    shop.ship_to(with_password(url))
    shop.until(lambda: peak(url) == (119, 120))
    shop.write()
    shop.until(lambda: peak(url) == (239, 240) and shop.empty())
    described = shop.shipping.describe()
    assert described["problem"] == ""
    assert described["lost_notes"] == 0
    assert "sesame" not in json.dumps(described)
    commands = b"".join(
        Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (described["pid"], os.getpid())
    )
    assert b"memplan_daemon.shipper" in commands
    assert b"sesame" not in commands
    with StoreReader(url) as there:
        assert [run.id for run in there.runs()] == ["r-1"]
        assert there.samples("r-1").samples == ()


def test_samples_are_shipped_when_that_is_set(shop, postgresql):
    """And turning it off and on again while more is written leaves no hole."""
    url = postgres.new_database(postgresql)
    shop.writer.save_run(make_run())
    shop.ship_to(url, raw=True)
    shop.write()
    shop.until(lambda: peak(url) == (119, 120) and shop.empty())
    shop.ship_to("")
    assert shop.shipping.describe() == {}
    shop.write()
    shop.ship_to(url, raw=True)
    shop.until(lambda: peak(url) == (239, 240) and shop.empty())
    with StoreReader(url) as there, StoreReader(shop.database) as here:
        assert there.samples("r-1").samples == here.samples("r-1").samples
        assert len(there.samples("r-1").samples) == 240


def test_a_server_that_goes_away_and_comes_back_gets_everything(shop, server):
    """Told meanwhile, with what waits; the loop goes on ticking all the time."""
    url = postgres.new_database(server)
    shop.writer.save_run(make_run())
    shop.ship_to(with_password(url))
    shop.write()
    shop.until(lambda: peak(url) == (119, 120))
    postgres.stop(server)
    shop.write()
    shop.until(lambda: shop.shipping.describe()["problem"] and not shop.empty())
    described = shop.shipping.describe()
    assert "sesame" not in described["problem"]
    assert described["waiting_bytes"] > 0
    before = shop.ticks.count
    shop.until(lambda: shop.ticks.count > before + 20)
    postgres.start(server)
    shop.until(lambda: peak(url) == (239, 240) and shop.empty())
    assert shop.shipping.describe()["problem"] == ""


def test_a_child_that_is_killed_or_stopped_holds_nothing_up(shop, postgresql):
    """A new one comes after the first; the writer goes on beside the second."""
    url = postgres.new_database(postgresql)
    shop.writer.save_run(make_run())
    shop.ship_to(url)
    shop.write()
    shop.until(lambda: peak(url) == (119, 120))
    first = shop.shipping.describe()["pid"]
    os.kill(first, signal.SIGKILL)
    shop.write()
    shop.until(lambda: peak(url) == (239, 240))
    second = shop.shipping.describe()["pid"]
    assert second not in (None, first)
    os.kill(second, signal.SIGSTOP)
    shop.write()
    before = shop.ticks.count
    shop.until(lambda: shop.ticks.count > before + 20)
    begun = time.monotonic()
    shop.shipping.close()
    assert time.monotonic() - begun < 5
    assert not Path(f"/proc/{second}").exists()


def test_the_outbox_stays_within_its_bytes(shop, tmp_path):
    """Nobody answers for long: the oldest notes go, and that is counted."""
    shop.ship_to(f"postgresql+psycopg://memplan@/nowhere?host={tmp_path}", 400)
    for _ in range(12):
        shop.write()
    shop.writer.keep_house()
    shop.until(lambda: shop.shipping.describe()["problem"])
    described = shop.shipping.describe()
    assert described["lost_notes"] > 0
    assert described["waiting_bytes"] <= 400


def test_a_setting_that_makes_no_sense_is_refused(monkeypatch):
    """Without saying what it was: there may be a password in it."""
    monkeypatch.setenv("MEMPLAN_FLEET", "mysql://me:sesame@there/x")
    with pytest.raises(UsageError, match="fleet") as caught:
        read_settings()
    assert "sesame" not in f"{caught.value} {caught.value.hint}"
    monkeypatch.setenv("MEMPLAN_FLEET", "postgresql+psycopg://me:sesame@there/x")
    assert "sesame" not in repr(read_settings())


def test_a_daemon_ships_once_it_is_told_to_and_says_how_it_goes(home, daemons, until, server):
    """From a reload on, through an outage, until another reload; never with its password."""
    url, database = postgres.new_database(server), home / "memplan.db"
    config = home / "config" / "memplan" / "config.toml"
    config.parent.mkdir(parents=True)
    daemon = daemons("--interval", "0.05")
    until(lambda: daemon_status(str(database)).running)

    def memplan(*words):
        command = [sys.executable, "-m", "memplan", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "sesame" not in done.stdout + done.stderr
        return done

    def shipped():
        try:
            with StoreReader(url) as reader:
                return max((peak.count for peak in reader.peaks(None)), default=0)
        except MemplanError:
            return 0

    assert "fleet" not in memplan("daemon", "status").stdout
    config.write_text(f'fleet = "{with_password(url)}"\n')
    assert memplan("daemon", "reload").returncode == 0
    with RemoteWriter(socket_path(database)) as writer:
        writer.save_run(make_run())
    first = until(shipped)
    assert "fleet     postgresql+psycopg://memplan:***@" in memplan("daemon", "status").stdout
    postgres.stop(server)
    problem = until(lambda: daemon_status(str(database)).fleet["problem"])
    assert "sesame" not in problem
    config.write_text('fleet = "file:nowhere"\n')
    assert memplan("daemon", "reload").returncode == 2
    before = daemon_status(str(database)).samples_written
    until(lambda: daemon_status(str(database)).samples_written > before)
    assert f"problem   {problem[:20]}" in memplan("daemon", "status").stdout
    postgres.start(server)
    until(lambda: shipped() > first)
    with StoreReader(url) as there:
        assert [run.id for run in there.runs()] == ["r-1"]
    assert "sesame" not in memplan("config", "show").stdout
    config.write_text("")
    assert memplan("daemon", "reload").returncode == 0
    assert daemon_status(str(database)).fleet == {}
    assert memplan("daemon", "stop").returncode == 0
    assert "sesame" not in daemon.stderr.read()
