"""What the host needs while transformers reads a checkpoint, beside what it needs to run it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from memplan.footprint.lines import band_line
from memplan.placement.units import Unit, is_routed
from memplan.types import Line

__all__ = ["loading_bytes", "loading_line"]

_EXPERT = re.compile(r"(\.experts)\.\d+\.([^.]+).*$|(_exps)\..*$")
_FUSED = dict.fromkeys(("gate_proj", "up_proj", "w1", "w3"), "gate_up_proj")
"""Projections of an expert that one tensor of the model holds together."""


def loading_bytes(units: Sequence[Unit], away: Collection[int]) -> int:
    """Return the most bytes that the host holds while weights are read and part goes to a disk.

    Tensors are read one after another in the natural order of their names. At each one the host
    holds all that was read before and stays, the tensor itself (experts twice: the pieces of the
    file beside the merged tensor), and the one read just before, if that went to the disk: the
    loop's variable keeps it until the next has been read. Experts' gates and up-projections make
    one tensor, read where the first piece of it stands.

    Source: transformers 5.23, core_model_loading.py, convert_and_load_state_dict_in_model (no
    threads where the map names a disk) and MergeModulelist, Concatenate. Holds where the file has
    another dtype than the model; in the same one plain tensors stay mapped, and less is held.
    Deviates upwards where a file's experts have other names than the built model's, which may
    change the order (Mixtral: 84 MB beside what stays, 68 measured).

    Args:
        units: the model's pieces.
        away: positions of those that go to the disk.
    """
    most = held = before = 0
    for size, routed, gone in _in_reading_order(units, away):
        most = max(most, held + before + (2 * size if routed else size))
        held += 0 if gone else size
        before = size if gone else 0
    return most


def _in_reading_order(units: Sequence[Unit], away: Collection[int]) -> list[tuple[int, bool, bool]]:
    """Return bytes, whether experts, and whether for the disk, of each tensor that is read."""
    sizes: dict[str, int] = {}
    gone: dict[str, bool] = {}
    tensors = ((tensor, unit.position in away) for unit in units for tensor in unit.tensors)
    for tensor, leaves in sorted(tensors, key=lambda pair: _natural(pair[0].name)):
        name = _EXPERT.sub(_merged, tensor.name)
        sizes[name] = sizes.get(name, 0) + tensor.bytes
        gone[name] = leaves
    return [(size, is_routed(f"{name}."), gone[name]) for name, size in sizes.items()]


def _merged(match: re.Match[str]) -> str:
    """Return the model's name for what a file has of one expert."""
    stacked, piece, packed = match.groups()
    return packed or f"{stacked}.{_FUSED.get(piece, piece)}"


def _natural(name: str) -> list[tuple[int, int, str]]:
    parts = name.split(".")
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def loading_line(units: Sequence[Unit], away: Collection[int], running: int) -> list[Line]:
    """Return the line of what loading takes beyond running; none where it takes less.

    Args:
        units: the model's pieces.
        away: positions of those that go to the disk.
        running: weights, cache, activations and buffers of the same device in bytes.
    """
    more = loading_bytes(units, away) - running if away else 0
    text = "loading: a tensor for the disk is held until the next one is read, experts are merged"
    return [band_line("activations", more, low=0, high=more, source=text)] if more > 0 else []
