"""`memplan validate`: the estimator held against recorded measurements."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from memplan.validate.predict import Prediction
    from memplan.validate.table import Row

__all__ = ["validate"]

EXIT_FINDING = 1


@click.command("validate")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print every case and the table as JSON.")
@click.option(
    "--cases", "show_cases", is_flag=True, help="Print every case as soon as it is known."
)
@click.option("--quiet", is_flag=True, help="Print the table alone.")
def validate(*, files: tuple[Path, ...], as_json: bool, show_cases: bool, quiet: bool) -> int:
    """Hold the planner against real measurements, one JSON object a line in FILES.

    Each case names a model (or holds its config), the options of `plan`, what was measured and
    where it was published. Unsafe = the measurement lies above the planned band. A case whose model
    is module:callable runs that code, looked for beside its file first.

    \b
    memplan validate tests/reference/inference.jsonl

    Exit code: 0 no unsafe case, 1 at least one, 2 a file could not be read.
    """
    from memplan.validate.cases import read_cases
    from memplan.validate.predict import predict_all
    from memplan.validate.table import rows

    cases = [case for file in files for case in read_cases(file)]
    predictions = []
    for prediction in _shown(predict_all(cases), len(cases)):
        predictions.append(prediction)
        if show_cases and not as_json:
            click.echo(_case_line(prediction))
    table = rows(predictions)
    if as_json:
        click.echo(json.dumps(_json(predictions, table), indent=2))
    else:
        if show_cases:
            click.echo()
        click.echo(_text(table))
        _tell_skipped(predictions)
        if not quiet:
            _explain(predictions)
    return EXIT_FINDING if any(p.unsafe for p in predictions) else 0


def _shown(predictions: Iterable[Prediction], count: int) -> Iterator[Prediction]:
    """Yield predictions, with a bar on a terminal."""
    hidden = not sys.stderr.isatty()
    with click.progressbar(predictions, length=count, file=sys.stderr, hidden=hidden) as bar:
        yield from bar


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _text(table: Sequence[Row]) -> str:
    head = ("quantity", "runtime", "cases", "refused", "median", "p90", "in band", "unsafe")
    body = [
        (
            f"{row.quantity} ({row.group})" if row.group else row.quantity,
            row.runtime,
            str(row.cases),
            str(row.refused),
            _percent(row.median),
            _percent(row.p90),
            _percent(row.in_band),
            str(row.unsafe),
        )
        for row in table
    ]
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
    lines = []
    for line in (head, *body):
        left = [line[i].ljust(widths[i]) for i in range(2)]
        right = [line[i].rjust(widths[i]) for i in range(2, len(head))]
        lines.append("  ".join((*left, *right)).rstrip())
    return "\n".join(lines)


def _case_line(prediction: Prediction) -> str:
    case = prediction.case
    if prediction.skipped:
        return f"{case.id}: skipped: {prediction.problem}"
    if prediction.value is None:
        return f"{case.id}: refused: {prediction.problem}"
    band = "in band" if prediction.within else "UNSAFE" if prediction.unsafe else "below band"
    error = prediction.error or 0.0
    return f"{case.id}: {prediction.value} for {case.measured}, {100 * error:+.2f} %, {band}"


def _tell_skipped(predictions: Sequence[Prediction]) -> None:
    """Say how many cases were left out, and why, once for each reason."""
    reasons: dict[str, int] = {}
    for prediction in predictions:
        if prediction.skipped:
            reason = prediction.problem.partition(" needs ")[2] or prediction.problem
            reasons[reason] = reasons.get(reason, 0) + 1
    for reason, count in reasons.items():
        click.echo(f"skipped: {count} cases, whose own code needs {reason}")


def _explain(predictions: Sequence[Prediction]) -> None:
    for prediction in predictions:
        if prediction.skipped:
            continue
        if prediction.value is None or prediction.unsafe:
            click.echo(_case_line(prediction), err=True)


def _json(predictions: Sequence[Prediction], table: Sequence[Row]) -> dict[str, Any]:
    return {
        "schema": "memplan.validation/1",
        "cases": [
            {
                "id": p.case.id,
                "quantity": p.case.quantity,
                "runtime": p.runtime,
                "predicted": p.value,
                "low": p.low,
                "high": p.high,
                "measured": p.case.measured,
                "error_percent": None if p.error is None else 100 * p.error,
                "in_band": p.within,
                "unsafe": p.unsafe,
                "problem": p.problem or None,
                "source": p.case.source,
            }
            for p in predictions
        ],
        "table": [{name: getattr(row, name) for name in row.__slots__} for row in table],
    }
