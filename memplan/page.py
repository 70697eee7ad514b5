"""One run as one HTML page: plan against measurement, charts as inline SVG, no outside links.

Pure function: values in, text out. Every text from outside is escaped; the page has no script and
forbids itself to load anything.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from html import escape

from memplan.chart_scale import Points, downsample, ticks
from memplan.explain import gap_sentence, phase_rows
from memplan.types import Comparison, DeviceComparison, Line, Phase, Plan
from memplan.units import UNITS, format_bytes, format_count

__all__ = ["html_page"]

_CURVE = 1200
"""Points of one curve on the page."""

_WIDE, _HIGH = 960, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 120, 14, 28

_STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --dim: #5f5f5f; --rule: #d8d8d8;
  --back: #fff; --card: #f6f6f6; --blue: #0072b2; --orange: #8a5a00; --good: #00694d;
  --bad: #a83a00; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e6e6; --dim: #9a9a9a; --rule: #3a3a3a;
  --back: #121212; --card: #1b1b1b; --blue: #56b4e9; --orange: #e69f00; --good: #2fbf8f;
  --bad: #ff7043; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p { margin: .25rem 0; } .dim { color: var(--dim); } code { font-size: .9em; }
.verdict { font-size: 1.1rem; font-weight: 600; padding: .75rem 1rem; background: var(--card);
  border-left: 4px solid var(--dim); margin: 1rem 0; }
.within { border-color: var(--good); } .over, .under { border-color: var(--bad); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; color: var(--dim); } th:first-child, td:first-child { text-align: left; }
td.left, th.left { text-align: left; } tr.total td { font-weight: 600; }
.bar { height: .7rem; background: var(--orange); display: inline-block; min-width: 1px; }
.bar.got { background: var(--blue); } .bars { width: 34%; line-height: .9rem; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--dim); font-size: 12px; }
.measured { stroke: var(--blue); fill: none; stroke-width: 1.6; }
.plan { stroke: var(--orange); stroke-dasharray: 8 5; stroke-width: 1.6; }
.band { fill: var(--orange); opacity: .12; } .grid { stroke: var(--rule); }
.capacity { stroke: var(--dim); stroke-width: 1; } .label-plan { fill: var(--orange) !important; }
.label-measured { fill: var(--blue) !important; }
"""


def html_page(
    comparison: Comparison,
    *,
    plan: Plan | None,
    phases: Sequence[Phase],
    curves: Mapping[str, Points],
    unit: str = "GiB",
) -> str:
    """Return the page.

    Args:
        comparison: the run held against its plan.
        plan: the plan, if there is one.
        phases: what the program reported.
        curves: device name -> samples.
        unit: "GiB", "MiB" or "GB".
    """
    run = comparison.run
    title = f"memplan: run {run.id}"
    body = [
        f"<h1>Run {escape(run.id)}</h1>",
        f"<p><code>{escape(shlex.join(run.command))}</code></p>",
        f'<p class="dim">{escape(_facts(comparison))}</p>',
        *([f'<p class="dim">{escape(_plan_facts(plan))}</p>'] if plan is not None else []),
        _verdict(comparison, unit),
    ]
    for row in comparison.devices:
        body += [_device(row, plan, unit), _chart(row, plan, curves.get(row.name, ()), unit)]
    end = run.ended_ns or max((c[-1][0] for c in curves.values() if c), default=run.started_ns)
    body.append(_phases(plan, phases, curves, end, unit))
    body += [_notes(comparison), _foot(comparison, plan)]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


def _facts(comparison: Comparison) -> str:
    run = comparison.run
    started = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(run.started_ns / 1e9))
    facts = [f"on {run.host}", f"started {started}"]
    if run.ended_ns is not None:
        facts.append(f"{(run.ended_ns - run.started_ns) / 1e9:.1f} s")
    status = run.status if run.exit_code in (None, 0) else f"{run.status}, exit {run.exit_code}"
    versions = ", ".join(f"{name} {number}" for name, number in run.versions.items())
    return " · ".join(fact for fact in (*facts, status, versions) if fact)


def _plan_facts(plan: Plan) -> str:
    work = plan.workload
    tokens = f"context {work.context}" if work.task == "infer" else f"sequence {work.seq}"
    form = work.dtype if work.quant == "none" else work.quant
    facts = (
        f"plan {plan.id or '(not saved)'}: {plan.model.name}",
        f"{format_count(plan.model.parameters)} parameters",
        f"{work.task} on {work.runtime}",
        form,
        tokens,
        f"batch {work.batch}",
    )
    return " · ".join(facts)


def _verdict(comparison: Comparison, unit: str) -> str:
    words = {"within": "Within plan", "over": "Over plan", "under": "Under plan", None: ""}
    word = words[comparison.verdict] or "Not compared"
    why = gap_sentence(comparison, unit) or "nothing was both planned and measured."
    kind = comparison.verdict or "none"
    return f'<p class="verdict {kind}">{word}: {escape(why)}</p>'


def _cell(value: int | None, unit: str) -> str:
    if value is None:
        return '<td class="dim">N/A</td>'
    return f"<td>{value / UNITS[unit]:.{1 if unit == 'MiB' else 3}f}</td>"


def _gap(measured: int | None, planned: int | None, unit: str) -> str:
    if measured is None or planned is None:
        return "<td></td>"
    digits = 1 if unit == "MiB" else 3
    text = "=" if measured == planned else f"{(measured - planned) / UNITS[unit]:+.{digits}f}"
    return f"<td>{text}</td>"


def _device(row: DeviceComparison, plan: Plan | None, unit: str) -> str:
    lines: dict[str, Line] = {x.part: x for x in plan.footprint.lines} if plan else {}
    sizes = [max(p.planned_bytes or 0, p.measured_bytes or 0) for p in row.parts]
    largest = max([1, *sizes])
    rows = []
    for part in row.parts:
        known = lines.get(part.part)
        basis = f"{known.basis}: {known.source}" if known else ""
        bars = "<br>".join(
            f'<span class="bar{kind}" style="width:{100 * size / largest:.1f}%"></span>'
            for size, kind in ((part.planned_bytes, ""), (part.measured_bytes, " got"))
            if size is not None
        )
        rows.append(
            f"<tr><td>{escape(part.part)}</td>{_cell(part.planned_bytes, unit)}"
            f"{_cell(part.measured_bytes, unit)}"
            f"{_gap(part.measured_bytes, part.planned_bytes, unit)}"
            f'<td class="left bars">{bars}</td><td class="left dim">{escape(basis)}</td></tr>'
        )
    if row.unaccounted_bytes is not None:
        rows.append(
            f"<tr><td>unaccounted</td><td></td>{_cell(row.unaccounted_bytes, unit)}"
            '<td></td><td></td><td class="left dim">what no part explains</td></tr>'
        )
    band = ""
    if row.low_bytes is not None and row.low_bytes != row.high_bytes:
        band = f"band {format_bytes(row.low_bytes, unit)} .. {format_bytes(row.high_bytes, unit)}"
    rows.append(
        f'<tr class="total"><td>peak</td>{_cell(row.planned_bytes, unit)}'
        f"{_cell(row.peak_bytes, unit)}{_gap(row.peak_bytes, row.planned_bytes, unit)}"
        f'<td></td><td class="left">{escape(band)}</td></tr>'
    )
    by = f' <span class="dim">{escape(row.measured_by)}</span>' if row.measured_by else ""
    return (
        f"<h2>{escape(row.name)}{by}</h2>\n<table><tr><th>part</th><th>planned {unit}</th>"
        f'<th>measured {unit}</th><th>gap</th><th class="left">planned above, measured below</th>'
        f'<th class="left">known by</th></tr>\n' + "\n".join(rows) + "\n</table>"
    )


def _chart(row: DeviceComparison, plan: Plan | None, points: Points, unit: str) -> str:
    """Return the curve of one device with its plan, band and capacity as SVG."""
    if len(points) < 2:
        return ""
    points = downsample(points, _CURVE)
    ledger = next((x for x in plan.devices if x.name == row.name), None) if plan else None
    start, end = points[0][0], max(points[-1][0], points[0][0] + 1)
    known = [v for v in (row.planned_bytes, row.high_bytes) if v is not None]
    top = max([*known, *(value for _, value in points), 1])
    capacity = ledger.capacity_bytes if ledger is not None else None
    if capacity is not None and capacity <= 1.6 * top:
        top = max(top, capacity)
    top = top * 105 // 100 + 1

    def x(t: int) -> float:
        return _LEFT + (_WIDE - _LEFT - _RIGHT) * (t - start) / (end - start)

    def y(value: float) -> float:
        return _TOP + (_HIGH - _TOP - _BOTTOM) * (1 - value / top)

    right = _WIDE - _RIGHT
    shapes = [
        f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        f'<text x="{_LEFT - 8}" y="{y(v) + 4:.1f}" text-anchor="end">{label}</text>'
        for v, label in ((0.0, "0"), *ticks(top, 12, unit))
    ]
    shapes += _levels(row, capacity, top, y, right)
    path = " ".join(f"{x(t):.1f},{y(v):.1f}" for t, v in points)
    shapes.append(f'<polyline class="measured" points="{path}"/>')
    last = y(points[-1][1]) + 4
    shapes.append(f'<text class="label-measured" x="{right + 8}" y="{last:.1f}">measured</text>')
    floor = _HIGH - 8
    shapes.append(f'<text x="{_LEFT}" y="{floor}">0 s</text>')
    seconds = (end - start) / 1e9
    shapes.append(f'<text x="{right}" y="{floor}" text-anchor="end">{seconds:.1f} s</text>')
    name = escape(f"Memory of {row.name} over time in {unit}")
    return (
        f'<svg viewBox="0 0 {_WIDE} {_HIGH}" role="img" aria-label="{name}">'
        + "".join(shapes)
        + "</svg>"
    )


def _levels(
    row: DeviceComparison,
    capacity: int | None,
    top: int,
    y: Callable[[float], float],
    right: int,
) -> list[str]:
    shapes = []
    if row.low_bytes is not None and row.high_bytes is not None:
        high, low = y(min(row.high_bytes, top)), y(row.low_bytes)
        wide = right - _LEFT
        shapes.append(
            f'<rect class="band" x="{_LEFT}" y="{high:.1f}" width="{wide}" '
            f'height="{max(low - high, 0):.1f}"/>'
        )
    for value, kind in ((row.planned_bytes, "plan"), (capacity, "capacity")):
        if value is None or value > top:
            continue
        at = y(value)
        shapes.append(
            f'<line class="{kind}" x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="label-{kind}" x="{right + 8}" y="{at + 4:.1f}">{kind}</text>'
        )
        if kind == "capacity":
            above = at - 3
            shapes.append(
                f'<line class="{kind}" x1="{_LEFT}" x2="{right}" y1="{above:.1f}" '
                f'y2="{above:.1f}"/>'
            )
    return shapes


def _phases(
    plan: Plan | None, phases: Sequence[Phase], curves: Mapping[str, Points], end: int, unit: str
) -> str:
    found = phase_rows(plan, phases, curves, end)
    if not found:
        return ""
    rows = [
        f"<tr><td>{escape(row.name)}</td>{_cell(row.planned_bytes, unit)}"
        f"{_cell(row.peak_bytes, unit)}{_gap(row.peak_bytes, row.planned_bytes, unit)}"
        f'<td class="left">{escape(row.device)}</td><td>{row.count}</td>'
        f"<td>{'' if row.seconds is None else f'{row.seconds:.1f} s'}</td></tr>"
        for row in found
    ]
    return (
        '<h2>By phase <span class="dim">what the plan has alive in it</span></h2>\n'
        f"<table><tr><th>phase</th><th>planned {unit}</th><th>measured {unit}</th><th>gap</th>"
        '<th class="left">device</th><th>times</th><th>lasted</th></tr>\n'
        + "\n".join(rows)
        + "\n</table>"
    )


def _notes(comparison: Comparison) -> str:
    if not comparison.notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in comparison.notes)
    return f'<h2>Notes</h2>\n<ul class="dim">{items}</ul>'


def _foot(comparison: Comparison, plan: Plan | None) -> str:
    made = f" of plan {plan.id}" if plan is not None and plan.id else ""
    text = f"Report of run {comparison.run.id}{made} by memplan. 1 GiB = 1024^3 bytes."
    return f'<p class="dim" style="margin-top:2rem">{escape(text)}</p>'
