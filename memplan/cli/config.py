"""`memplan config show`: every setting, its value and where it was set."""

from __future__ import annotations

import json

import click

__all__ = ["config"]


@click.group("config")
def config() -> None:
    """Settings: option > MEMPLAN_* > [tool.memplan] in pyproject.toml > config.toml > default."""


@config.command("show")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(*, as_json: bool) -> None:
    """Print every setting with its value and where it was set."""
    from memplan.config import load
    from memplan.report import table
    from memplan.store.readonly import shown

    values = load()
    if as_json:
        rows = {v.setting.name: {"value": shown(v.value), "origin": v.origin} for v in values}
        click.echo(json.dumps(rows, indent=2))
        return
    head = ["setting", "value", "set by", "meaning"]
    lines = [[v.setting.name, shown(v.value), v.origin, v.setting.help] for v in values]
    click.echo("\n".join(table([head, *lines], "llll", "")))
