"""A search's answer as text for people: plain tables, then the command of every line."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from memplan.report import table
from memplan.search.types import Alternative, Fit, Room
from memplan.units import UNITS, format_bytes, format_count

__all__ = ["fit_text"]

_WIDTH = 100
_COLUMNS = ("gpus", "quant", "kv_dtype", "runtime", "method", "optimizer", "strategy")
"""Changes that a column shows."""


def fit_text(fit: Fit, *, unit: str = "GiB") -> str:
    """Return the plan as asked, the alternatives, their commands and what is known of quality."""
    sections = [_head(fit), _asked(fit, unit)]
    if fit.alternatives:
        sections += [_rows(fit, fit.alternatives, unit), _commands(fit.alternatives)]
        sections.append(_notes(fit.alternatives))
    elif fit.nearest:
        sections.append(["  nothing fits under these constraints; with one of them let go:"])
        sections += [_rows(fit, fit.nearest, unit), _commands(fit.nearest), _notes(fit.nearest)]
    else:
        sections.append(["  nothing that was tried fits, not even with one constraint let go"])
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _head(fit: Fit) -> list[str]:
    work = fit.asked.workload
    size = f"{format_count(fit.model.parameters)} parameters"
    first = f"{fit.model.name} · {fit.model.architecture or 'unknown architecture'} · {size}"
    length = f"context {work.context}" if fit.task == "infer" else f"sequence {work.seq}"
    devices = ", ".join(work.device) or "this machine"
    second = f"to fit: {fit.task} · {length} · batch {work.batch} · on {devices}"
    given = " ".join(f"--{name.replace('_', '-')} {text}" for name, text in fit.constraints.items())
    third = f"you set, and it stays: {given or 'nothing'}"
    return [first, second, *textwrap.wrap(third, _WIDTH, subsequent_indent="  ")]


def _asked(fit: Fit, unit: str) -> list[str]:
    verdict = fit.asked.verdict
    word = "FITS AS ASKED" if verdict.fits else "DOES NOT FIT AS ASKED"
    lines = [f"  {word}: {verdict.reason}"]
    if fit.binding is not None:
        part = fit.binding.part.replace("_", " ")
        size = format_bytes(fit.binding.part_bytes, unit)
        lines.append(f"  most of {fit.binding.device}: {part}, {size}")
    if fit.rooms:
        lines.append("  room left: " + "; ".join(_room(room) for room in fit.rooms))
    return lines


def _room(room: Room) -> str:
    end = "" if room.limit == "memory" else ", where the model ends" * (room.option != "batch")
    return f"{room.option} up to {room.value}{end}"


def _rows(fit: Fit, found: Sequence[Alternative], unit: str) -> list[str]:
    if fit.task == "infer":
        head = ["#", "engine", "weights", "bits", "cache", "GPUs", f"{unit} a GPU", "free"]
        head += ["tokens/s", "context to", "batch to", "beside that"]
        align = "rllrlrrrrrrl"
    else:
        head = ["#", "method", "optimizer", "checkpoints", "GPUs", f"{unit} a GPU", "free"]
        head += ["from", "batch to", "sequence to", "beside that"]
        align = "rlllrrrlrrl"
    rows = [head]
    for i, one in enumerate(found, 1):
        cells = _infer(one, unit) if fit.task == "infer" else _train(one, unit)
        notes = "; ".join(cost.words for cost in one.costs if cost.option not in _COLUMNS)
        rows.append([str(i), *cells, notes])
    lines = table(rows, align)
    if fit.left_out:
        lines.append(f"  {fit.left_out} more fit: --limit {fit.left_out + len(found)}")
    return lines


def _infer(one: Alternative, unit: str) -> list[str]:
    work = one.plan.workload
    return [
        one.engine,
        work.quant if work.quant != "none" else one.plan.model.weight_format,
        f"{one.bits_per_weight:.1f}",
        work.kv_dtype or "n/a",
        _gpus(one),
        *_sizes(one, unit),
        _speed(one),
        _limit(one, "context"),
        _limit(one, "batch"),
    ]


def _train(one: Alternative, unit: str) -> list[str]:
    work = one.plan.workload
    method = str(work.method)
    if work.gpus > 1:
        method += f", {work.strategy}"
    return [
        method,
        str(work.optimizer),
        str(work.checkpointing),
        _gpus(one),
        *_sizes(one, unit),
        one.basis,
        _limit(one, "batch"),
        _limit(one, "seq"),
    ]


def _gpus(one: Alternative) -> str:
    """Return how many GPUs compute, "host" for none."""
    return str(one.plan.workload.gpus) if one.plan.devices[0].kind == "gpu" else "host"


def _sizes(one: Alternative, unit: str) -> tuple[str, str]:
    return f"{one.total_bytes / UNITS[unit]:.2f}", f"{one.free_bytes / UNITS[unit]:.2f}"


def _speed(one: Alternative) -> str:
    value = one.decode_tokens_per_s.value
    return "n/a" if value is None else f"{value:.2g}" if value < 100 else f"{value:.0f}"


def _limit(one: Alternative, option: str) -> str:
    found = [room for room in one.rooms if room.option == option]
    return str(found[0].value) if found else "-"


def _commands(found: Sequence[Alternative]) -> list[str]:
    return [f"  {i}: {one.command}" for i, one in enumerate(found, 1)]


def _notes(found: Sequence[Alternative]) -> list[str]:
    """Return what was published about the formats that the lines use, each once."""
    named: dict[str, list[str]] = {}
    for quality in (quality for one in found for quality in one.quality):
        if quality.note:
            names = named.setdefault(f"{quality.note} [{quality.source}]", [])
            name = quality.value + (" cache" if quality.option == "kv_dtype" else "")
            names += [name] * (name not in names)
    return [
        line for text, names in named.items() for line in _wrapped(f"{', '.join(names)}: {text}")
    ]


def _wrapped(text: str) -> Iterable[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="    ")
