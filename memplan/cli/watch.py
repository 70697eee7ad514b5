"""`memplan watch`: what a running daemon watches by itself."""

from __future__ import annotations

from typing import Any

import click

__all__ = ["watch"]


@click.group("watch")
def watch() -> None:
    """Tell the running daemon what to watch by itself.

    \b
    WHAT is one of
      pid:4711             a process and all that comes from it
      name:python*         programs by name, with * and ?
      user:alice           everything of one user
      cgroup:/machine/x    a control group and those below it
      container:1f0e2b...  a container, by its id or the beginning of it
      gpu:all  gpu:GPU-... every process on a GPU

    Ranks of one job are one run; runs are listed by `memplan runs`. What is added here lasts until
    the daemon ends; for good: the setting `watch`.
    """


@watch.command("add")
@click.argument("what", nargs=-1, required=True)
def add(*, what: tuple[str, ...]) -> None:
    """Watch something more."""
    for rule in what:
        _ask("watch_add", rule=rule)
        click.echo(f"watching {rule}")


@watch.command("remove")
@click.argument("what", nargs=-1, required=True)
def remove(*, what: tuple[str, ...]) -> None:
    """Watch it no more; its runs end."""
    for rule in what:
        _ask("watch_remove", rule=rule)
        click.echo(f"no longer watching {rule}")


@watch.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(*, as_json: bool) -> None:
    """List what is watched, with the runs of each."""
    rules = _ask("watch_list")
    if as_json:
        import json

        click.echo(json.dumps(rules, indent=2))
        return
    for rule, runs in rules.items():
        click.echo(f"{rule}  {' '.join(runs) or 'nothing there at the moment'}")
    if not rules:
        click.echo("the host only: memplan watch add name:python*")


def _ask(operation: str, **arguments: str) -> Any:
    from pathlib import Path

    from memplan import config
    from memplan.store.remote import DaemonClient, socket_path

    name = config.setting("database").value
    database = name if "://" in name else str(Path(name).expanduser().absolute())
    with DaemonClient(socket_path(database)) as client:
        return client.request(operation, **arguments)
