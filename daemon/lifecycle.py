"""The daemon's life from outside: start it in the background, stop, reload, tell how it is."""

from __future__ import annotations

import itertools
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memplan.errors import DaemonError, StoreLockedError
from memplan.store.readonly import is_older, shown
from memplan.store.remote import DaemonClient, socket_path

__all__ = [
    "DaemonStatus",
    "daemon_status",
    "log_lines",
    "log_path",
    "reload_daemon",
    "start_daemon",
    "stop_daemon",
]

_log = logging.getLogger("memplan.daemon")

START_S = 20.0
"""Seconds that a new daemon may take until it answers, not counting a migration."""

STOP_S = 5.0
"""Seconds that it may take to end before SIGTERM, and again after it."""

_ASK_S = 2.0
_PAUSE_S = 0.05
_LARGEST_LOG = 1024**2
_FOLLOW_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonStatus:
    """How the daemon of one database is."""

    running: bool
    """True when a background daemon answers."""
    database: str
    """The database."""
    database_bytes: int | None
    """Size of its file with the write-ahead log; None when there is none."""
    pid: int | None = None
    """Process that holds the database."""
    kind: str | None = None
    """"daemon", or "run" for a `memplan run` that holds it meanwhile; None when none answers."""
    since_ns: int | None = None
    """When it began, wall clock."""
    interval_s: float | None = None
    """Seconds between its samples."""
    samples_written: int | None = None
    """Samples that it has committed."""
    samples_waiting: int | None = None
    """Samples that it has in memory only, until its next flush."""
    samples_dropped: int | None = None
    """Samples that it had to give up."""
    watching: tuple[str, ...] = ()
    """Runs that it samples."""
    store_error: str = ""
    """Why the store refuses samples at the moment."""
    watches: Mapping[str, list[str]] = field(default_factory=dict)
    """What it watches by itself, with the runs of each."""
    gpus: Mapping[str, str] = field(default_factory=dict)
    """Each GPU's state: "ok", "lost" or "late"."""
    gpu_problem: str = ""
    """Why it reads no GPU."""
    agents: tuple[Mapping[str, Any], ...] = ()
    """Programs with an agent, and which counters each has."""
    events: tuple[Mapping[str, Any], ...] = ()
    """The newest events, oldest first."""
    cpu_share: float | None = None
    """Share of one core that it used lately."""
    stretch: float = 1.0
    """Intervals are so many times longer than asked for, to stay within the CPU budget."""
    late_ticks: int | None = None
    """Ticks that were left out."""
    probe_restarts: int | None = None
    """GPU probes that were thrown away."""
    fleet: Mapping[str, Any] = field(default_factory=dict)
    """How the copying to a fleet's database is; empty without one."""


def start_daemon(
    database: str, interval_s: float | None = None, rules: tuple[str, ...] = ()
) -> DaemonStatus:
    """Start a daemon in the background and wait until it answers.

    Args:
        database: its file, or a PostgreSQL URL.
        interval_s: seconds between samples; None = as set.
        rules: what it watches by itself, besides what is set.

    Raises StoreLockedError when the database is held already, and DaemonError, with what the
    daemon said, when it ends before it answers.
    """
    status = daemon_status(database)
    if status.pid is not None:
        what = "a daemon" if status.running else "a process"
        raise StoreLockedError(
            f"{what} (pid {status.pid}) writes to {shown(database)} already",
            hint="memplan daemon status",
        )
    log = log_path(database)
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _open_log(log) as output:
        begin = output.tell()
        process = _spawn(database, interval_s, rules, output)
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if is_older(database):  # to end it now would roll all back, and the next one began anew
            deadline = time.monotonic() + START_S
        status = daemon_status(database)
        if status.running and status.pid == process.pid:
            process.returncode = 0  # it goes on by itself: nobody is to wait for it
            return status
        if process.poll() is not None:
            message, hint = _last_words(log, begin)
            raise DaemonError(f"the daemon ended at once: {message}", hint=hint)
        time.sleep(_PAUSE_S)
    process.kill()
    process.wait()
    raise DaemonError(f"the daemon did not answer within {START_S:g} s", hint=f"see {log}")


def _open_log(path: Path) -> Any:
    too_large = path.exists() and path.stat().st_size > _LARGEST_LOG
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if too_large else 0)
    output = os.fdopen(os.open(path, flags | os.O_CLOEXEC, 0o600), "ab")
    output.seek(0, os.SEEK_END)
    return output


def _spawn(
    database: str, interval_s: float | None, rules: tuple[str, ...], output: Any
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "memplan", "daemon", "run"]
    command += ["--interval", str(interval_s)] if interval_s is not None else []
    command += [word for rule in rules for word in ("--watch", rule)]
    return subprocess.Popen(
        command,
        env={**os.environ, "MEMPLAN_DATABASE": database},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def _last_words(log: Path, begin: int) -> tuple[str, str]:
    """Return the error that the daemon printed last and its hint, both without labels."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode("utf-8", "replace").splitlines()
    errors = [line for line in lines if line.startswith("error: ")] or lines or ["it said nothing"]
    hints = [line for line in lines if line.startswith("hint: ")] or [f"see {log}"]
    return errors[-1].removeprefix("error: "), hints[-1].removeprefix("hint: ")


def stop_daemon(database: str) -> int | None:
    """End the daemon of a database and wait until it has let go; return its pid, None if none ran.

    Raises DaemonError when it does not end, or when a `memplan run` holds the database.
    """
    pid = daemon_status(database).pid
    if pid is None:
        return None
    try:
        waiter = os.pidfd_open(pid)
    except ProcessLookupError:
        return pid
    try:
        _end(database, pid, waiter)
    finally:
        os.close(waiter)
    return pid


def _end(database: str, pid: int, waiter: int) -> None:
    with DaemonClient(socket_path(database), timeout_s=_ASK_S) as client:
        try:
            client.stop()
        except DaemonError:
            if daemon_status(database).kind == "run":
                raise
        else:
            if _ended(waiter):
                return
    if daemon_status(database).pid != pid:
        return  # ended meanwhile, and the number may mean another process
    if not _is_daemon(pid):
        raise DaemonError(f"process {pid} holds {shown(database)} and is no daemon")
    _log.warning("the daemon does not answer: SIGTERM")
    signal.pidfd_send_signal(waiter, signal.SIGTERM)
    if not _ended(waiter):
        raise DaemonError(f"the daemon (pid {pid}) does not end", hint=f"kill -9 {pid}")


def _ended(waiter: int) -> bool:
    poll = select.poll()  # select() cannot take a descriptor above 1023
    poll.register(waiter, select.POLLIN)
    return bool(poll.poll(STOP_S * 1000))


def daemon_status(database: str) -> DaemonStatus:
    """Return how the daemon of a database is. Raises nothing: a silent one is not running."""
    size = _size(database)
    with DaemonClient(socket_path(database), timeout_s=_ASK_S) as client:
        try:
            found = client.status()
        except DaemonError:
            pid = _holder(database)
            return DaemonStatus(running=False, database=database, database_bytes=size, pid=pid)
    return DaemonStatus(
        running=found["kind"] == "daemon",
        database=database,
        database_bytes=size,
        pid=found["pid"],
        kind=found["kind"],
        since_ns=found["since_ns"],
        interval_s=found["interval_s"],
        samples_written=found["samples_written"],
        samples_waiting=found.get("samples_waiting"),
        samples_dropped=found["samples_dropped"],
        watching=tuple(found["watching"]),
        store_error=found["store_error"],
        watches=found.get("watches", {}),
        gpus=found.get("gpus", {}),
        gpu_problem=found.get("gpu_problem", ""),
        agents=tuple(found.get("agents", ())),
        events=tuple(found.get("events", ())),
        cpu_share=found.get("cpu_share"),
        stretch=found.get("stretch", 1.0),
        late_ticks=found.get("late_ticks"),
        probe_restarts=found.get("probe_restarts"),
        fleet=found.get("fleet", {}),
    )


def reload_daemon(database: str) -> None:
    """Let the daemon read its settings again.

    Raises the daemon's own error for a bad one (the old ones stay), DaemonError when none answers.
    """
    with DaemonClient(socket_path(database), timeout_s=STOP_S) as client:
        client.request("reload")


def log_path(database: str) -> Path:
    """Return where a daemon that was started in the background writes its log."""
    return socket_path(database).with_suffix(".log")


def log_lines(database: str, count: int, *, follow: bool) -> Iterator[str]:
    """Yield the last lines of the log, and go on with new ones until interrupted.

    Args:
        database: whose daemon.
        count: lines from the end.
        follow: wait for more.

    Raises DaemonError when there is no log.
    """
    path = log_path(database)
    if not path.exists():
        raise DaemonError(
            f"there is no log at {path}",
            hint="memplan daemon start, or as a service: journalctl -u memplan",
        )
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from file.readlines()[-count:] if count else ()
        while follow:
            if line := file.readline():
                yield line
            elif path.exists() and path.stat().st_size < file.tell():
                file.seek(0)  # it was begun anew
            else:
                time.sleep(_FOLLOW_S)


def _size(database: str) -> int | None:
    files = [Path(database + suffix) for suffix in ("", "-wal")]
    sizes = [file.stat().st_size for file in files if file.is_file()]
    return sum(sizes) if sizes else None


def _holder(database: str, proc: Path = Path("/proc")) -> int | None:
    """Return who holds the writer's lock, by the kernel's own list of locks.

    Trying the lock instead would make a writer that begins at that moment fail.
    """
    try:
        inode = str(Path(database + ".lock").stat().st_ino)
        lines = (proc / "locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for words in map(str.split, lines):  # "1: FLOCK ADVISORY WRITE <pid> <device>:<inode> 0 EOF"
        if len(words) > 5 and words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode:
            return int(words[4])
    return None


def _is_daemon(pid: int) -> bool:
    """Tell whether a process that does not answer was started as the daemon."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(pair == (b"daemon", b"run") for pair in itertools.pairwise(words))
