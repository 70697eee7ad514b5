"""A run's curves, read from the store, and drawn on standard output."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from typing import TYPE_CHECKING

from memplan.chart import Axis, draw, glyphs
from memplan.errors import NotStoredError
from memplan.units import format_bytes

if TYPE_CHECKING:
    from memplan.chart import Glyphs, Points
    from memplan.store.base import Reader
    from memplan.types import Comparison, Plan, Run

__all__ = ["chart_text", "curves_of", "held"]

_HEIGHT = 14
_WIDTH = 100


def curves_of(reader: Reader, run: Run) -> dict[str, Points]:
    """Return device name -> samples of a run: its tree's memory on each GPU and on the host."""
    names = {device.uuid: device.name for device in reader.devices() if device.uuid}
    found: dict[str, list[tuple[int, int]]] = {}
    cursor = 0
    while True:
        batch = reader.samples(run.id, after=cursor)
        for sample in batch.samples:
            entity, metric = sample.series.entity, sample.series.metric
            if entity.startswith("gpu:") and entity.endswith("/tree") and metric == "used_bytes":
                uuid = entity.removeprefix("gpu:").removesuffix("/tree")
                found.setdefault(names.get(uuid, "cuda:0"), []).append((sample.t_ns, sample.value))
            elif (entity, metric) == ("tree", "rss_bytes"):
                found.setdefault("cpu", []).append((sample.t_ns, sample.value))
        if batch.cursor == cursor:
            return {name: found[name] for name in sorted(found, key=lambda n: (n == "cpu", n))}
        cursor = batch.cursor


def held(reader: Reader, run: Run) -> tuple[Comparison, Plan | None]:
    """Return a run held against its own plan."""
    from memplan.compare import compare

    plan = None
    if run.plan_id is not None:
        with contextlib.suppress(NotStoredError):
            plan = reader.plan(run.plan_id)
    comparison = compare(
        plan,
        run,
        peaks=reader.peaks(run.id),
        phases=reader.phases(run.id),
        devices=reader.devices(),
    )
    return comparison, plan


def chart_text(reader: Reader, run: Run, unit: str, *, ascii_only: bool) -> str:
    """Return a chart for each device that has a curve."""
    curves = curves_of(reader, run)
    if not curves:
        return f"nothing was sampled of run {run.id}"
    comparison, plan = held(reader, run)
    rows = {row.name: row for row in comparison.devices}
    ledgers = {ledger.name: ledger for ledger in plan.devices} if plan is not None else {}
    end = max(points[-1][0] for points in curves.values())
    lines = []
    for name, points in curves.items():
        row, ledger = rows.get(name), ledgers.get(name)
        axis = Axis(
            start_ns=run.started_ns,
            end_ns=max(end, run.started_ns + 1),
            plan=row.planned_bytes if row else None,
            low=row.low_bytes if row else None,
            high=row.high_bytes if row else None,
            capacity=ledger.capacity_bytes if ledger else None,
            unit=unit,
            left=time.strftime("%H:%M:%S", time.localtime(run.started_ns / 1e9)),
            right=time.strftime("%H:%M:%S", time.localtime(end / 1e9)),
        )
        peak = format_bytes(max(value for _, value in points), unit)
        lines.append(f"{name}: peak {peak}, plan {format_bytes(axis.plan, unit)}")
        lines += _drawn(points, axis, _style(ascii_only=ascii_only))
    return "\n".join(lines)


def _drawn(points: Points, axis: Axis, style: Glyphs) -> list[str]:
    width = min(shutil.get_terminal_size((_WIDTH, 24)).columns, _WIDTH)
    drawn = draw(points, axis, width=width, height=_HEIGHT, style=style)
    return ["".join(piece for piece, _ in row).rstrip() for row in drawn]


def _style(*, ascii_only: bool) -> Glyphs:
    plain = ascii_only or "utf" not in (sys.stdout.encoding or "").lower()
    return glyphs("ascii" if plain or os.environ.get("TERM") == "dumb" else "braille")
