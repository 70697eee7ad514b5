"""`memplan tui`: the dashboard."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from memplan.cli.options import chosen_unit, unit_option
from memplan.errors import NotStoredError, UsageError

__all__ = ["tui"]


@click.command("tui")
@click.option("--theme", metavar="NAME", help="Colours. Default: the setting theme.")
@click.option("--plain", is_flag=True, help="Print the same facts once as text, and end.")
@click.option(
    "--glyphs",
    type=click.Choice(["auto", "braille", "block", "ascii"]),
    help="What is drawn with. Default: the setting glyphs.",
)
@click.option("--ascii", "ascii_only", is_flag=True, help="Only ASCII, everywhere.")
@click.option("--language", metavar="NAME", help="en or pt_BR. Default: the setting, else LANG.")
@click.option("--replay", metavar="FILE|RUN", help="Play a database file's newest run, or a run.")
@click.option("--keys", is_flag=True, help="List every key with its name, and end.")
@unit_option
def tui(
    *,
    theme: str | None,
    plain: bool,
    glyphs: str | None,
    ascii_only: bool,
    language: str | None,
    replay: str | None,
    keys: bool,
    unit: str | None,
) -> int:
    """Show plans beside measurements, live or replayed: machine, runs, each against its plan.

    Reads the database only; whatever samples goes on without it. Press ? for the keys; a table
    [keys] in config.toml moves them.

    \b
    memplan tui
    memplan tui --replay last
    memplan tui --plain | less
    """
    from memplan_tui import text

    from memplan import config

    chosen = language or config.setting("language").value
    text.use(text.choose(chosen, os.environ))
    if keys:
        click.echo(_keys(), nl=False)
        return 0
    database, run = _place(replay)
    size = chosen_unit(unit)
    if plain:
        click.echo(_plain(database, size), nl=False)
        return 0
    if not _terminal():
        click.echo(_plain(database, size), nl=False)
        raise UsageError(
            "the dashboard needs a terminal; the same facts are above", hint="memplan tui --plain"
        )
    if os.environ.get("NO_COLOR") == "":
        del os.environ["NO_COLOR"]  # the library takes an empty one for set
    style = _style(glyphs, ascii_only=ascii_only)
    return _show(database, size, style, theme or config.setting("theme").value, run)


def _show(database: str, unit: str, style: str, theme: str, run: str | None) -> int:
    import time

    from memplan_tui.messages import FIRST_WINDOW_NS, Request
    from memplan_tui.poller import Poller

    from memplan.store.reader import StoreReader

    poller = Poller(database, open_reader=StoreReader, now_ns=time.time_ns)
    poller.begin(Request(window_ns=FIRST_WINDOW_NS))  # while the library is loaded

    from memplan_tui import themes
    from memplan_tui.app import MemplanApp
    from memplan_tui.keys import checked

    from memplan import config
    from memplan.cli.whatif import WhatIf

    app = MemplanApp(
        database,
        unit=unit,
        theme=themes.choose(theme, os.environ),
        style=style,
        unicode=style != "ascii",
        planner=WhatIf(),
        moved=checked(config.moved_keys()),
        replay=run,
        poller=poller,
    )
    app.run()
    return app.return_code or 0


def _place(replay: str | None) -> tuple[str, str | None]:
    """Return the database, and the run to play ("" = its newest; None = none)."""
    from memplan import config
    from memplan.store.reader import StoreReader

    database = config.setting("database").value
    if replay is None:
        return database, None
    if Path(replay).is_file():
        return replay, ""
    with StoreReader(database) as reader:
        try:
            return database, reader.run(replay).id
        except NotStoredError as error:
            raise UsageError(
                f"{replay!r} is neither a file nor a run: {error}", hint="memplan runs"
            ) from error


def _keys() -> str:
    from memplan_tui.keys import KEYS, checked, listing

    from memplan import config
    from memplan.report import table

    moved = checked(config.moved_keys())
    rows = [("name", "key", "does"), *listing(KEYS, moved)]
    return "\n".join(table(rows, "lll", "")) + "\n"


def _plain(database: str, unit: str) -> str:
    import time

    from memplan_tui.poller import Poller
    from memplan_tui.views.plain import plain_text

    from memplan.store.reader import StoreReader

    poller = Poller(database, open_reader=StoreReader, now_ns=time.time_ns)
    try:
        return plain_text(poller.poll(), unit)
    finally:
        poller.close()


def _terminal() -> bool:
    """Tell whether there is a terminal that can be drawn on."""
    dumb = os.environ.get("TERM", "") in {"", "dumb"}
    return sys.stdin.isatty() and sys.stderr.isatty() and not dumb


def _style(glyphs: str | None, *, ascii_only: bool) -> str:
    """Return what to draw with: what was asked for, else what the terminal can show."""
    from memplan import config
    from memplan.chart import GLYPHS

    wanted = glyphs or config.setting("glyphs").value
    if ascii_only:
        return "ascii"
    if wanted != "auto":
        if wanted not in GLYPHS:
            raise UsageError(f"setting glyphs is {wanted!r}", hint="use auto, braille or block")
        return wanted
    if "utf" not in (sys.stderr.encoding or "").lower():
        return "ascii"
    return "block" if os.environ.get("TERM") == "linux" else "braille"
