"""A PostgreSQL of our own for tests, that can also be taken away and come back."""

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

__all__ = ["cluster", "new_database", "start", "stop"]

_NUMBERS = itertools.count(1)


def _binaries():
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return found[-1] if found else None


def _run(folder: Path, tool: str, *options: object) -> None:
    """Run a tool of the server's; root runs it as nobody, as the server refuses to run as root."""
    user = {"user": "nobody"} if os.geteuid() == 0 else {}
    command = [_binaries() / tool, "-D", folder / "data", *options]
    subprocess.run(command, check=True, capture_output=True, cwd=folder, **user)


def start(folder: Path) -> None:
    """Start the server of a cluster, on a unix socket only."""
    options = f"-k {folder} -c listen_addresses= -c fsync=off"
    _run(folder, "pg_ctl", "-o", options, "-l", folder / "log", "-w", "start")


def stop(folder: Path) -> None:
    """Take the server away at once: whoever is connected loses the connection."""
    _run(folder, "pg_ctl", "-m", "immediate", "stop")


@contextlib.contextmanager
def cluster() -> Iterator[Path]:
    """Make and start a cluster in a temporary folder; skip where that is impossible.

    The folder's name is short: a socket's path has at most 107 characters.
    """
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    if _binaries() is None:
        pytest.skip("no PostgreSQL server binaries")
    folder = Path(tempfile.mkdtemp(prefix="mp-pg-"))
    if os.geteuid() == 0:
        shutil.chown(folder, "nobody")
    try:
        _run(folder, "initdb", *["-A", "trust", "-U", "memplan", "-N", "-E", "UTF8", "--locale=C"])
        start(folder)
        yield folder
        stop(folder)
    finally:
        shutil.rmtree(folder)


def new_database(folder: Path, encoding: str = "UTF8") -> str:
    """Return the URL of a fresh database in a cluster."""
    import psycopg

    name = f"m{next(_NUMBERS)}"
    with psycopg.connect(f"host={folder} user=memplan dbname=postgres", autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
    return f"postgresql+psycopg://memplan@/{name}?host={folder}"
