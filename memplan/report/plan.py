"""A plan as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from memplan.report.columns import band, gap, number, table
from memplan.types import Beside, Ledger, Line, Plan, Range
from memplan.units import format_bytes, format_count

__all__ = ["plan_text", "proof_text"]

_SINGLE = ("gpus", "nodes", "tp", "pp", "dp", "ep", "cp")
"""Defaults that mean "one": listed in the JSON only."""

_BAR = 20
"""Characters of a full bar."""


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
        if work.eval_batch:
            yield f"evaluation by {work.eval_batch}"
        if work.compile:
            yield "torch.compile"
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
    spread = band(footprint.low_bytes, footprint.high_bytes, unit)
    end = table(
        [*rows, ["total", number(footprint.total_bytes, unit), spread, "", "", ""]], "lrllll"
    )
    return [*lines, "  " + "-" * (max(len(line) for line in lines) - 2), end[-1], *_closer(plan)]


def _closer(plan: Plan) -> list[str]:
    """Return what narrows the band of a closed form that nobody asked for."""
    work = plan.workload
    traced = work.runtime == "transformers" and work.estimator == "formula"
    if not traced or "estimator" not in work.assumed or not plan.footprint.lines:
        return []
    if all(line.basis != "formula" for line in plan.footprint.lines if line.part == "activations"):
        return []
    return ["  closer: --estimator trace runs the model's own code without its memory (seconds)"]


def _part_row(line: Line, total: int, unit: str, *, bars: bool) -> list[str]:
    share = line.bytes / total
    bar = ("#" * round(_BAR * share) or ".") if bars else f"{100 * share:.0f} %"
    spread = band(line.low_bytes, line.high_bytes, unit)
    return [line.part, number(line.bytes, unit), spread, bar, line.basis, line.source]


def _ledgers(ledgers: Sequence[Ledger], unit: str) -> list[str]:
    if not ledgers:
        return []
    rows = [["device", f"holds {unit}", "free", "capacity", "what"]]
    for ledger in ledgers:
        biggest = sorted(ledger.parts.items(), key=lambda item: -item[1])
        what = ", ".join(f"{part} {number(size, unit)}" for part, size in biggest if size)
        if ledger.reused_bytes:
            read = f"{number(ledger.reused_bytes, unit)} read from the checkpoint's own files"
            what = f"{what}, {read}" if what else read
        rows.append(
            [
                ledger.name,
                number(ledger.total_bytes, unit),
                number(ledger.free_bytes, unit),
                number(ledger.capacity_bytes, unit),
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
    text = f"{_rate(speed.value)} tokens/s"
    if speed.low is None or speed.high is None:
        return text
    return f"{text} ({_rate(speed.low)} .. {_rate(speed.high)})"


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
        ["this plan", number(held, unit), "", _decode(placement.decode_tokens_per_s), "", ""]
    )
    rows += [_beside_row(other, unit) for other in placement.beside]
    return ["", *table(rows, "lrrrll")]


def _beside_row(other: Beside, unit: str) -> list[str]:
    return [
        other.name,
        number(other.resident_bytes, unit),
        gap(other.difference_bytes, 0, unit),
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
