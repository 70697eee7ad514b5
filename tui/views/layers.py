"""The placement as a map: one row a device, one column a layer (or a few of them)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from memplan_tui.lines import Line, heading
from memplan_tui.text import tr
from memplan_tui.views.words import Look, number

from memplan.types import Ledger, Plan

__all__ = ["layer_homes", "layer_map"]

_LAYER = re.compile(r"^(.*?\b(?:layers|h|blocks|block))\.(\d+)(?:\.|$)")

ALL, SOME, NONE = "█", "▒", "·"


def layer_homes(device_map: Mapping[str, str]) -> tuple[list[set[str]], dict[str, str]]:
    """Return the devices of each layer in order, and of every module outside of layers.

    A model with several stacks of layers (an encoder and a decoder) gets them one after another.
    """
    stacks: dict[str, dict[int, set[str]]] = {}
    others: dict[str, str] = {}
    for module, device in device_map.items():
        match = _LAYER.match(module)
        if match is None:
            others[module] = device
        else:
            stacks.setdefault(match[1], {}).setdefault(int(match[2]), set()).add(device)
    layers = [stack[i] for stack in stacks.values() for i in sorted(stack)]
    return layers, others


def layer_map(plan: Plan, look: Look, width: int) -> list[Line]:
    """Return the map with what each device holds of its capacity."""
    layers, others = layer_homes(plan.placement.device_map)
    title = heading(tr("placement"), width, _summary(plan, layers))
    if not layers:
        return [title, *_ledgers(plan, look, width)]
    room = min(max(width - 44, 12), len(layers))
    per = -(-len(layers) // room)
    groups = [layers[i : i + per] for i in range(0, len(layers), per)]
    lines = [title, _scale(len(groups), per, len(layers))]
    for ledger in plan.devices:
        cells = "".join(_cell(group, ledger.name) for group in groups)
        lines.append([*_name(ledger), (cells, "plan"), *_held(ledger, look)])
    outside = _outside(others, width)
    return [*lines, outside] if outside else lines


def _summary(plan: Plan, layers: list[set[str]]) -> str:
    if layers:
        return tr("{n} layers").format(n=len(layers))
    strategy = plan.workload.strategy
    if strategy is None:
        return ""
    return tr("{strategy}: each of {n} GPUs holds its share").format(
        strategy=strategy, n=plan.workload.gpus
    )


def _cell(group: list[set[str]], device: str) -> str:
    inside = sum(device in homes for homes in group)
    whole = all(homes == {device} for homes in group)
    return ALL if whole else SOME if inside else NONE


def _name(ledger: Ledger) -> Line:
    return [(f"{ledger.name:<8}", "")]


def _held(ledger: Ledger, look: Look) -> Line:
    free = ledger.free_bytes
    text = (
        f"  {number(ledger.total_bytes, look.unit):>8} / {number(ledger.capacity_bytes, look.unit)}"
    )
    if free < 0:
        lacks = tr("LACKS {size}").format(size=number(-free, look.unit))
        return [(text, "bad"), (f"  {lacks}", "bad")]
    return [(text, ""), ("  " + tr("{size} free").format(size=number(free, look.unit)), "dim")]


def _scale(count: int, per: int, layers: int) -> Line:
    """Return the numbers of layers above the columns."""
    line = [" "] * (count + 8)
    step = 10 if per < 10 else 5 * per
    for layer in range(0, layers, step):
        at = layer // per
        label = str(layer)
        if at + len(label) <= count:
            line[at : at + len(label)] = label
    return [(tr("layer").ljust(8), "dim"), ("".join(line).rstrip(), "dim")]


def _outside(others: Mapping[str, str], width: int) -> Line:
    """Return where embeddings, norms and the output matrix live."""
    homes: dict[str, list[str]] = {}
    for module, device in others.items():
        homes.setdefault(device, []).append(module.rpartition(".")[2])
    facts = [f"{', '.join(dict.fromkeys(names))} → {device}" for device, names in homes.items()]
    line = " · ".join(facts)
    return [(line, "dim")] if line and len(line) <= width else []


def _ledgers(plan: Plan, look: Look, width: int) -> list[Line]:
    room = max(min(width - 44, 60), 10)
    lines: list[Line] = []
    for ledger in plan.devices[:8]:
        share = ledger.total_bytes / max(ledger.capacity_bytes, 1)
        filled = round(room * min(share, 1.0))
        cells = ALL * filled + NONE * (room - filled)
        lines.append([*_name(ledger), (cells, "plan"), *_held(ledger, look)])
    hidden = len(plan.devices) - len(lines)
    if hidden > 0:
        lines.append([(tr("+{n} more devices like these").format(n=hidden), "dim")])
    return lines
