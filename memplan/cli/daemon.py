"""`memplan daemon`: the background sampler's life."""

from __future__ import annotations

import click

__all__ = ["daemon"]

EXIT_NOT_RUNNING = 1

_interval = click.option(
    "--interval", type=float, metavar="SECONDS", help="Between samples. Default: 1."
)


@click.group("daemon")
def daemon() -> None:
    """Sample this machine's memory and GPUs in the background.

    The daemon is the only process that writes to the database: plans, runs and phases go to it
    over a socket beside the database (this user only, never TCP). It samples the host and every
    GPU; `memplan run` samples its own command.
    """


def _database() -> str:
    from pathlib import Path

    from memplan import config

    name = config.setting("database").value
    return name if "://" in name else str(Path(name).expanduser().absolute())


def _seconds(interval: float | None) -> float:
    from memplan import config
    from memplan.errors import UsageError

    if interval is not None:
        return interval
    value = config.setting("interval").value
    try:
        return float(value)
    except ValueError as error:
        raise UsageError(f"interval is not a number of seconds: {value!r}") from error


@daemon.command("run")
@_interval
def run(*, interval: float | None) -> None:
    """Sample in the foreground until SIGTERM or ^C; log to standard error.

    For a service manager. Exit code 2 when another process writes to the database already.
    """
    from memplan_daemon.lifecycle import run_daemon

    run_daemon(_database(), _seconds(interval))


@daemon.command("start")
@_interval
def start(*, interval: float | None) -> None:
    """Start it in the background and wait until it answers.

    Its log is beside the database, with the ending .log.
    """
    from memplan_daemon.lifecycle import start_daemon

    status = start_daemon(_database(), _seconds(interval))
    click.echo(f"running, pid {status.pid}, every {status.interval_s:g} s into {status.database}")


@daemon.command("stop")
def stop() -> None:
    """Stop it, and wait until it has let go of the database."""
    from memplan_daemon.lifecycle import stop_daemon

    pid = stop_daemon(_database())
    click.echo("not running" if pid is None else f"stopped, pid was {pid}")


@daemon.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def status(*, as_json: bool) -> int:
    """Tell how it is. Exit code 0 when it runs, 1 when it does not."""
    import json
    from dataclasses import asdict

    from memplan_daemon.lifecycle import daemon_status

    found = daemon_status(_database())
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
    else:
        click.echo("\n".join(_lines(found)))
    return 0 if found.running else EXIT_NOT_RUNNING


def _lines(found: object) -> list[str]:
    from datetime import datetime

    from memplan_daemon.lifecycle import DaemonStatus

    from memplan.units import format_bytes

    assert isinstance(found, DaemonStatus)
    size = "not made yet" if found.database_bytes is None else format_bytes(found.database_bytes)
    lines = [f"database  {found.database} ({size})"]
    if not found.running:
        return ["not running: memplan daemon start", *lines, *_other_holder(found.kind, found.pid)]
    assert found.since_ns is not None
    since = datetime.fromtimestamp(found.since_ns / 1e9).astimezone()
    lines = [
        f"running   pid {found.pid}, since {since:%Y-%m-%d %H:%M:%S}, every {found.interval_s:g} s",
        *lines,
        f"samples   {found.samples_written} written, {found.samples_dropped} dropped",
        f"watching  {', '.join(found.watching) or 'the host only'}",
    ]
    return [*lines, f"problem   {found.store_error}"] if found.store_error else lines


def _other_holder(kind: str | None, pid: int | None) -> list[str]:
    if pid is None:
        return []
    what = "`memplan run`" if kind == "run" else "a process that does not answer"
    return [f"held by   {what}, pid {pid}"]
