"""What the screens say, as plain values: no widgets, so that all of it can be tested as text."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass

from memplan_tui.messages import Detail, Machine, Snapshot

from memplan.chart import Axis
from memplan.types import Comparison, DeviceComparison, PartComparison, Plan, Run
from memplan.units import UNITS, format_bytes

__all__ = [
    "COMPARE_COLUMNS",
    "DEVICE_COLUMNS",
    "RUN_COLUMNS",
    "Column",
    "chart_axis",
    "compare_rows",
    "device_rows",
    "empty_text",
    "headline",
    "judgement",
    "machine_lines",
    "run_rows",
    "sampler_text",
]

STALE_NS = 10 * 10**9
"""After this long without a sample the sampler is taken for gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table."""

    key: str
    """Its name for the program."""
    label: str
    """Its heading."""
    width: int
    """Characters; fixed, so that nothing jumps."""
    right: bool = True
    """Numbers stand right."""


DEVICE_COLUMNS = (
    Column(key="device", label="device", width=8, right=False),
    Column(key="plan", label="plan", width=9),
    Column(key="now", label="now", width=9),
    Column(key="peak", label="peak", width=9),
    Column(key="gap", label="gap", width=9),
    Column(key="state", label="state", width=20, right=False),
)

RUN_COLUMNS = (
    Column(key="run", label="run", width=11, right=False),
    Column(key="started", label="started", width=8),
    Column(key="length", label="length", width=7),
    Column(key="status", label="status", width=10, right=False),
    Column(key="peak", label="peak", width=9),
    Column(key="command", label="command", width=20, right=False),
)

COMPARE_COLUMNS = (
    Column(key="what", label="what", width=15, right=False),
    Column(key="plan", label="planned", width=9),
    Column(key="measured", label="measured", width=9),
    Column(key="gap", label="gap", width=9),
    Column(key="note", label="band, or how it is known", width=28, right=False),
)


def number(value: int | None, unit: str) -> str:
    """Return a size without its unit; the heading has it. None = n/a."""
    if value is None:
        return "n/a"
    return f"{value / UNITS[unit]:.{1 if unit == 'MiB' else 2}f}"


def gap(measured: int | None, planned: int | None, unit: str) -> str:
    """Return the signed difference, "=" when it is zero to the byte."""
    if measured is None or planned is None:
        return ""
    if measured == planned:
        return "="
    return f"{(measured - planned) / UNITS[unit]:+.{1 if unit == 'MiB' else 2}f}"


def ago(ns: int) -> str:
    """Return a stretch of time in words."""
    seconds = max(ns, 0) // 10**9
    if seconds < 120:
        return f"{seconds} s ago"
    if seconds < 7200:
        return f"{seconds // 60} min ago"
    return f"{seconds // 3600} h ago" if seconds < 48 * 3600 else f"{seconds // 86400} days ago"


def sampler_text(snapshot: Snapshot) -> tuple[str, bool]:
    """Return whether anything is sampled, in words, and whether that is well.

    A run that is going on is sampled by its own `memplan run`.
    """
    last = snapshot.last_sample_ns
    if last is None:
        return "nothing sampled yet: memplan daemon start", False
    if snapshot.now_ns - last <= STALE_NS:
        return "sampling", True
    return f"last sample {ago(snapshot.now_ns - last)}: memplan daemon start", False


def headline(detail: Detail | None) -> str:
    """Return the selected run in one line."""
    if detail is None:
        return "no run"
    words = [f"run {detail.run.id}", detail.run.status]
    if detail.plan is None:
        words.append("no plan")
        return " · ".join(words)
    work = detail.plan.workload
    words.append(detail.plan.model.name)
    words.append(work.dtype if work.quant == "none" else work.quant)
    size = work.context if work.task == "infer" else work.seq
    words.append(f"{work.task} b{work.batch} x {size}")
    return " · ".join(words)


def machine_lines(machine: Machine, unit: str, width: int) -> list[str]:
    """Return the machine's memory, one bar a line; what is not sampled says so."""
    if machine.total_bytes is None or machine.available_bytes is None:
        return ["host memory n/a: the machine itself is sampled by memplan daemon start"]
    used = machine.total_bytes - machine.available_bytes
    lines = [_bar("host", used, machine.total_bytes, unit, width)]
    for gpu in machine.gpus:
        if gpu.total_bytes is None or gpu.used_bytes is None:
            lines.append(f"{gpu.label}: memory n/a")
        else:
            lines.append(_bar(gpu.label, gpu.used_bytes, gpu.total_bytes, unit, width))
    return lines if machine.gpus else [f"{lines[0]}   no GPU"]


def _bar(name: str, used: int, total: int, unit: str, width: int) -> str:
    room = max(min(width - 60, 40), 10)
    filled = round(room * used / max(total, 1))
    bar = "#" * filled + "." * (room - filled)
    numbers = f"{number(used, unit)} of {number(total, unit)} {unit} used"
    return f"{name[:24]:<8} [{bar}] {numbers} ({100 * used / max(total, 1):.0f} %)"


def device_rows(detail: Detail | None, unit: str) -> list[tuple[str, ...]]:
    """Return one row per device: plan, now, peak, gap and a judgement in words."""
    if detail is None:
        return []
    return [
        (
            row.name,
            number(row.planned_bytes, unit),
            number(detail.now.get(row.name), unit),
            number(row.peak_bytes, unit),
            gap(row.peak_bytes, row.planned_bytes, unit),
            judgement(row),
        )
        for row in detail.comparison.devices
    ]


def judgement(row: DeviceComparison) -> str:
    """Return how a device did, in words that need no colour."""
    if row.peak_bytes is None:
        return "not measured"
    if row.within_band is None:
        return "no plan"
    if row.within_band:
        return "within plan"
    return "OVER PLAN" if row.peak_bytes > (row.high_bytes or 0) else "under plan"


def run_rows(snapshot: Snapshot, unit: str, width: int) -> list[tuple[str, ...]]:
    """Return one row per run, newest first."""
    room = max(width - 60, 12)
    return [
        (
            run.id,
            time.strftime("%H:%M:%S", time.localtime(run.started_ns / 1e9)),
            _length(run, snapshot.now_ns),
            run.status if run.exit_code in {0, None} else f"exit {run.exit_code}",
            number(snapshot.peaks.get(run.id), unit),
            _short(shlex.join(run.command), room),
        )
        for run in snapshot.runs
    ]


def _length(run: Run, now_ns: int) -> str:
    end = run.ended_ns if run.ended_ns is not None else now_ns
    seconds = max(end - run.started_ns, 0) / 1e9
    return f"{seconds:.0f} s" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _short(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 3] + "..."


def compare_rows(
    comparison: Comparison, plan: Plan | None, unit: str
) -> list[tuple[str, tuple[str, ...]]]:
    """Return (kind, cells) rows: a device, its parts, the unaccounted line, its peak.

    kind is "device", "part", "unaccounted", "peak", "over" or "under".
    """
    rows: list[tuple[str, tuple[str, ...]]] = []
    for device in comparison.devices:
        rows.append(("device", (device.name, "", "", "", device.measured_by or "not measured")))
        rows += [("part", _part(part, plan, unit)) for part in device.parts]
        rows.append(
            ("unaccounted", ("  unaccounted", "", number(device.unaccounted_bytes, unit), "", ""))
        )
        rows.append((_kind(device), _peak(device, unit)))
        if device.peak_reserved_bytes is not None:
            reserved = number(device.peak_reserved_bytes, unit)
            rows.append(("part", ("  peak reserved", "", reserved, "", "by torch's allocator")))
    return rows


def _part(part: PartComparison, plan: Plan | None, unit: str) -> tuple[str, ...]:
    line = next((x for x in plan.footprint.lines if x.part == part.part), None) if plan else None
    return (
        f"  {part.part}",
        number(part.planned_bytes, unit),
        number(part.measured_bytes, unit),
        gap(part.measured_bytes, part.planned_bytes, unit),
        line.basis if line else "",
    )


def _kind(device: DeviceComparison) -> str:
    if device.within_band is not False:
        return "peak"
    return "over" if (device.peak_bytes or 0) > (device.high_bytes or 0) else "under"


def _peak(device: DeviceComparison, unit: str) -> tuple[str, ...]:
    band = ""
    if device.low_bytes is not None and device.low_bytes != device.high_bytes:
        band = f"{number(device.low_bytes, unit)} .. {number(device.high_bytes, unit)} "
    return (
        "  peak",
        number(device.planned_bytes, unit),
        number(device.peak_bytes, unit),
        gap(device.peak_bytes, device.planned_bytes, unit),
        band + judgement(device),
    )


def chart_axis(detail: Detail, device: str, unit: str, end_ns: int) -> Axis:
    """Return the axis of a device's chart: from the run's start to its end, or to now."""
    row = next((d for d in detail.comparison.devices if d.name == device), None)
    ledgers = detail.plan.devices if detail.plan is not None else ()
    capacity = next((x.capacity_bytes for x in ledgers if x.name == device), None)
    start = detail.run.started_ns
    end = detail.run.ended_ns if detail.run.ended_ns is not None else end_ns
    return Axis(
        start_ns=start,
        end_ns=max(end, start + 10**9),
        plan=row.planned_bytes if row else None,
        low=row.low_bytes if row else None,
        high=row.high_bytes if row else None,
        capacity=capacity,
        unit=unit,
    )


def legend(axis: Axis) -> str:
    """Return what the chart's lines are, with their numbers."""
    words = ["measured"]
    if axis.plan is not None:
        words.append(f"- - plan {format_bytes(axis.plan, axis.unit)}")
        words.append(f". . band {number(axis.low, axis.unit)} .. {number(axis.high, axis.unit)}")
    return "   ".join(words)


def empty_text(snapshot: Snapshot) -> str | None:
    """Return what to say instead of tables: nothing to show, and what to type. None = show."""
    if snapshot.state == "missing":
        return (
            f"{snapshot.reason}\n\n"
            "Measure something:       memplan run -- COMMAND\n"
            "See the whole loop:      memplan demo\n"
            "Watch this machine:      memplan daemon start\n\n"
            "This screen fills itself as soon as there is something."
        )
    if snapshot.state == "broken":
        return f"The database cannot be read.\n\n{snapshot.reason}"
    if not snapshot.runs:
        return (
            "No run has been stored yet.\n\n"
            "Measure something:       memplan run -- COMMAND\n"
            "Against a plan:          memplan run --plan last -- COMMAND\n"
            "See the whole loop:      memplan demo"
        )
    return None


def plain_text(snapshot: Snapshot, unit: str) -> str:
    """Return all of it as text, for pipes and screen readers."""
    from memplan.report import comparison_text, table

    lines = [sampler_text(snapshot)[0], *machine_lines(snapshot.machine, unit, 100)]
    empty = empty_text(snapshot)
    if empty is not None:
        return "\n".join([*lines, "", empty, ""])
    head = [column.label for column in RUN_COLUMNS]
    head[4] = f"peak {unit}"
    rows: Sequence[Sequence[str]] = [head, *run_rows(snapshot, unit, 120)]
    lines += ["", *table(rows, "lrrlrl", ""), ""]
    text = "\n".join(lines)
    if snapshot.detail is not None:
        text += "\n" + comparison_text(
            snapshot.detail.comparison, plan=snapshot.detail.plan, unit=unit
        )
    return text
