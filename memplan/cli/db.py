"""`memplan db`: looking after the database."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["db"]

EXIT_FINDING = 1


@click.group("db")
def db() -> None:
    """Check, repair, back up and migrate the database.

    `check` and `backup` only read, while a daemon goes on; the others take the writer's place.
    """


def _database() -> str:
    from memplan import config

    return config.setting("database").value


@db.command("check")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(*, as_json: bool) -> int:
    """Read every page and every checksum. Exit code 1 when something is wrong."""
    import json
    from dataclasses import asdict

    from memplan.store.migrate import HEAD
    from memplan.store.upkeep import check as look
    from memplan.units import format_bytes

    found = look(_database())
    if as_json:
        click.echo(json.dumps({**asdict(found), "rows": dict(found.rows)}, indent=2))
        return EXIT_FINDING if found.problems else 0
    click.echo(
        f"database  {_database()} ({format_bytes(found.bytes, 'MiB')}), schema {found.schema}"
    )
    rows = ", ".join(f"{n} {table}" for table, n in found.rows if n)
    click.echo(f"rows      {rows or 'none'}")
    for problem in found.problems:
        click.echo(f"problem   {problem}")
    if not found.problems:
        click.echo("sound     every page and every checksum")
        return 0
    older = found.schema not in {None, HEAD} and len(found.problems) == 1
    click.echo(f"mend it:  memplan db {'migrate' if older else 'repair'}", err=True)
    return EXIT_FINDING


@db.command("repair")
def repair() -> None:
    """Put a damaged database aside and move what is sound of it into a new one.

    The damaged file stays beside it, with .damaged and the time in its name.
    """
    from memplan.store.upkeep import repair as mend

    rescue = mend(_database())
    if rescue is None:
        click.echo("sound: nothing to repair")
        return
    rows = ", ".join(f"{count} {table}" for table, count in rescue.counts.items() if count)
    click.echo(f"saved     {rows or 'nothing'}")
    if rescue.problem:
        click.echo(f"problem   {rescue.problem}")
    click.echo(f"put aside {rescue.aside}")


@db.command("backup")
@click.argument("file", type=click.Path(path_type=Path))
def backup(*, file: Path) -> None:
    """Copy the database into one file; whoever writes goes on meanwhile."""
    from memplan.store.upkeep import backup as copy
    from memplan.units import format_bytes

    click.echo(f"{file}: {format_bytes(copy(_database(), file), 'MiB')}")


@db.command("migrate")
def migrate() -> None:
    """Bring the database to this program's schema; a copy of it as it was stays beside it.

    Every command that writes does this by itself. Killed or out of space half-way, it leaves the
    database as it was.
    """
    from memplan.store.migrate import HEAD, copy_path
    from memplan.store.upkeep import check as look
    from memplan.store.upkeep import local_path
    from memplan.store.writer import LocalWriter

    path = local_path(_database())
    before = look(path).schema
    LocalWriter(path).close()
    if before in {None, HEAD}:
        click.echo(f"schema {HEAD}" + (" already" if before else ", made just now"))
        return
    click.echo(f"migrated from schema {before} to {HEAD}; as it was: {copy_path(path)}")


@db.command("compact")
def compact() -> None:
    """Delete what is too old by now and give the free space back."""
    from memplan.store.upkeep import compact as pack
    from memplan.units import format_bytes

    before, after = pack(_database())
    click.echo(f"{format_bytes(before, 'MiB')} before, {format_bytes(after, 'MiB')} after")


@db.command("ship")
@click.option("--to", "url", metavar="URL", help="A fleet's PostgreSQL. Default: setting fleet.")
@click.option("--raw", is_flag=True, help="Packed samples, too, not only roll-ups and peaks.")
def ship(*, url: str | None, raw: bool) -> None:
    """Copy what a fleet's PostgreSQL has not got yet, and end.

    Sending something twice changes nothing there. A daemon does this by itself when the setting
    fleet names a database.
    """
    from memplan import config
    from memplan.errors import UsageError
    from memplan.store.open import local_writer
    from memplan.store.ship import Shipper, ship_all

    target = url or config.setting("fleet").value
    if not target:
        raise UsageError(
            "there is no fleet's database to ship to",
            hint="memplan db ship --to postgresql+psycopg://HOST/NAME",
        )
    shipper = Shipper(_database(), target, raw=raw)
    try:
        shipper.connect()  # a wrong address is told though nothing may wait for it
        with local_writer(_database(), fleet=target) as writer:
            count = ship_all(shipper, writer.shipped)
    finally:
        shipper.close()
    went = f"shipped in {count} transaction{'s' if count > 1 else ''}"
    click.echo(went if count else "up to date: nothing waits")
