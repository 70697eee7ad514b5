"""Charts of devices, one above the other, over one time axis with one right edge."""

from __future__ import annotations

from dataclasses import dataclass

from memplan_tui.lines import Line, heading
from memplan_tui.messages import Points, Snapshot
from memplan_tui.text import tr
from memplan_tui.tracks import Window
from memplan_tui.views.words import Look, clock, size, words

from memplan.chart import Axis, Chart, Glyphs, Row, columns

__all__ = ["Curve", "axis_ends", "charts", "curves"]

LEAST = 5
"""Rows of one chart with its head; below, fewer charts are drawn."""

KEPT_CHARTS = 24
"""Drawn charts that are kept for the next tick."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Curve:
    """One device's curve, and what it is held against."""

    device: str
    """Its name."""
    points: Points
    """What was measured."""
    plan: int | None = None
    """Planned peak."""
    low: int | None = None
    """Lower end of the band."""
    high: int | None = None
    """Upper end of the band."""
    capacity: int | None = None
    """All of its memory."""
    now: int | None = None
    """As sampled last."""


def curves(snapshot: Snapshot) -> list[Curve]:
    """Return what can be drawn: the selected run's devices, else the machine's."""
    detail, machine = snapshot.detail, snapshot.machine
    whole: dict[str, int | None] = {"cpu": machine.total_bytes}
    whole |= {gpu.name: gpu.total_bytes for gpu in machine.gpus}
    if detail is None:
        now = {gpu.name: gpu.used_bytes for gpu in machine.gpus}
        return [
            Curve(device=name, points=points, capacity=whole.get(name), now=now.get(name))
            for name, points in machine.history.items()
        ]
    ledgers = {x.name: x for x in detail.plan.devices} if detail.plan is not None else {}
    rows = {row.name: row for row in detail.comparison.devices}
    return [
        Curve(
            device=name,
            points=points,
            plan=rows[name].planned_bytes if name in rows else None,
            low=rows[name].low_bytes if name in rows else None,
            high=rows[name].high_bytes if name in rows else None,
            capacity=ledgers[name].capacity_bytes if name in ledgers else whole.get(name),
            now=detail.now.get(name),
        )
        for name, points in detail.history.items()
    ]


def axis_ends(snapshot: Snapshot, window_ns: int | None, columns: int) -> tuple[int, int]:
    """Return the times at the edges: the same for every device.

    While time goes on the right edge moves in fiftieths of the whole: what is drawn then stays
    where it is for a while, and only its end is painted again. A window that is full moves by
    whole cells, so that its charts are moved rather than drawn anew.
    """
    detail = snapshot.detail
    end = snapshot.now_ns
    if detail is not None and detail.run.ended_ns is not None:
        end = min(end, detail.run.ended_ns)
    begins = [points[0][0] for points in snapshot.machine.history.values() if points]
    start = detail.run.started_ns if detail is not None else min(begins, default=end)
    whole = min(end - start, window_ns) if window_ns is not None else end - start
    if detail is not None and detail.run.ended_ns is not None:
        return min(end - whole, end - 10**9), end
    step = max(whole // 50, 10**9)
    if whole == window_ns and columns:
        column = -(-whole // columns)
        step, whole = 4 * column * -(-step // (4 * column)), column * columns
        end = -(-end // step) * step
        return end - whole, end
    end = -(-end // step) * step
    return min(start, end - 10**9), end


def charts(snapshot: Snapshot, look: Look, width: int, height: int) -> list[Line]:
    """Return as many charts as there is room for, the chosen device first."""
    found = curves(snapshot)
    if not found:
        note = tr("nothing was sampled in this window")
        return [heading(tr("memory over time"), width), [(note, "dim")]][: max(height, 0)]
    first = look.device % len(found)
    found = found[first:] + found[:first]
    count = min(max((height - 1) // LEAST, 1), len(found))
    start, end = axis_ends(snapshot, look.window_ns, columns(width, look.style, words()))
    lines: list[Line] = []
    for i, curve in enumerate(found[:count]):
        rows = (height - 1 - len(lines)) // (count - i)
        last = i == count - 1
        lines.append(_head(curve, look, width, hidden=len(found) - count if not i else 0))
        lines += _body(curve, look, (start, end), width, rows - 1 + last, floor=last)
    return lines[:height]


def _head(curve: Curve, look: Look, width: int, *, hidden: int) -> Line:
    facts = []
    if curve.plan is not None:
        facts.append(tr("plan {size}").format(size=size(curve.plan, look.unit)))
    if curve.capacity is not None:
        facts.append(tr("capacity {size}").format(size=size(curve.capacity, look.unit)))
    if hidden:
        facts.append(tr("+{n} more: d").format(n=hidden))
    return heading(curve.device, width, " · ".join(facts))


def _body(
    curve: Curve, look: Look, ends: tuple[int, int], width: int, rows: int, *, floor: bool
) -> list[Line]:
    start, end = ends
    axis = Axis(
        start_ns=start,
        end_ns=end,
        plan=curve.plan,
        low=curve.low,
        high=curve.high,
        capacity=curve.capacity,
        unit=look.unit,
        gap_ns=max(5 * 10**9, (end - start) // 60),
        left=clock(start),
        right=clock(end),
        words=words(),
    )
    drawn = _drawn(curve, axis, width, rows, look.style, floor=floor)
    return [list(row) for row in drawn]


_DRAWN: dict[tuple[object, ...], tuple[Points, Chart]] = {}
"""Charts that stand on the screen, with the points in them: a tick adds a few to each."""


def _drawn(
    curve: Curve, axis: Axis, width: int, rows: int, style: Glyphs, *, floor: bool
) -> list[Row]:
    """Return a chart's rows; where its curve only went on, only the new points are drawn."""
    levels = (axis.plan, axis.low, axis.high, axis.capacity)
    key = (curve.device, *levels, axis.unit, axis.words, width, rows, style.name, floor)
    points, known = curve.points, _DRAWN.pop(key, None)
    more = None
    if known is not None and isinstance(points, Window) and isinstance(known[0], Window):
        more = points.after(known[0])
    if known is None or more is None or not known[1].move(axis):
        chart = Chart(axis, width=width, height=rows, style=style, floor=floor)
        chart.add(points)
    else:
        chart = known[1]
        chart.add(more)
    _DRAWN[key] = points, chart
    while len(_DRAWN) > KEPT_CHARTS:
        del _DRAWN[next(iter(_DRAWN))]
    return chart.rows()
