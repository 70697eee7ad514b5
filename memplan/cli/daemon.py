"""`memplan daemon`: the background sampler's life."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from memplan_daemon.lifecycle import DaemonStatus
    from memplan_daemon.units import Unit

__all__ = ["daemon"]

EXIT_NOT_RUNNING = 1

_interval = click.option(
    "--interval", type=float, metavar="SECONDS", help="Between samples. Default: 1."
)
_watch = click.option(
    "--watch",
    "rules",
    multiple=True,
    metavar="WHAT",
    help="Also watch: pid:4711, name:python*, user:alice, cgroup:/x, container:1f0e..., gpu:all.",
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


@daemon.command("run")
@_interval
@_watch
def run(*, interval: float | None, rules: tuple[str, ...]) -> None:
    """Sample in the foreground until SIGTERM or ^C; log to standard error.

    For a service manager: it says when it is ready, and SIGHUP lets it read its settings again
    (bad ones are told, and the old ones stay). Exit code 2 when another process writes to the
    database already.
    """
    from memplan_daemon.daemon import run_daemon
    from memplan_daemon.settings import read_settings

    run_daemon(_database(), lambda: read_settings(interval_s=interval, rules=rules))


@daemon.command("start")
@_interval
@_watch
def start(*, interval: float | None, rules: tuple[str, ...]) -> None:
    """Start it in the background and wait until it answers.

    Its log is beside the database: memplan daemon logs.
    """
    from memplan_daemon.lifecycle import start_daemon

    from memplan.store.readonly import shown

    status = start_daemon(_database(), interval, rules)
    place = shown(status.database)
    click.echo(f"running, pid {status.pid}, every {status.interval_s:g} s into {place}")


@daemon.command("reload")
def reload() -> None:
    """Let it read its settings again; a bad one changes nothing. Exit code 2 then."""
    from memplan_daemon.lifecycle import reload_daemon

    reload_daemon(_database())
    click.echo("reloaded")


@daemon.command("logs")
@click.option("-n", "--lines", default=50, show_default=True, help="Lines from the end.")
@click.option("-f", "--follow", is_flag=True, help="Wait for more until ^C.")
def logs(*, lines: int, follow: bool) -> None:
    """Print the log of a daemon that was started in the background."""
    from memplan_daemon.lifecycle import log_lines

    for line in log_lines(_database(), lines, follow=follow):
        click.echo(line, nl=False)


_system = click.option("--system", "kind", flag_value="system", help="For the whole machine.")
_user = click.option("--user", "kind", flag_value="user", help="For you alone. Default.")


@daemon.command("install")
@_system
@_user
@click.option("--print", "show", is_flag=True, help="Print the file and write nothing.")
@click.option("--force", is_flag=True, help="Overwrite a file that memplan has not written.")
def install(*, kind: str | None, show: bool, force: bool) -> None:
    """Write the service file (systemd; on macOS launchd), and say how to start it.

    The system's service runs as a user of its own without privileges. A file that memplan has not
    written is left alone.
    """
    from memplan_daemon import units

    wanted = _unit(kind)
    if show:
        click.echo(wanted.text, nl=False)
        return
    changed = units.install(wanted, force=force)
    click.echo(f"{'wrote' if changed else 'unchanged:'} {wanted.path}")
    click.echo(f"start it: {wanted.start}")


@daemon.command("uninstall")
@_system
@_user
def uninstall(*, kind: str | None) -> None:
    """Remove the service file that `install` wrote."""
    from memplan_daemon import units

    wanted = _unit(kind)
    units.uninstall(wanted)
    click.echo(f"removed {wanted.path}")
    click.echo(f"if it runs, stop it: {wanted.stop}")


def _unit(kind: str | None) -> Unit:
    import sys

    from memplan_daemon.units import unit

    if sys.platform == "darwin":
        return unit("launchd")
    return unit("system" if kind == "system" else "user")


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

    from memplan.store.readonly import shown

    found = daemon_status(_database())
    if as_json:
        click.echo(json.dumps({**asdict(found), "database": shown(found.database)}, indent=2))
    else:
        click.echo("\n".join(_lines(found)))
    return 0 if found.running else EXIT_NOT_RUNNING


def _lines(found: DaemonStatus) -> list[str]:
    from datetime import datetime

    from memplan.store.readonly import is_url, shown
    from memplan.units import format_bytes

    size = found.database_bytes
    made = "not made yet" if size is None else format_bytes(size, "MiB")
    place = shown(found.database)
    lines = [f"database  {place}" + ("" if is_url(found.database) else f" ({made})")]
    if not found.running:
        return ["not running: memplan daemon start", *lines, *_other_holder(found.kind, found.pid)]
    assert found.since_ns is not None
    since = datetime.fromtimestamp(found.since_ns / 1e9).astimezone()
    share = "" if found.cpu_share is None else f", {found.cpu_share:.2%} of a core"
    samples = f"{found.samples_written} written, {found.samples_waiting or 0} wait"
    lines = [
        f"running   pid {found.pid}, since {since:%Y-%m-%d %H:%M:%S}, every {found.interval_s:g} s"
        + share,
        *lines,
        f"samples   {samples}, {found.samples_dropped} dropped",
        f"watching  {', '.join((*found.watches, *found.watching)) or 'the host only'}",
        *_gpu_lines(found),
        *_fleet_lines(found),
    ]
    if found.stretch > 1:
        lines.append(
            f"slower    {found.stretch:.1f} times: more would cost more than the setting cpu_budget"
        )
    lines += [f"agent     pid {a['pid']} in run {a['run']}" for a in found.agents]
    lines += [f"event     {event['text']}" for event in found.events[-5:]]
    return [*lines, f"problem   {found.store_error}"] if found.store_error else lines


def _gpu_lines(found: DaemonStatus) -> list[str]:
    if found.gpu_problem and not found.gpus:
        return [f"gpu       none: {found.gpu_problem}"]
    return [f"gpu       {uuid} {state}" for uuid, state in found.gpus.items()]


def _fleet_lines(found: DaemonStatus) -> list[str]:
    from memplan.units import format_bytes

    fleet = found.fleet
    if not fleet:
        return []
    count, lost = fleet["waiting_notes"], fleet["lost_notes"]
    state = "up to date" if count == 0 else "not heard of yet"
    if count:
        state = f"{count} changes wait ({format_bytes(fleet['waiting_bytes'], 'MiB')})"
    lines = [f"fleet     {fleet['to']}: {state}" + (f", {lost} given up" if lost else "")]
    return [*lines, f"problem   {fleet['problem']}"] if fleet["problem"] else lines


def _other_holder(kind: str | None, pid: int | None) -> list[str]:
    if pid is None:
        return []
    what = "`memplan run`" if kind == "run" else "a process that does not answer"
    return [f"held by   {what}, pid {pid}"]
