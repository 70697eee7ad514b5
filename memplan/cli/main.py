"""The `memplan` program: finds the command, runs it, prints errors and sets the exit code."""

from __future__ import annotations

import gc
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, cast

import click

from memplan import __version__
from memplan.cli import style
from memplan.errors import MemplanError

__all__ = ["COMMANDS", "cli", "collect_rarely", "main"]

COMMANDS: dict[str, tuple[str, str]] = {
    "plan": ("memplan.cli.plan:plan", "What a model needs on given devices, and where it goes."),
    "map": ("memplan.cli.plan:device_map", "The placement only, as a device_map in JSON."),
    "fit": ("memplan.cli.fit:fit", "What to change so that a model fits, best first."),
    "emit": ("memplan.cli.emit:emit", "Write what the chosen engine takes."),
    "sweep": ("memplan.cli.sweep:sweep", "A grid of plans as CSV, JSON or Parquet."),
    "trace": ("memplan.cli.trace:trace", "Who eats the memory: phases and largest shares."),
    "run": ("memplan.cli.run:run", "Run a command under the sampler; plan versus measurement."),
    "validate": ("memplan.cli.validate:validate", "The planner held against real measurements."),
    "runs": ("memplan.cli.runs:runs", "List what was measured, or delete it."),
    "show": ("memplan.cli.runs:show", "One run: phases and peaks."),
    "compare": ("memplan.cli.runs:compare", "One run beside its plan, part by part."),
    "report": ("memplan.cli.report:report", "One run beside its plan as one HTML page."),
    "export": ("memplan.cli.runs:export", "Every sample of one run, as CSV, JSON or Parquet."),
    "record": ("memplan.cli.record:record", "A run or a window as a file of its own."),
    "db": ("memplan.cli.db:db", "Check, repair, back up and migrate the database."),
    "daemon": ("memplan.cli.daemon:daemon", "The background sampler."),
    "watch": ("memplan.cli.watch:watch", "What the daemon watches by itself."),
    "tui": ("memplan.cli.tui:tui", "The dashboard."),
    "devices": ("memplan.cli.devices:devices", "Known devices, and what was detected here."),
    "demo": ("memplan.cli.demo:demo", "Plan, run and compare a small real model, offline."),
    "doctor": ("memplan.cli.doctor:doctor", "What is installed, what is missing, how to mend it."),
    "config": ("memplan.cli.config:config", "Settings: every value and where it was set."),
}
"""Command -> ("module:attribute", one line of help). Help is here so that it loads nothing."""

EXIT_INTERRUPTED = 130


class _LazyGroup(click.Group):
    """A group that imports a command's module when it is called, not to list it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of COMMANDS."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        return cast(click.Command, getattr(importlib.import_module(module), attribute))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which ones are close."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            if not close:
                raise
            message = f"{error.message} Did you mean {close[0]!r}?"
            raise click.UsageError(message, ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Sizes: 1 GiB = 1024^3 bytes. Exit codes: 0 done or fits, 1 a finding (does not fit, "
    "outside the plan), 2 usage or could not do it, 130 interrupted.",
)
@click.version_option(__version__, "-V", "--version", prog_name="memplan")
@click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    help="Colour; NO_COLOR and FORCE_COLOR are respected.",
)
@click.option("--debug", is_flag=True, help="Show tracebacks (also MEMPLAN_DEBUG=1).")
@click.pass_context
def cli(ctx: click.Context, color: str, debug: bool) -> None:
    """Know how much memory a language model takes before you spend it, then prove it.

    \b
    memplan plan ./model --device 24GiB          will it fit, and where does every byte go
    memplan run --plan last -- python app.py     what it really takes, beside the plan
    memplan tui                                  both, live
    """
    ctx.color = style.choose(color)
    if debug:
        os.environ["MEMPLAN_DEBUG"] = "1"


def collect_rarely() -> None:
    """Let the garbage collector rest.

    A plan makes a hundred thousand small objects that all live to the end: it would only walk them
    again and again.
    """
    gc.set_threshold(200_000, 20, 20)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program and end the process with its exit code."""
    collect_rarely()
    code = run(argv)
    gc.freeze()
    sys.exit(code)


def run(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code; errors are printed to standard error."""
    try:
        result: Any = cli.main(
            args=None if argv is None else list(argv), prog_name="memplan", standalone_mode=False
        )
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        return int(stop.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        return _complain(error.format_message(), _click_hint(error), error)
    except MemplanError as error:
        return _complain(str(error), error.hint, error, error.exit_code)
    except MemoryError as error:
        return _complain("out of memory", "the input is too large for this machine", error)
    except OSError as error:
        return _complain(str(error), "", error)
    return result if isinstance(result, int) else 0


def _click_hint(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path} --help" if context is not None else "memplan --help"


def _complain(message: str, hint: str, error: BaseException, code: int = 2) -> int:
    if os.environ.get("MEMPLAN_DEBUG", "") not in ("", "0"):
        traceback.print_exception(error)
    style.echo(style.red("error: ", err=True) + " ".join(message.split()), err=True)
    if hint:
        style.echo(style.blue("hint: ", err=True) + hint, err=True)
    return code
