"""`memplan run`: a command under the sampler, then plan beside measurement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from memplan.cli import style

if TYPE_CHECKING:
    from memplan_daemon.runner import Outcome

    from memplan.types import Comparison, Peak, Phase, Plan, Run

__all__ = ["run"]

EXIT_FINDING = 1
_AGENT_S = 0.1


@click.command("run", context_settings={"ignore_unknown_options": True})
@click.option("--plan", "plan_key", metavar="PLAN", help='Plan id, "last", or a plan\'s JSON file.')
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON on stdout.")
@click.option("--strict", is_flag=True, help="Exit 1 when a peak lies above the plan's band.")
@click.option("--interval", type=float, metavar="SECONDS", help="Between samples. Default: 0.1.")
@click.option(
    "--agent",
    is_flag=True,
    help="Attach the agent to its Python programs: torch's allocator, ten times a second.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    *,
    plan_key: str | None,
    as_json: bool,
    strict: bool,
    interval: float | None,
    agent: bool,
    command: tuple[str, ...],
) -> int:
    """Run a command, sample its memory, store the run, print plan beside measurement.

    COMMAND keeps its own input and output; what memplan has to say goes to standard error (with
    --json to standard output, after the command's own). `memplan.measure` inside the command adds
    its phases. Sampling from outside costs the command nothing.

    \b
    memplan run -- python generate.py
    memplan run --plan last -- python train.py --steps 10

    Exit code: the command's own (128 + signal when it was killed, 126 or 127 when it cannot be
    started); with --strict 1 when it did well but took more than planned.
    """
    from memplan_daemon.runner import run_command

    from memplan import config

    plan, from_file = _plan(plan_key)
    database = config.setting("database").value
    outcome = run_command(
        command,
        database=database,
        interval_s=interval if interval is not None else _seconds("run_interval"),
        host_interval_s=_seconds("interval"),
        plan=plan,
        save_plan=from_file,
        agent_interval_s=_AGENT_S if agent else None,
    )
    for warning in outcome.warnings:
        click.echo(style.red("warning: ", err=True) + warning, err=True)
    over = _report(database, outcome, plan, as_json=as_json)
    code = outcome.run.exit_code or 0
    return EXIT_FINDING if strict and over and code == 0 else code


def _plan(key: str | None) -> tuple[Plan | None, bool]:
    """Return the plan that was asked for, and whether it came from a file."""
    if key is None:
        return None, False
    from pathlib import Path

    from memplan.cli.options import read_plan

    return read_plan(key), key.endswith(".json") or Path(key).is_file()


def _seconds(name: str) -> float:
    from memplan import config
    from memplan.errors import UsageError

    value = config.setting(name)
    try:
        return float(value.value)
    except ValueError as error:
        raise UsageError(f"{name} is not a number of seconds: {value.value!r}") from error


def _report(database: str, outcome: Outcome, plan: Plan | None, *, as_json: bool) -> bool:
    """Print what was measured; tell whether it lies above the plan."""
    from memplan.compare import compare
    from memplan.errors import StoreError
    from memplan.store.reader import StoreReader

    run = outcome.run
    try:
        with StoreReader(database) as reader:
            peaks, phases = reader.peaks(run.id), reader.phases(run.id)
            devices = reader.devices()
    except StoreError as error:
        click.echo(f"{style.red('warning: ', err=True)}cannot compare: {error}", err=True)
        return False
    comparison = compare(plan, run, peaks=peaks, phases=phases, devices=devices)
    if as_json:
        from memplan.serialize import dumps

        click.echo(dumps(comparison))
    else:
        text = _text(comparison, run, plan, peaks=peaks, phases=phases)
        click.echo("\n" + text, nl=False, err=True)
    return comparison.verdict == "over"


def _text(
    comparison: Comparison,
    run: Run,
    plan: Plan | None,
    *,
    peaks: tuple[Peak, ...],
    phases: tuple[Phase, ...],
) -> str:
    from memplan.cli.options import chosen_unit
    from memplan.report import comparison_text, run_text

    unit = chosen_unit(None)
    if plan is None:
        return run_text(run, phases=phases, peaks=peaks, unit=unit)
    return comparison_text(comparison, plan=plan, unit=unit)
