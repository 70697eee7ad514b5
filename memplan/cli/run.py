"""`memplan run`: a command under the sampler, then plan beside measurement."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from memplan.cli import style
from memplan.cli.engine import ENGINE_NAMES
from memplan.errors import UsageError

if TYPE_CHECKING:
    from memplan_daemon.runner import Outcome

    from memplan.types import Comparison, Peak, Phase, Plan, Run

__all__ = ["run"]

EXIT_FINDING = 1
_AGENT_S = 0.1


@click.command("run", context_settings={"ignore_unknown_options": True})
@click.option("--plan", "plan_key", metavar="PLAN", help='Plan id, "last", or a plan\'s JSON file.')
@click.option("--engine", type=click.Choice(ENGINE_NAMES), help="Start the plan on its engine.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="engine: folder for its files, kept. Default: a temporary one.",
)
@click.option("--force", is_flag=True, help="engine: overwrite files in that folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON on stdout.")
@click.option("--strict", is_flag=True, help="Exit 1 when a peak lies above the plan's band.")
@click.option("--interval", type=float, metavar="SECONDS", help="Between samples. Default: 0.1.")
@click.option(
    "--agent",
    is_flag=True,
    help="Attach the agent to its Python programs: torch's allocator, ten times a second.",
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def run(
    *,
    plan_key: str | None,
    engine: str | None,
    output: Path | None,
    force: bool,
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

    With --engine the plan's files are written and its engine is started on them; COMMAND is then
    arguments for the engine, or for the script that was written. What the engine did is checked:
    where its bytes lie elsewhere than planned, memplan says so.

    \b
    memplan run -- python generate.py
    memplan run --plan last -- python train.py --steps 10
    memplan run --engine torchrun --plan last -- --steps 4
    memplan run --engine vllm --plan last -- --port 8001

    Exit code: the command's own (128 + signal when it was killed, 126 or 127 when it cannot be
    started); with --strict 1 when it did well but took more than planned; with --engine 1 when the
    engine ignored the plan.
    """
    plan, from_file = _plan(plan_key)
    if engine is None:
        if not command:
            raise click.UsageError("Missing argument 'COMMAND...'.")
        outcome, comparison = _watch(command, plan, from_file, interval, agent, as_json=as_json)
        return _exit_code(outcome, over=strict and _over(comparison))
    if plan is None:
        raise UsageError("--engine starts a plan", hint="add --plan last, or a plan's id or file")
    from memplan.cli.engine import started_on

    with started_on(engine, plan, command, folder=output, force=force) as started:
        outcome, comparison = _watch(
            started.command, plan, from_file, interval, agent, as_json=as_json
        )
        why = started.ignored(comparison) if outcome.run.exit_code in _ENDED_WELL else None
    if why is not None:
        click.echo(f"{style.red('ignored the plan: ', err=True)}{engine}: {why}", err=True)
        return EXIT_FINDING
    return _exit_code(outcome, over=strict and _over(comparison))


_ENDED_WELL = (0, 128 + 2, 128 + 15)
"""Exit codes of a program that was done, or that its user stopped (SIGINT, SIGTERM)."""


def _watch(
    command: tuple[str, ...],
    plan: Plan | None,
    from_file: bool,
    interval: float | None,
    agent: bool,
    *,
    as_json: bool,
) -> tuple[Outcome, Comparison | None]:
    """Run a command under the sampler and print what was measured."""
    from memplan_daemon.runner import run_command

    from memplan import config

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
    return outcome, _report(database, outcome, plan, as_json=as_json)


def _over(comparison: Comparison | None) -> bool:
    return comparison is not None and comparison.verdict == "over"


def _exit_code(outcome: Outcome, *, over: bool) -> int:
    code = outcome.run.exit_code or 0
    return EXIT_FINDING if over and code == 0 else code


def _plan(key: str | None) -> tuple[Plan | None, bool]:
    """Return the plan that was asked for, and whether it came from a file."""
    if key is None:
        return None, False
    from memplan.cli.options import read_plan

    return read_plan(key), key.endswith(".json") or Path(key).is_file()


def _seconds(name: str) -> float:
    from memplan import config

    value = config.setting(name)
    try:
        return float(value.value)
    except ValueError as error:
        raise UsageError(f"{name} is not a number of seconds: {value.value!r}") from error


def _report(
    database: str, outcome: Outcome, plan: Plan | None, *, as_json: bool
) -> Comparison | None:
    """Print and return what was measured; None when the database does not answer."""
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
        return None
    comparison = compare(plan, run, peaks=peaks, phases=phases, devices=devices)
    if as_json:
        from memplan.serialize import dumps

        click.echo(dumps(comparison))
    else:
        text = _text(comparison, run, plan, peaks=peaks, phases=phases)
        click.echo("\n" + text, nl=False, err=True)
    return comparison


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
