"""`memplan report`: one run as one HTML page."""

from __future__ import annotations

from pathlib import Path

import click

from memplan.cli.options import chosen_unit, unit_option

__all__ = ["report"]


@click.command("report")
@click.argument("run")
@click.option(
    "--html",
    "target",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="Where to write it. Default: standard output.",
)
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@unit_option
def report(*, run: str, target: Path | None, force: bool, unit: str | None) -> None:
    """Write one run as one HTML page: plan against measurement, charts, phases.

    RUN is an id, a unique beginning of one, or "last". The page needs nothing else: no script, no
    outside link, charts as SVG inside.

    \b
    memplan report last --html report.html
    """
    from memplan import config
    from memplan.cli.curves import curves_of, held
    from memplan.errors import UsageError
    from memplan.page import html_page
    from memplan.store.reader import StoreReader

    if target is not None and target.exists() and not force:
        raise UsageError(f"{target} exists", hint="add --force to write over it")
    with StoreReader(config.setting("database").value) as reader:
        found = reader.run(run)
        comparison, plan = held(reader, found)
        curves, phases = curves_of(reader, found), reader.phases(found.id)
    page = html_page(comparison, plan=plan, phases=phases, curves=curves, unit=chosen_unit(unit))
    if target is None:
        click.echo(page, nl=False)
        return
    target.write_text(page, encoding="utf-8")
    click.echo(f"wrote {target}", err=True)
