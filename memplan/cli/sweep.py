"""`memplan sweep`: a grid of plans as CSV, JSON or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from memplan.cli.options import Count, plan_options
from memplan.cli.pool import Workers, default_jobs
from memplan.errors import MemplanError, MissingDependencyError, UsageError

__all__ = ["sweep"]

_FORMATS = ("csv", "json", "parquet")
_WHOLE = ("lora_targets", "prune")
"""Options whose one value has commas in it: given again for another point."""
_MOST_POINTS = 100_000
_INLINE = 16
"""Points up to which starting other processes does not pay, where no step is traced."""


class _List(click.ParamType[tuple[Any, ...]]):
    """Values between commas, each of another type."""

    def __init__(self, item: click.ParamType[Any], *, split: bool) -> None:
        """Remember the type of one value."""
        self.item, self.split = item, split
        self.name = f"{item.name},..." if split else item.name

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        """Return the values."""
        if isinstance(value, tuple):
            return value
        texts = str(value).split(",") if self.split else [str(value)]
        return tuple(self.item.convert(text.strip(), param, ctx) for text in texts)


def _grid_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add MODEL... and every option of `plan`, each of which takes several values."""

    def carrier() -> None:
        """Carry the parameters of `plan`."""

    plan_options(carrier)
    for param in carrier.__click_params__:  # type: ignore[attr-defined]
        if isinstance(param, click.Argument):
            function = click.argument("models", nargs=-1, required=True, metavar="MODEL...")(
                function
            )
        elif param.is_flag:
            function = click.option(*param.opts, is_flag=True, help=param.help)(function)
        else:
            split = param.name not in _WHOLE
            shown = param.metavar or param.type.name.upper()
            function = click.option(
                *param.opts,
                type=_List(param.type, split=split),
                multiple=True,
                metavar=f"{shown},..." if split else shown,
                help=param.help,
            )(function)
    return function


@click.command("sweep")
@_grid_options
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write .csv, .json or .parquet. Default: print CSV.",
)
@click.option("--format", "form", type=click.Choice(_FORMATS), help="Default: by FILE's ending.")
@click.option("--jobs", type=Count(), metavar="N", help="Processes. Default: the cores, up to 4.")
def sweep(
    *,
    models: tuple[str, ...],
    output: Path | None,
    form: str | None,
    jobs: int | None,
    trust_remote_code: bool,
    **options: tuple[tuple[Any, ...], ...],
) -> int:
    """Plan a grid: every option of `plan` takes several values, between commas or repeated.

    One row for each point: all options with the values used, the peak of the fullest device in
    bytes, its parts, the verdict. A point that cannot be planned says why in the columns error
    and hint, and the rest goes on. Several devices are several points; --gpus makes them more.

    \b
    memplan sweep llama-3.1-8b qwen3-8b --context 4096,8192 --batch 1,8 --device rtx4090,h100
    memplan sweep qwen3-8b --task train --seq 1024,2048,4096 --checkpointing none,full \\
        --device 24GiB,80GiB --output grid.parquet

    Exit code: 0 planned, whatever the verdicts; 2 not one point could be planned.
    """
    chosen = _format(output, form)
    axes = {name: _values(name, values) for name, values in options.items() if values}
    rows = _rows(models, axes, options.keys(), jobs=jobs, trust=trust_remote_code)
    _write(rows, chosen, output)
    if all(row["error"] is not None for row in rows):
        raise MemplanError(f"no point could be planned: {rows[0]['error']}", hint=rows[0]["hint"])
    return 0


def _values(name: str, values: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Return the values of one axis, each once; a device is a machine with one of it."""
    flat = dict.fromkeys(value for group in values for value in group)
    return tuple((value,) for value in flat) if name == "device" else tuple(flat)


def _format(output: Path | None, form: str | None) -> str:
    ending = output.suffix.lower().lstrip(".") if output is not None else "csv"
    chosen = form or ending
    if chosen not in _FORMATS:
        raise UsageError(
            f"nothing says the format of {output}", hint="add --format csv, json or parquet"
        )
    if chosen == "parquet":
        if output is None:
            raise UsageError("Parquet is not printed", hint="add --output grid.parquet")
        _pyarrow()
    return chosen


def _pyarrow() -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError(
            "Parquet needs pyarrow", hint="pip install 'memplan[parquet]', or write .csv"
        ) from error
    return pa


def _rows(
    models: Sequence[str],
    axes: Mapping[str, Sequence[Any]],
    names: Any,
    *,
    jobs: int | None,
    trust: bool,
) -> list[dict[str, Any]]:
    """Return the row of every point."""
    from memplan.search.grid import points

    grid = list(points({"model": models, **axes}))
    if len(grid) > _MOST_POINTS:
        raise UsageError(f"{len(grid)} points are too many", hint=f"at most {_MOST_POINTS}")
    plain: dict[str, Any] = dict.fromkeys(names)
    plain |= {"device": (), "trust_remote_code": trust}
    traced = _traced(axes)
    with Workers(make_row, plain, jobs=jobs or default_jobs()) as workers:
        return workers.ask(grid) if traced or len(grid) > _INLINE else workers.here(grid)


def _traced(axes: Mapping[str, Sequence[Any]]) -> bool:
    """Say whether a point runs a model's code."""
    if "estimator" in axes:
        return "trace" in axes["estimator"]
    return "train" in axes.get("task", ())


def make_row(plain: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Return what turns a point into its row."""
    from memplan.cli.fit import make_planner
    from memplan.search.grid import error_row, plan_row

    planner = make_planner(plain)

    def row(point: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return plan_row(point["model"], planner(point))
        except MemplanError as error:
            return error_row(point["model"], point, error)

    return row


def _write(rows: Sequence[Mapping[str, Any]], form: str, output: Path | None) -> None:
    if form == "parquet":
        assert output is not None
        arrow = _pyarrow()
        arrow.parquet.write_table(arrow.Table.from_pylist([dict(x) for x in rows]), output)
        return
    if form == "json":
        text = json.dumps({"schema": "memplan.sweep/1", "rows": rows}, indent=2) + "\n"
    else:
        text = _csv(rows)
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    from memplan.search.grid import COLUMNS

    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
