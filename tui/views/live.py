"""Live: every device with plan, now, peak, gap and state; charts on one time axis; processes."""

from __future__ import annotations

from collections.abc import Sequence

from memplan_tui.lines import Cell, Column, Line, beside, cut, heading, table
from memplan_tui.messages import Detail, Process, Snapshot
from memplan_tui.text import tr
from memplan_tui.views.charts import charts
from memplan_tui.views.parts import measured_parts
from memplan_tui.views.words import (
    Look,
    clock,
    command_line,
    gap,
    judged,
    lasting,
    number,
    run_state,
    size,
)

from memplan.types import DeviceComparison

__all__ = ["device_table", "live"]

WIDE = 150
"""From this width on tables stand beside the charts."""

LEFT = 86
"""Width of the tables there."""

_FULL = 0.95
"""Share of a device's memory from which it is nearly full."""


def live(snapshot: Snapshot, look: Look, width: int, height: int) -> list[Line]:
    """Return the screen's body."""
    if height < 13 or width < 60:
        return _small(snapshot, look, width, height)
    if width >= WIDE:
        return _wide(snapshot, look, width, height)
    lines = device_table(snapshot, look, width, most=max(height - 10, 3))
    lines += [[("", "")]]
    processes = _processes(snapshot.detail, look, width, most=3)
    room = height - len(lines) - len(processes) - bool(processes)
    if room < 8:
        processes, room = [], height - len(lines)
    lines += charts(snapshot, look, width, room)
    return [*lines, *([[("", "")], *processes] if processes else [])]


def _small(snapshot: Snapshot, look: Look, width: int, height: int) -> list[Line]:
    """Return one line for each device, and what a larger window would show."""
    lines = device_table(snapshot, look, width, most=height - 2)
    note = tr("make the window larger for the chart")
    return [*lines[: height - 1], [(cut(note, width), "dim")]]


def _wide(snapshot: Snapshot, look: Look, width: int, height: int) -> list[Line]:
    left: list[Line] = [heading(tr("devices"), LEFT, look.unit)]
    left += device_table(snapshot, look, LEFT, most=height // 3)
    left += _facts(snapshot.detail, LEFT)
    processes = _processes(snapshot.detail, look, LEFT, most=8)
    left += [[("", "")], *processes] if processes else []
    left += _phases(snapshot.detail, look, LEFT, most=max(height - len(left) - 3, 0))
    room = width - LEFT - 3
    parts = measured_parts(snapshot.detail, look, room)
    most = height - (len(parts) + 1 if parts else 0)
    right = charts(snapshot, look, room, most)
    right += [[("", "")], *parts] if parts else []
    return beside(left[:height], LEFT, right)


def device_table(snapshot: Snapshot, look: Look, width: int, *, most: int) -> list[Line]:
    """Return one row per device; columns without room are left out whole."""
    planned = snapshot.detail is not None and snapshot.detail.plan is not None
    columns = [
        Column(label=tr("device"), width=7, right=False),
        Column(label=tr("plan"), width=8, drop=1 if planned else 9),
        Column(label=tr("now"), width=8, drop=2),
        Column(label=tr("peak"), width=8),
        Column(label=tr("gap"), width=8, drop=4 if planned else 9),
        Column(label=tr("used by all"), width=13, drop=3),
        Column(label=tr("state"), width=11, right=False),
    ]
    rows = _rows(snapshot, look.unit)
    if not planned:
        columns = [column for column in columns if column.drop != 9]
        rows = [[*row[:1], *row[2:4], *row[5:]] for row in rows]
    if len(rows) > most:
        hidden = len(rows) - most + 1
        rows = rows[: most - 1]
        note: Line = [(tr("+{n} more devices: a taller window shows them").format(n=hidden), "dim")]
        return [*table(columns, rows, width), note]
    return table(columns, rows, width)


def _rows(snapshot: Snapshot, unit: str) -> list[list[Cell]]:
    detail, used = snapshot.detail, _used_by_all(snapshot, unit)
    rows = list(detail.comparison.devices) if detail is not None else []
    found = [_run_row(snapshot, row, used, unit) for row in rows]
    names = {row.name for row in rows}
    found += [_machine_row(snapshot, name, used, unit) for name in used if name not in names]
    return found


def _run_row(
    snapshot: Snapshot, row: DeviceComparison, used: dict[str, str], unit: str
) -> list[Cell]:
    detail = snapshot.detail
    assert detail is not None
    state = judged(row, running=detail.run.status == "running")
    if row.peak_bytes is None and row.name in used and row.name != "cpu":
        state = (tr("N/A per process"), "dim")
    return [
        row.name,
        (number(row.planned_bytes, unit), "plan"),
        (number(detail.now.get(row.name), unit), "measured"),
        (number(row.peak_bytes, unit), "measured"),
        (gap(row.peak_bytes, row.planned_bytes, unit), state[1]),
        used.get(row.name, tr("N/A")),
        state,
    ]


def _machine_row(snapshot: Snapshot, name: str, used: dict[str, str], unit: str) -> list[Cell]:
    """Return a device that the selected run does not touch, or the machine's own."""
    machine = snapshot.machine
    now, total = _machine_now(snapshot, name)
    state: Cell = (tr("N/A"), "dim")
    if now is not None and total:
        share = now / total
        state = (tr("NEARLY FULL"), "bad") if share >= _FULL else (f"{share:.0%}", "")
    blank = snapshot.detail is not None
    return [
        name,
        "",
        "" if blank else (number(now, unit), "measured"),
        "" if blank else (number(machine.peaks.get(name), unit), "measured"),
        "",
        used[name],
        (tr("not in this run"), "dim") if blank else state,
    ]


def _machine_now(snapshot: Snapshot, name: str) -> tuple[int | None, int | None]:
    machine = snapshot.machine
    if name == "cpu":
        if machine.total_bytes is None or machine.available_bytes is None:
            return None, machine.total_bytes
        return machine.total_bytes - machine.available_bytes, machine.total_bytes
    gpu = next(gpu for gpu in machine.gpus if gpu.name == name)
    return gpu.used_bytes, gpu.total_bytes


def _used_by_all(snapshot: Snapshot, unit: str) -> dict[str, str]:
    """Return "used of total" of each device that the sampler knows."""
    names = [gpu.name for gpu in snapshot.machine.gpus]
    if snapshot.machine.total_bytes is not None:
        names.append("cpu")
    found = {}
    for name in names:
        now, total = _machine_now(snapshot, name)
        found[name] = f"{number(now, unit)}/{number(total, unit)}"
    return found


def _facts(detail: Detail | None, width: int) -> list[Line]:
    if detail is None:
        return []
    run = detail.run
    end = max((points[-1][0] for points in detail.history.values()), default=run.started_ns)
    facts = [
        (tr("command"), cut(command_line(run), width - 12)),
        (tr("started"), clock(run.started_ns, day=True)),
        (tr("lasted"), lasting(run.started_ns, run.ended_ns or end)),
        (tr("host"), run.host),
        (tr("status"), run_state(detail)),
    ]
    if detail.plan is not None:
        facts.append((tr("plan"), detail.plan.id or tr("not saved")))
    title = heading(tr("run {id}").format(id=run.id), width)
    return [[("", "")], title, *([(f"{k:<10}  ", "dim"), (v, "")] for k, v in facts)]


def _processes(detail: Detail | None, look: Look, width: int, *, most: int) -> list[Line]:
    if detail is None or not detail.processes:
        return []
    columns = [
        Column(label=tr("process"), width=8, right=False),
        Column(label=tr("now"), width=8),
        Column(label=tr("peak"), width=8),
        Column(label=tr("phase"), width=16, right=False),
        Column(label="", width=20, right=False, drop=1),
    ]
    largest = max(process.peak_bytes for process in detail.processes)
    rows: list[Sequence[Cell]] = [
        [
            str(process.pid),
            (number(process.rss_bytes, look.unit), "measured"),
            (number(process.peak_bytes, look.unit), "measured"),
            _doing(process),
            ("█" * round(20 * process.rss_bytes / max(largest, 1)), "measured"),
        ]
        for process in detail.processes[:most]
    ]
    hidden = len(detail.processes) - most
    note = tr("{n} smaller ones").format(n=hidden) if hidden > 0 else look.unit
    return [heading(tr("processes, resident memory"), width, note), *table(columns, rows, width)]


def _doing(process: Process) -> Cell:
    if process.phase is None:
        return tr("says nothing"), "dim"
    return process.phase if process.in_phase else tr("after {phase}").format(phase=process.phase)


def _phases(detail: Detail | None, look: Look, width: int, *, most: int) -> list[Line]:
    if detail is None or not detail.phases or most < 1:
        return []
    columns = [
        Column(label=tr("phase"), width=16, right=False),
        Column(label=tr("from"), width=8),
        Column(label=tr("lasted"), width=8),
        Column(label=tr("resident at its end"), width=10),
    ]
    rows: list[Sequence[Cell]] = [
        [
            phase.name,
            clock(phase.started_ns),
            tr("goes on") if phase.ended_ns is None else lasting(phase.started_ns, phase.ended_ns),
            (size(phase.counters.get("process.rss"), look.unit), "measured"),
        ]
        for phase in detail.phases[-most:]
    ]
    return [[("", "")], heading(tr("phases"), width), *table(columns, rows, width)]
