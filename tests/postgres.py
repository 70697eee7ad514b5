"""Databases of both kinds for the same tests: an SQLite file, a PostgreSQL of its own."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_NUMBERS = itertools.count(1)


def _binaries():
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return found[-1] if found else None


@contextlib.contextmanager
def cluster() -> Iterator[Path]:
    """Start a cluster on a unix socket in a temporary folder; skip where that is impossible.

    The server refuses to run as root, so root starts it as nobody. The folder's name is short:
    a socket's path has at most 107 characters.
    """
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    tools = _binaries()
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
    make = [tools / "initdb", "-D", data, "-A", "trust", "-U", "memplan", "-N", "-E", "UTF8"]
    try:
        subprocess.run([*make, "--locale=C"], check=True, **how)
        subprocess.run(start, check=True, **how)
        yield folder
        subprocess.run([tools / "pg_ctl", "-D", data, "-m", "immediate", "stop"], check=True, **how)
    finally:
        shutil.rmtree(folder)


def new_database(folder: Path, encoding: str = "UTF8") -> str:
    """Return the URL of a fresh database in a cluster."""
    import psycopg

    name = f"m{next(_NUMBERS)}"
    with psycopg.connect(f"host={folder} user=memplan dbname=postgres", autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
    return f"postgresql+psycopg://memplan@/{name}?host={folder}"
