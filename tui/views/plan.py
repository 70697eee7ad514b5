"""Plan: parts as bars, the placement as a map, and what other choices would change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memplan_tui.lines import Line, cut, heading, length, wrapped
from memplan_tui.text import tr
from memplan_tui.views.layers import layer_map
from memplan_tui.views.parts import part_table
from memplan_tui.views.words import Look, number, size

from memplan.types import Plan
from memplan.units import format_count

__all__ = ["Choice", "plan_screen", "verdict"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One option that can be changed by a key."""

    option: str
    """Its name."""
    key: str
    """The key, as it is shown."""
    value: str
    """What it is now."""
    changed: bool
    """Is that another value than the stored plan's."""


def option_name(option: str) -> str:
    """Return what an option is called."""
    names = {
        "quant": tr("quantization"),
        "context": tr("context"),
        "seq": tr("sequence"),
        "batch": tr("batch"),
        "method": tr("method"),
        "device": tr("device"),
        "gpus": tr("how many"),
    }
    return names[option]


def plan_screen(  # noqa: PLR0917 - as on the screen
    plan: Plan,
    before: Plan | None,
    choices: Sequence[Choice],
    look: Look,
    width: int,
    height: int,
    *,
    error: str = "",
) -> list[Line]:
    """Return the screen's body.

    Args:
        plan: the plan that is shown.
        before: the stored one, when choices changed it.
        choices: what can be changed by keys.
        look: how.
        width: characters.
        height: rows.
        error: why the last change was refused.
    """
    lines = [[(cut(_model(plan), width), "bold")], *_choices(choices, width)]
    if error:
        lines += wrapped(error, width, "bad")[:2]
    blank: list[Line] = [[("", "")]] if height >= 26 else []
    lines += [*blank, *verdict(plan, before, look, width)]
    lines += [*blank, heading(tr("parts at the peak"), width, look.unit)]
    lines += part_table(plan, look, width, before)
    lines += [*blank, *layer_map(plan, look, width)]
    changes = _changes(plan, look) if not plan.verdict.fits else _streaming(plan, look)
    if changes and len(lines) + len(changes) + len(blank) <= height:
        lines += [*blank, *changes]
    return lines[:height]


def _model(plan: Plan) -> str:
    model, work = plan.model, plan.workload
    facts = [model.name, format_count(model.parameters), tr("{n} layers").format(n=model.layers)]
    facts += [work.task, work.runtime]
    return " · ".join(facts)


def _choices(choices: Sequence[Choice], width: int) -> list[Line]:
    """Return the options with their keys, in as few lines as they take."""
    lines: list[Line] = [[]]
    for choice in choices:
        mark = "*" if choice.changed else ""
        item: Line = [
            (choice.key, "key"),
            (f" {option_name(choice.option)} ", "dim"),
            (f"{choice.value}{mark}", "bold" if choice.changed else ""),
        ]
        if lines[-1] and length(lines[-1]) + length(item) + 3 > width:
            lines.append([])
        lines[-1] = [*lines[-1], ("   ", ""), *item] if lines[-1] else item
    return [line for line in lines if line]


def verdict(plan: Plan, before: Plan | None, look: Look, width: int) -> list[Line]:
    """Return whether it fits, and what the tightest device keeps or lacks."""
    word, role = (tr("FITS"), "good") if plan.verdict.fits else (tr("DOES NOT FIT"), "bad")
    unit = look.unit
    short = [ledger for ledger in plan.devices if ledger.free_bytes < 0]
    computing = [x for x in plan.devices if x.kind == "gpu"] or list(plan.devices[:1])
    facts = [
        tr("{device} lacks {size}").format(device=x.name, size=size(-x.free_bytes, unit))
        for x in short
    ]
    if not short and computing:
        tight = min(computing, key=lambda ledger: ledger.free_bytes)
        free = size(tight.free_bytes, unit)
        facts.append(tr("{device} keeps {size} free").format(device=tight.name, size=free))
        over = tight.high_bytes + tight.reserve_bytes - tight.capacity_bytes
        if over > 0:
            facts.append(
                tr("tight: lacks {size} at the upper end of the band").format(size=size(over, unit))
            )
    if plan.placement.offloaded_bytes:
        moved = size(plan.placement.offloaded_bytes, unit)
        facts.append(tr("{size} of weights are streamed").format(size=moved))
    if before is not None and before.verdict.fits != plan.verdict.fits:
        facts.append(tr("as stored: {word}").format(word=_word(before)))
    text = f"{word}  {' · '.join(facts)}"
    return [[(line, role)] for line in _wrap(text, width)][:2]


def _word(plan: Plan) -> str:
    return tr("FITS") if plan.verdict.fits else tr("DOES NOT FIT")


def _wrap(text: str, width: int) -> list[str]:
    return ["".join(piece for piece, _ in line) for line in wrapped(text, width)]


def _changes(plan: Plan, look: Look) -> list[Line]:
    """Return what would make it fit, or the command that looks for it."""
    if not plan.verdict.changes:
        words = tr("What to change so that it fits:")
        return [[(f"{words}  ", "dim"), (f"memplan fit {plan.model.name}", "bold")]]
    lines: list[Line] = [[(tr("what would make it fit"), "head")]]
    for change in plan.verdict.changes[:4]:
        option = f"  --{change.option} {change.value}"
        total = f"→ {size(change.total_bytes, look.unit)}"
        lines.append([(f"{option:<28}", "bold"), (total, "")])
    return lines


def _streaming(plan: Plan, look: Look) -> list[Line]:
    place = plan.placement
    if not place.streamed_bytes_per_token:
        return []
    amount = number(place.streamed_bytes_per_token, look.unit)
    words = tr("{size} {unit} are copied for every token").format(size=amount, unit=look.unit)
    speed = place.decode_tokens_per_s
    if speed.value is not None:
        words += " · " + tr("about {n} tokens a second").format(n=f"{speed.value:.2g}")
    return [[(words, "dim")]]
