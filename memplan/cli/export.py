"""Rows out of the database into CSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from memplan.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from memplan.store.base import Reader
    from memplan.types import Run

__all__ = ["CURVE_COLUMNS", "SAMPLE_COLUMNS", "curve_rows", "sample_rows", "write"]

SAMPLE_COLUMNS = ("t_ns", "entity", "metric", "value")
CURVE_COLUMNS = ("t_ns", "entity", "metric", "n", "low", "high", "high_t_ns", "mean", "last")

Row = Sequence[Any]

_ROWS_AT_ONCE = 50_000


def sample_rows(reader: Reader, run_id: str) -> Iterator[Row]:
    """Yield a run's samples in their order."""
    cursor = 0
    while True:
        batch = reader.samples(run_id, after=cursor)
        for sample in batch.samples:
            yield (sample.t_ns, sample.series.entity, sample.series.metric, sample.value)
        if batch.cursor == cursor:
            return
        cursor = batch.cursor


def curve_rows(reader: Reader, run: Run, buckets: int) -> Iterator[Row]:
    """Yield a run's curves, series by series."""
    span = reader.span_ns(run.id)
    if span is None:
        return
    for curve in reader.curves(run.id, since_ns=span[0], until_ns=span[1] + 1, buckets=buckets):
        for b in curve.buckets:
            about = (curve.series.entity, curve.series.metric)
            yield (b.t_ns, *about, b.n, b.low, b.high, b.high_t_ns, b.mean, b.last)


def write(rows: Iterable[Row], columns: Sequence[str], kind: str, output: Path | None) -> int:
    """Write rows and return how many there were.

    Args:
        rows: with as many values as there are columns.
        columns: their names.
        kind: "csv", "json" (one object a line) or "parquet".
        output: a file; None = standard output.

    Raises MissingDependencyError for Parquet without pyarrow, and UsageError for a terminal that
    is to take it.
    """
    if kind == "parquet":
        return _write_parquet(rows, columns, output)
    with _text(output) as file:
        count = 0
        lines = csv.writer(file, lineterminator="\n")
        if kind == "csv":
            lines.writerow(columns)
        for row in rows:
            if kind == "csv":
                lines.writerow(row)
            else:
                file.write(json.dumps(dict(zip(columns, row, strict=True))) + "\n")
            count += 1
    return count


@contextmanager
def _text(output: Path | None) -> Iterator[IO[str]]:
    if output is None:
        yield sys.stdout
        return
    with output.open("w", encoding="utf-8", newline="") as file:
        yield file


def _write_parquet(rows: Iterable[Row], columns: Sequence[str], output: Path | None) -> int:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingDependencyError(
            "Parquet needs pyarrow, which is not installed", hint="pip install 'memplan[parquet]'"
        ) from error
    if output is None and sys.stdout.isatty():
        raise UsageError("Parquet is not for a terminal", hint="--output run.parquet")
    text = pa.dictionary(pa.int32(), pa.string())
    kinds = {"entity": text, "metric": text, "mean": pa.float64()}
    schema = pa.schema([(name, kinds.get(name, pa.int64())) for name in columns])
    count, stream = 0, iter(rows)
    target = sys.stdout.buffer if output is None else str(output)
    with pq.ParquetWriter(target, schema) as file:
        while part := list(islice(stream, _ROWS_AT_ONCE)):
            arrays = [
                pa.array(values, field.type)
                for field, values in zip(schema, zip(*part, strict=True), strict=True)
            ]
            file.write_batch(pa.record_batch(arrays, schema=schema))
            count += len(part)
    return count
