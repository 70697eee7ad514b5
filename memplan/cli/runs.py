"""`memplan runs`, `runs delete`, `show`, `compare` and `export`: what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memplan.cli.options import chosen_unit, read_plan, unit_option

if TYPE_CHECKING:
    from memplan.types import Comparison, Plan, Run

__all__ = ["compare", "export", "runs", "show"]

EXIT_FINDING = 1

_HEAD = ["run", "started", "seconds", "status", "peak RSS", "plan", "command"]


def _reader() -> Any:
    from memplan import config
    from memplan.store.reader import StoreReader

    return StoreReader(config.setting("database").value)


@click.group("runs", invoke_without_command=True)
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, help="How many, newest first.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@unit_option
@click.pass_context
def runs(ctx: click.Context, *, limit: int, as_json: bool, unit: str | None) -> None:
    """List what was measured, newest first.

    \b
    memplan runs
    memplan show last
    memplan runs delete r-0000001ab --yes
    """
    if ctx.invoked_subcommand is not None:
        return
    with _reader() as reader:
        found = reader.runs(limit)
        if as_json:
            from memplan.serialize import to_dict

            click.echo(json.dumps([to_dict(run) for run in found], indent=2))
            return
        rows = [_row(run, _peak(reader, run), chosen_unit(unit)) for run in found]
    if not rows:
        click.echo("no runs yet; measure one: memplan run -- COMMAND", err=True)
        return
    from memplan.report import table

    click.echo("\n".join(table([_HEAD, *rows], "llrlrll", "")))


@runs.command("delete")
@click.argument("keys", metavar="RUN...", nargs=-1, required=True)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@unit_option
def delete(*, keys: tuple[str, ...], yes: bool, unit: str | None) -> None:
    """Delete runs for good: samples, roll-ups, peaks, phases and events. Their plans stay.

    RUN is an id, a unique beginning of one, or "last". A fleet's database that they were copied to
    deletes them, too. A run that is still being measured is refused.
    """
    import sys

    from memplan import config
    from memplan.errors import UsageError
    from memplan.report import table
    from memplan.store.open import open_writer

    with _reader() as reader:
        found = list({run.id: run for run in map(reader.run, keys)}.values())
        rows = [_row(run, _peak(reader, run), chosen_unit(unit)) for run in found]
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("nobody is there to be asked", hint="memplan runs delete RUN --yes")
        click.echo("\n".join(table([_HEAD, *rows], "llrlrll", "")), err=True)
        click.confirm(
            f"Delete {'this run' if len(found) == 1 else f'these {len(found)} runs'} for good?",
            abort=True,
            err=True,
        )
    with open_writer(config.setting("database").value) as writer:
        for run in found:
            while writer.delete_run(run.id):
                pass
            click.echo(f"deleted {run.id}")


def _peak(reader: Any, run: Run) -> int | None:
    peaks = [
        p.value
        for p in reader.peaks(run.id)
        if p.series.entity == "tree" and p.series.metric in ("rss_bytes", "hwm_bytes")
    ]
    return max(peaks, default=None)


def _row(run: Run, peak: int | None, unit: str) -> list[str]:
    import shlex
    import time

    from memplan.units import format_bytes

    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.started_ns / 1e9))
    seconds = f"{(run.ended_ns - run.started_ns) / 1e9:.1f}" if run.ended_ns else "n/a"
    status = run.status if run.exit_code in (None, 0) else f"{run.status} ({run.exit_code})"
    command = shlex.join(run.command)
    short = command if len(command) <= 48 else command[:45] + "..."
    return [run.id, started, seconds, status, format_bytes(peak, unit), run.plan_id or "", short]


@click.command("show")
@click.argument("run")
@click.option("--chart", is_flag=True, help="Draw each device's memory over time.")
@click.option("--ascii", "ascii_only", is_flag=True, help="Draw with ASCII alone.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@unit_option
def show(*, run: str, chart: bool, ascii_only: bool, as_json: bool, unit: str | None) -> None:
    """Show one run: how it ended, its phases with their counters, the peak of each series.

    RUN is an id, a unique beginning of one, or "last".

    \b
    memplan show last
    memplan show last --chart
    """
    with _reader() as reader:
        found = reader.run(run)
        phases, peaks = reader.phases(found.id), reader.peaks(found.id)
        if chart:
            from memplan.cli.curves import chart_text

            click.echo(chart_text(reader, found, chosen_unit(unit), ascii_only=ascii_only))
            return
    if as_json:
        from memplan.serialize import to_dict

        document = {
            **to_dict(found),
            "phases": [to_dict(phase) for phase in phases],
            "peaks": [to_dict(peak) for peak in peaks],
        }
        click.echo(json.dumps(document, indent=2))
        return
    from memplan.report import run_text

    click.echo(run_text(found, phases=phases, peaks=peaks, unit=chosen_unit(unit)), nl=False)


@click.command("compare")
@click.argument("run")
@click.option("--plan", "plan_key", metavar="PLAN", help="Another plan than the run's own.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, sizes in bytes.")
@unit_option
def compare(*, run: str, plan_key: str | None, as_json: bool, unit: str | None) -> int:
    """Hold one run against its plan, part by part, with what no part explains.

    RUN is an id, a unique beginning of one, or "last". Exit code 1 when a peak lies above its
    planned band.
    """
    comparison, plan = _comparison(run, plan_key)
    if as_json:
        from memplan.serialize import dumps

        click.echo(dumps(comparison))
    else:
        from memplan.report import comparison_text

        click.echo(comparison_text(comparison, plan=plan, unit=chosen_unit(unit)), nl=False)
    return EXIT_FINDING if comparison.verdict == "over" else 0


def _comparison(run: str, plan_key: str | None) -> tuple[Comparison, Plan | None]:
    from memplan import compare as comparing

    with _reader() as reader:
        found = reader.run(run)
        plan = read_plan(plan_key) if plan_key else None
        if plan is None and found.plan_id is not None:
            plan = reader.plan(found.plan_id)
        comparison = comparing.compare(
            plan,
            found,
            peaks=reader.peaks(found.id),
            phases=reader.phases(found.id),
            devices=reader.devices(),
        )
    return comparison, plan


@click.command("export")
@click.argument("run")
@click.option("--format", "kind", type=click.Choice(["csv", "json", "parquet"]), default="csv")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Default: standard output.")
@click.option("--buckets", type=click.IntRange(1, 100_000), help="Curves of N buckets instead.")
def export(*, run: str, kind: str, output: Path | None, buckets: int | None) -> None:
    """Write every sample of one run: CSV, one JSON object a line, or Parquet.

    RUN is an id, a unique beginning of one, or "last". Times are nanoseconds since the epoch,
    sizes bytes. Samples older than two days are rolled up; --buckets writes lowest, highest, mean
    and last of each stretch, whatever is left.

    \b
    memplan export last > run.csv
    memplan export last --format parquet -o run.parquet
    """
    from memplan.cli.export import CURVE_COLUMNS, SAMPLE_COLUMNS, curve_rows, sample_rows, write

    with _reader() as reader:
        found = reader.run(run)
        if buckets is not None:
            write(curve_rows(reader, found, buckets), CURVE_COLUMNS, kind, output)
            return
        count = write(sample_rows(reader, found.id), SAMPLE_COLUMNS, kind, output)
        missing = sum(peak.count for peak in reader.peaks(found.id)) - count
    if missing > 0:
        click.echo(f"note: {missing} older samples were rolled up; see --buckets", err=True)
