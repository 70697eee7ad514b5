"""Plans, runs and comparisons as text for people: plain ASCII tables, every size with its unit.

Pure functions: value in, text out. Colour and paging belong to the command line.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable, Sequence

from memplan.explain import gap_sentence
from memplan.types import (
    Beside,
    Comparison,
    DeviceComparison,
    Ledger,
    Line,
    PartComparison,
    Peak,
    Phase,
    Plan,
    Range,
    Run,
)
from memplan.units import UNITS, format_bytes, format_count

__all__ = ["comparison_text", "plan_text", "proof_text", "run_text", "summary_text", "table"]

_SINGLE = ("gpus", "nodes", "tp", "pp", "dp", "ep", "cp")
"""Defaults that mean "one": listed in the JSON only."""

_BAR = 20
"""Characters of a full bar."""


def table(rows: Sequence[Sequence[str]], align: str, indent: str = "  ") -> list[str]:
    """Return rows as lines with aligned columns.

    Args:
        rows: cells; all rows have the same length.
        align: one letter per column, "l" or "r".
        indent: written before each line.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(align))]
    lines = []
    for row in rows:
        cells = (
            cell.rjust(width) if how == "r" else cell.ljust(width)
            for cell, width, how in zip(row, widths, align, strict=True)
        )
        lines.append((indent + "  ".join(cells)).rstrip())
    return lines


def _number(value: int | None, unit: str) -> str:
    return "n/a" if value is None else f"{value / UNITS[unit]:.{_digits(unit)}f}"


def _digits(unit: str) -> int:
    return 1 if unit == "MiB" else 3 if unit in ("GiB", "GB") else 0


def _band(low: int | None, high: int | None, unit: str) -> str:
    if low is None or high is None or low == high:
        return ""
    return f"{_number(low, unit)} .. {_number(high, unit)}"


def plan_text(plan: Plan, *, unit: str = "GiB", bars: bool = True) -> str:
    """Return a plan: what was assumed, the parts, where they go, the verdict, what to type next.

    Args:
        plan: the plan.
        unit: "GiB", "MiB" or "GB".
        bars: draw each part's share as a bar; without, as percent.
    """
    sections = [
        _head(plan),
        _parts(plan, unit, bars=bars),
        _ledgers(plan.devices, unit),
        _streaming(plan, unit),
        _verdict(plan, unit),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _head(plan: Plan) -> list[str]:
    model, work = plan.model, plan.workload
    size = f"{format_count(model.parameters)} parameters"
    if model.active_parameters:
        size += f" ({format_count(model.active_parameters)} active)"
    first = f"{model.name} · {model.architecture or 'unknown architecture'} · {size}"
    return [first, " · ".join(_settings(plan)), *_assumed(work.assumed)]


def _settings(plan: Plan) -> Iterable[str]:
    work = plan.workload
    yield f"{work.task} on {work.runtime}"
    yield work.dtype if work.quant == "none" else work.quant
    yield f"{work.attention} attention"
    if work.task == "infer":
        yield f"context {work.context}"
        if work.images:
            yield f"{work.images} image(s) of {work.image_size}"
        if work.kv_dtype != work.dtype:
            yield f"{work.kv_dtype} cache"
        if work.cache not in (None, "dynamic"):
            yield f"{work.cache} cache"
    else:
        yield f"{work.method}, {work.optimizer}, {work.precision}"
        yield f"sequence {work.seq}"
        yield f"checkpointing {work.checkpointing}"
    yield f"batch {work.batch}"


def _assumed(names: Sequence[str]) -> list[str]:
    """Return the line that names the defaults; long lists are wrapped."""
    shown = [name for name in names if name not in _SINGLE]
    text = "assumed, as nobody set them: " + ", ".join(shown)
    return textwrap.wrap(text, 96, subsequent_indent="  ") if shown else []


def _parts(plan: Plan, unit: str, *, bars: bool) -> list[str]:
    footprint = plan.footprint
    rows = [["part", unit, f"band, {unit}", "share", "basis", "from"]]
    total = max(footprint.total_bytes, 1)
    rows += [_part_row(line, total, unit, bars=bars) for line in footprint.lines]
    lines = table(rows, "lrllll")
    band = _band(footprint.low_bytes, footprint.high_bytes, unit)
    end = table(
        [*rows, ["total", _number(footprint.total_bytes, unit), band, "", "", ""]], "lrllll"
    )
    return [*lines, "  " + "-" * (max(len(line) for line in lines) - 2), end[-1]]


def _part_row(line: Line, total: int, unit: str, *, bars: bool) -> list[str]:
    share = line.bytes / total
    bar = ("#" * round(_BAR * share) or ".") if bars else f"{100 * share:.0f} %"
    band = _band(line.low_bytes, line.high_bytes, unit)
    return [line.part, _number(line.bytes, unit), band, bar, line.basis, line.source]


def _ledgers(ledgers: Sequence[Ledger], unit: str) -> list[str]:
    if not ledgers:
        return []
    rows = [["device", f"holds {unit}", "free", "capacity", "what"]]
    for ledger in ledgers:
        biggest = sorted(ledger.parts.items(), key=lambda item: -item[1])
        what = ", ".join(f"{part} {_number(size, unit)}" for part, size in biggest if size)
        if ledger.reused_bytes:
            read = f"{_number(ledger.reused_bytes, unit)} read from the checkpoint's own files"
            what = f"{what}, {read}" if what else read
        rows.append(
            [
                ledger.name,
                _number(ledger.total_bytes, unit),
                _number(ledger.free_bytes, unit),
                _number(ledger.capacity_bytes, unit),
                what or "nothing",
            ]
        )
    return table(rows, "lrrrl")


_USED = {
    "cpu-compute": "read by the host",
    "uva": "read over the bus",
    "prefetch": "copied ahead",
}
"""Engine profile -> what happens to offloaded weights; the others stream them."""


def _streaming(plan: Plan, unit: str) -> list[str]:
    placement = plan.placement
    lines = []
    if placement.streamed_bytes_per_token:
        amount = format_bytes(placement.streamed_bytes_per_token, unit)
        lines.append(f"  {_USED.get(placement.engine, 'streamed')} for every token: {amount}")
    speed, prompt = placement.decode_tokens_per_s, placement.prefill_tokens_per_s
    if speed.value is not None:
        lines.append(f"  decode, bound by the bytes read: {_speed(speed)}")
    if prompt.value is not None:
        lines.append(f"  prompt: {_speed(prompt)}")
    if lines and placement.speed_source:
        lines += textwrap.wrap(f"  by {placement.speed_source}", 100, subsequent_indent="    ")
    if placement.host_lookup or placement.offloaded_bytes:
        lines += textwrap.wrap(f"  rule: {placement.policy}", 100, subsequent_indent="    ")
    for text in placement.warnings:
        lines += textwrap.wrap(f"  warning: {text}", 100, subsequent_indent="    ")
    others = _beside(plan, unit)
    return [*lines, *(others if lines else others[1:])]


def _speed(speed: Range) -> str:
    assert speed.value is not None
    assert speed.low is not None
    assert speed.high is not None
    return f"{_rate(speed.value)} tokens/s ({_rate(speed.low)} .. {_rate(speed.high)})"


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= _WHOLE else f"{value:.2g}"


_WHOLE = 100
"""Rates from which no digit behind the point is shown."""


def _beside(plan: Plan, unit: str) -> list[str]:
    """Return what others would do, one row each."""
    placement = plan.placement
    if not placement.beside:
        return []
    held = sum(x.parts.get("weights", 0) for x in plan.devices if x.kind == "gpu")
    rows = [["beside", f"resident {unit}", "plan's less it", "decode", "runs", ""]]
    rows.append(
        ["this plan", _number(held, unit), "", _decode(placement.decode_tokens_per_s), "", ""]
    )
    rows += [_beside_row(other, unit) for other in placement.beside]
    return ["", *table(rows, "lrrrll")]


def _beside_row(other: Beside, unit: str) -> list[str]:
    return [
        other.name,
        _number(other.resident_bytes, unit),
        _gap(other.difference_bytes, 0, unit),
        _decode(other.decode_tokens_per_s),
        "yes" if other.runs else "NO",
        other.note,
    ]


def _decode(speed: Range) -> str:
    return "n/a" if speed.value is None else f"{speed.value:.3g}/s"


def proof_text(plan: Plan) -> str:
    """Return the sum of each device in bytes, with what is set aside, against its capacity."""
    lines = [f"{ledger.name}: {ledger.proof}" for ledger in plan.devices]
    reused = [
        f"{x.name}: {x.reused_bytes} more are read from the checkpoint's own files"
        for x in plan.devices
        if x.reused_bytes
    ]
    return "\n".join((*lines, *reused)) + "\n"


def _verdict(plan: Plan, unit: str) -> list[str]:
    word = "FITS" if plan.verdict.fits else "DOES NOT FIT"
    lines = [f"  {word}: {plan.verdict.reason}"]
    if plan.verdict.binding:
        lines.append(f"  binding: {plan.verdict.binding}")
    lines += [f"  with more memory: {text}" for text in plan.verdict.sensitivity]
    if plan.verdict.changes:
        rows = [
            [f"--{c.option} {c.value}", f"-> {format_bytes(c.total_bytes, unit)}", c.note]
            for c in plan.verdict.changes
        ]
        lines += ["  what would make it fit:", *table(rows, "lrl", "    ")]
    if plan.id is not None:
        lines.append(f"  check it: memplan run --plan {plan.id} -- COMMAND")
    return lines


def comparison_text(comparison: Comparison, *, plan: Plan | None = None, unit: str = "GiB") -> str:
    """Return a comparison: one table per device with its unaccounted line, then the verdict."""
    sections = [[_run_line(comparison.run)]]
    if plan is not None:
        sections[0].append(f"plan {plan.id or '(not saved)'}: {plan.model.name}")
    sections += [_device(row, unit) for row in comparison.devices]
    sections.append([f"  note: {note}" for note in comparison.notes])
    sections.append([f"  {_judgement(comparison, unit)}"])
    why = gap_sentence(comparison, unit)
    if why:
        sections[-1] += textwrap.wrap(f"  {why}", 96, subsequent_indent="  ")
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _device(row: DeviceComparison, unit: str) -> list[str]:
    head = row.name + (f", {row.measured_by}" if row.measured_by else "")
    rows = [[head, f"planned {unit}", f"measured {unit}", "gap", f"band, {unit}"]]
    rows += [[f"  {part.part}", *_part_cells(part, unit)] for part in row.parts]
    rows.append(["  unaccounted", "", _number(row.unaccounted_bytes, unit), "", ""])
    rows.append(["  peak", *_peak_cells(row, unit)])
    if row.peak_reserved_bytes is not None:
        rows.append(["  peak reserved", "", _number(row.peak_reserved_bytes, unit), "", ""])
    return table(rows, "lrrrl")


def _part_cells(part: PartComparison, unit: str) -> list[str]:
    return [
        _number(part.planned_bytes, unit),
        _number(part.measured_bytes, unit),
        _gap(part.measured_bytes, part.planned_bytes, unit),
        "",
    ]


def _peak_cells(row: DeviceComparison, unit: str) -> list[str]:
    return [
        _number(row.planned_bytes, unit),
        _number(row.peak_bytes, unit),
        _gap(row.peak_bytes, row.planned_bytes, unit),
        _band(row.low_bytes, row.high_bytes, unit) + _place(row),
    ]


def summary_text(named: Sequence[tuple[str, Comparison]], *, unit: str = "GiB") -> str:
    """Return several comparisons as one table: the parts that were measured, and the peaks.

    Args:
        named: a word for each run, and its comparison.
        unit: "GiB", "MiB" or "GB".
    """
    rows = [
        ["run", "device", "part", f"planned {unit}", f"measured {unit}", "gap", f"band, {unit}"]
    ]
    for name, comparison in named:
        for row in comparison.devices:
            rows += [
                [name, row.name, part.part, *_part_cells(part, unit)]
                for part in row.parts
                if part.measured_bytes is not None
            ]
            if row.measured_by and row.low_bytes != row.high_bytes:
                rows.append([name, row.name, "peak", *_peak_cells(row, unit)])
    return "\n".join(table(rows, "lllrrrl", "")) + "\n"


def _gap(measured: int | None, planned: int | None, unit: str) -> str:
    """Return the signed difference: "=" when it is zero to the byte."""
    if measured is None or planned is None:
        return ""
    if measured == planned:
        return "="
    return f"{(measured - planned) / UNITS[unit]:+.{_digits(unit)}f}"


def _place(row: DeviceComparison) -> str:
    if row.within_band is None:
        return ""
    if row.within_band:
        return "  inside" if row.low_bytes != row.high_bytes else "inside"
    above = (row.peak_bytes or 0) > (row.high_bytes or 0)
    return "  ABOVE" if above else "  BELOW"


def _judgement(comparison: Comparison, unit: str) -> str:
    if comparison.verdict is None:
        return "NOT COMPARED: nothing was both planned and measured"
    if comparison.verdict == "within":
        return "WITHIN: every measured peak lies inside its planned band"
    over = comparison.verdict == "over"
    worst = max(
        (row for row in comparison.devices if row.within_band is False),
        key=lambda row: (row.gap_bytes or 0) * (1 if over else -1),
    )
    edge = worst.high_bytes if over else worst.low_bytes
    distance = format_bytes(abs((worst.peak_bytes or 0) - (edge or 0)), unit)
    side = "above" if over else "below"
    return f"{comparison.verdict.upper()}: {worst.name} peaked {distance} {side} its planned band"


def run_text(
    run: Run, *, phases: Sequence[Phase] = (), peaks: Sequence[Peak] = (), unit: str = "GiB"
) -> str:
    """Return one run: how it ended, its phases with their counters, the peak of each series."""
    sections = [[_run_line(run)], _phase_table(phases, unit), _peak_table(peaks, unit)]
    if not peaks:
        sections.append(["  nothing was measured"])
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _run_line(run: Run) -> str:
    text = f"run {run.id}: {shlex.join(run.command)}"
    if run.ended_ns is not None:
        text += f" · {(run.ended_ns - run.started_ns) / 1e9:.1f} s"
    if run.exit_code is not None:
        text += f" · exit code {run.exit_code}"
    return f"{text} · {run.status}"


def _phase_table(phases: Sequence[Phase], unit: str) -> list[str]:
    if not phases:
        return []
    rows = [["phase", "seconds", "counter", unit]]
    for phase in phases:
        seconds = (
            "" if phase.ended_ns is None else f"{(phase.ended_ns - phase.started_ns) / 1e9:.2f}"
        )
        for i, (name, value) in enumerate(sorted(phase.counters.items()) or [("", 0)]):
            first = (phase.name, seconds) if i == 0 else ("", "")
            rows.append([*first, name, _number(value, unit) if name else ""])
    return table(rows, "lrlr")


def _peak_table(peaks: Sequence[Peak], unit: str) -> list[str]:
    if not peaks:
        return []
    rows = [["series", "metric", f"peak {unit}", "samples"]]
    for peak in sorted(peaks, key=lambda p: (p.series.entity, p.series.metric)):
        is_bytes = peak.series.metric.endswith("_bytes")
        value = _number(peak.value, unit) if is_bytes else str(peak.value)
        rows.append([peak.series.entity, peak.series.metric, value, str(peak.count)])
    return table(rows, "llrr")
