"""`memplan tui`: the dashboard."""

from __future__ import annotations

import os
import sys

import click

from memplan.cli.options import chosen_unit, unit_option
from memplan.errors import UsageError

__all__ = ["tui"]


@click.command("tui")
@click.option("--theme", metavar="NAME", help="Colours. Default: the setting theme.")
@click.option("--plain", is_flag=True, help="Print the same facts once as text, and end.")
@click.option("--ascii", "ascii_only", is_flag=True, help="Draw without braille and box lines.")
@unit_option
def tui(*, theme: str | None, plain: bool, ascii_only: bool, unit: str | None) -> int:
    """Show plans beside measurements, live: the machine, the runs, each run against its plan.

    Reads the database only; whatever samples goes on without it. Press ? for the keys.

    \b
    memplan tui
    memplan tui --plain | less
    """
    from memplan import config

    database = config.setting("database").value
    chosen = chosen_unit(unit)
    if plain:
        click.echo(_plain(database, chosen), nl=False)
        return 0
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError("the dashboard needs a terminal", hint="memplan tui --plain")
    if os.environ.get("NO_COLOR") == "":
        del os.environ["NO_COLOR"]  # the library takes an empty one for set
    from memplan_tui.app import MemplanApp

    app = MemplanApp(
        database,
        unit=chosen,
        theme=theme or config.setting("theme").value,
        unicode=not ascii_only and _unicode(),
    )
    app.run()
    return app.return_code or 0


def _plain(database: str, unit: str) -> str:
    import time

    from memplan_tui.poller import Poller
    from memplan_tui.view import plain_text

    from memplan.store.reader import StoreReader

    poller = Poller(database, open_reader=StoreReader, now_ns=time.time_ns)
    try:
        return plain_text(poller.poll(), unit)
    finally:
        poller.close()


def _unicode() -> bool:
    """Tell whether the terminal can show braille: a UTF-8 locale, and no dumb terminal."""
    encoding = (sys.stderr.encoding or "").lower()
    return "utf" in encoding and os.environ.get("TERM") not in {"dumb", "linux"}
