"""memplan.store on PostgreSQL, in a cluster of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from factories import make_phase, make_plan, make_run, make_sample

from memplan.errors import StoreLockedError
from memplan.store.reader import StoreReader
from memplan.store.writer import LocalWriter


def binaries():
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return found[-1] if found else None


@pytest.fixture(scope="module")
def url():
    """Start a cluster on a unix socket in a temporary folder; skip where that is impossible.

    The server refuses to run as root, so root starts it as nobody. The folder's name is short:
    a socket's path has at most 107 characters.
    """
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    tools = binaries()
    if tools is None:
        pytest.skip("no PostgreSQL server binaries")
    folder = Path(tempfile.mkdtemp(prefix="mp-pg-"))
    how = {"capture_output": True, "cwd": folder}
    if os.geteuid() == 0:
        shutil.chown(folder, "nobody")
        how["user"] = "nobody"
    data = folder / "data"
    options = f"-k {folder} -c listen_addresses= -c fsync=off"
    start = [tools / "pg_ctl", "-D", data, "-o", options, "-l", folder / "log", "-w", "start"]
    try:
        subprocess.run(
            [tools / "initdb", "-D", data, "-A", "trust", "-U", "memplan", "-N"], check=True, **how
        )
        subprocess.run(start, check=True, **how)
        yield f"postgresql+psycopg://memplan@/postgres?host={folder}"
        subprocess.run([tools / "pg_ctl", "-D", data, "-m", "immediate", "stop"], check=True, **how)
    finally:
        shutil.rmtree(folder)


def test_the_same_store_on_postgresql(url):
    """Migration, round trips, peaks, cursor, one writer."""
    with LocalWriter(url) as writer:
        plan = writer.save_plan(make_plan(id=None))
        writer.save_run(make_run())
        writer.save_run(make_run(exit_code=1))
        writer.save_phases([make_phase()])
        for i in range(5):
            writer.write_samples([make_sample(i, seconds=-i), make_sample(i, metric="hwm_bytes")])
        with pytest.raises(StoreLockedError):
            LocalWriter(url)
        with StoreReader(url) as reader:
            assert reader.plan("last") == plan
            assert reader.run("r-1").exit_code == 1
            assert reader.phases("r-1") == (make_phase(),)
            assert {peak.value for peak in reader.peaks("r-1")} == {4}
            first = reader.samples("r-1", limit=3)
            rest = reader.samples("r-1", after=first.cursor)
            assert len(first.samples) + len(rest.samples) == 10
    LocalWriter(url).close()
