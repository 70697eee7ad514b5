"""`memplan record`: a run or a window as a file of its own."""

from __future__ import annotations

from pathlib import Path

import click

from memplan.errors import UsageError

__all__ = ["record"]


@click.command("record")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--run", "run_key", metavar="RUN", help='Only this run: an id, or "last".')
@click.option("--last", "last", metavar="TIME", help="Only what happened in the last 10m, 2h, 7d.")
def record(*, file: Path, run_key: str | None, last: str | None) -> None:
    """Write a run, a window or everything into a new SQLite file, to be looked at elsewhere.

    The host's own samples of that time go with it. Whoever samples goes on meanwhile.

    \b
    memplan record slow.memplan --run last
    memplan record night.memplan --last 8h
    memplan tui --replay night.memplan
    """
    import time

    from memplan import config
    from memplan.store.open import seconds
    from memplan.store.reader import StoreReader
    from memplan.store.record import record as write
    from memplan.units import format_bytes

    if run_key is not None and last is not None:
        raise UsageError("--run and --last do not go together", hint="name one of them")
    database = config.setting("database").value
    run_id, since_ns = None, None
    if run_key is not None:
        with StoreReader(database) as reader:
            run_id = reader.run(run_key).id
    if last is not None:
        since_ns = time.time_ns() - round(seconds(last) * 1e9)
    done = write(database, file, run_id=run_id, since_ns=since_ns)
    click.echo(
        f"{file}: {done.runs} runs, {done.samples} samples, {format_bytes(done.bytes, 'MiB')}"
    )
