"""Runs: the history, filtered and sorted, and two runs side by side. Fleet: by machine."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import Any

from memplan_tui.lines import Cell, Column, Line, cut, heading, table
from memplan_tui.messages import Detail, Snapshot
from memplan_tui.text import tr
from memplan_tui.views.words import (
    Look,
    ago,
    band,
    clock,
    command_line,
    gap,
    judged,
    lasting,
    number,
    run_state,
    short_day,
)

from memplan.types import Run

__all__ = ["SORTS", "fleet_screen", "ordered", "runs_screen", "side_by_side"]

_DATED = 120
"""From this width on the year is told."""

SORTS = ("started", "length", "status", "peak", "command")
"""What the history can be sorted by."""


def ordered(snapshot: Snapshot, *, words: str, sort: str, reverse: bool) -> list[Run]:
    """Return the runs that hold all words of a filter, sorted.

    Args:
        snapshot: its runs.
        words: looked for in id, command, host, plan and status, whatever the case.
        sort: one of SORTS; the newest, longest and highest come first.
        reverse: the other way round.
    """
    wanted = words.lower().split()
    found = [run for run in snapshot.runs if all(word in _haystack(run) for word in wanted)]
    keys: dict[str, Callable[[Run], Any]] = {
        "started": lambda run: -run.started_ns,
        "length": lambda run: -((run.ended_ns or snapshot.now_ns) - run.started_ns),
        "status": lambda run: run.status,
        "peak": lambda run: -snapshot.peaks.get(run.id, -1),
        "command": lambda run: run.command,
    }
    return sorted(found, key=keys[sort], reverse=reverse)


def _haystack(run: Run) -> str:
    facts = (run.id, shlex.join(run.command), run.host, run.plan_id or "", run.status)
    return " ".join(facts).lower()


def sort_name(sort: str) -> str:
    """Return what a sorting is called."""
    names = {
        "started": tr("started"),
        "length": tr("lasted"),
        "status": tr("status"),
        "peak": tr("peak"),
        "command": tr("command"),
    }
    return names[sort]


def runs_screen(
    snapshot: Snapshot,
    shown: Sequence[Run],
    look: Look,
    width: int,
    height: int,
    *,
    cursor: int,
    marked: Sequence[str],
    sort: str,
    words: str,
) -> list[Line]:
    """Return the screen's body: the list around the cursor, and marked runs below it."""
    below = side_by_side(snapshot.beside, look, width) if len(marked) == 2 else []
    room = max(height - len(below) - bool(below), 4)
    note = tr("by {sort}").format(sort=sort_name(sort))
    if words:
        note = tr('holding "{words}", {note}').format(words=words, note=note)
    title = tr("{n} of {all} runs").format(n=len(shown), all=len(snapshot.runs))
    first = max(0, min(cursor - (room - 3) // 2, len(shown) - (room - 2)))
    page = shown[first : first + room - 2]
    day = width >= _DATED
    rows = [_row(run, snapshot, look, run.id in marked, day=day) for run in page]
    lines = [heading(title, width, note)]
    lines += table(_columns(look), rows, width, cursor=cursor - first)
    if not shown:
        lines.append([(tr("No run holds these words. / changes them."), "dim")])
    return [*lines, *([[("", "")], *below] if below else [])][:height]


def _columns(look: Look) -> list[Column]:
    return [
        Column(label="", width=1, right=False),
        Column(label=tr("run"), width=8, right=False),
        Column(label=tr("started"), width=11, right=False, drop=2),
        Column(label=tr("lasted"), width=7),
        Column(label=tr("status"), width=8, right=False),
        Column(label=tr("peak") + f" {look.unit}", width=8),
        Column(label=tr("plan"), width=8, right=False, drop=3),
        Column(label=tr("host"), width=8, right=False, drop=4),
        Column(label=tr("command"), width=18, right=False, free=True),
    ]


def _row(
    run: Run,
    snapshot: Snapshot,
    look: Look,
    is_marked: bool,  # noqa: FBT001
    *,
    day: bool,
) -> list[Cell]:
    states = {
        "running": (tr("running"), "good"),
        "finished": (tr("finished"), ""),
        "failed": (tr("exit {code}").format(code=run.exit_code), "bad"),
        "lost": (tr("lost"), "bad"),
    }
    return [
        ("▸" if is_marked else "", "bold"),
        run.id,
        (clock(run.started_ns, day=True) if day else short_day(run.started_ns), "dim"),
        lasting(run.started_ns, run.ended_ns or snapshot.now_ns),
        states[run.status],
        (number(snapshot.peaks.get(run.id), look.unit), "measured"),
        (run.plan_id or tr("no plan"), "dim"),
        (run.host, "dim"),
        command_line(run),
    ]


def side_by_side(details: Sequence[Detail], look: Look, width: int) -> list[Line]:
    """Return two runs beside each other: what differs stands out."""
    if len(details) != 2:
        return []
    facts = [_facts(detail, look.unit) for detail in details]
    names = list(dict.fromkeys(name for fact in facts for name in fact))
    room = max((width - 16 - 4 - 10) // 2, 12)
    columns = [
        Column(label="", width=14, right=False),
        *(Column(label=detail.run.id, width=room, right=False) for detail in details),
        Column(label=tr("difference"), width=10, drop=1),
    ]
    rows: list[Sequence[Cell]] = []
    for name in names:
        left, right = (fact.get(name, ("", None)) for fact in facts)
        role = "bold" if left[0] != right[0] else ""
        difference = gap(right[1], left[1], look.unit)
        cells = [(cut(words, room), role) for words, _ in (left, right)]
        rows.append([(name, "dim"), *cells, "" if difference == "=" else difference])
    return [heading(tr("side by side"), width, look.unit), *table(columns, rows, width)]


def _facts(detail: Detail, unit: str) -> dict[str, tuple[str, int | None]]:
    run, plan = detail.run, detail.plan
    facts: dict[str, tuple[str, int | None]] = {
        tr("command"): (command_line(run), None),
        tr("status"): (run_state(detail), None),
        tr("lasted"): (lasting(run.started_ns, run.ended_ns or run.started_ns), None),
        tr("plan"): (f"{plan.model.name} {plan.id or ''}" if plan else tr("no plan"), None),
    }
    for row in detail.comparison.devices:
        peak = tr("peak {device}").format(device=row.name)
        facts[peak] = (f"{number(row.peak_bytes, unit)}  {judged(row)[0]}", row.peak_bytes)
        planned = tr("plan {device}").format(device=row.name)
        text = f"{number(row.planned_bytes, unit)}  {band(row.low_bytes, row.high_bytes, unit)}"
        facts[planned] = (text.rstrip(), row.planned_bytes)
    return facts


def fleet_screen(snapshot: Snapshot, look: Look, width: int, *, cursor: int) -> list[Line]:
    """Return one row per machine that the database knows."""
    columns = [
        Column(label=tr("host"), width=16, right=False),
        Column(label=tr("runs"), width=5),
        Column(label=tr("running"), width=7),
        Column(label=tr("failed or lost"), width=6, drop=1),
        Column(label=tr("peak") + f" {look.unit}", width=9),
        Column(label=tr("last run"), width=12, right=False),
    ]
    rows: list[Sequence[Cell]] = [
        [
            host.name,
            str(host.runs),
            (str(host.running), "good" if host.running else "dim"),
            (str(host.over), "bad" if host.over else "dim"),
            (number(host.peak_bytes, look.unit), "measured"),
            ago(snapshot.now_ns - host.last_ns),
        ]
        for host in snapshot.hosts
    ]
    note = tr("the newest {n} runs").format(n=len(snapshot.runs))
    lines = [heading(tr("machines: {n}").format(n=len(rows)), width, note)]
    lines += table(columns, rows, width, cursor=cursor)
    if len(rows) == 1:
        lines += [
            [("", "")],
            [(tr("One machine so far. A PostgreSQL database gathers several:"), "dim")],
            [("MEMPLAN_DATABASE=postgresql://...", "bold")],
        ]
    return lines
