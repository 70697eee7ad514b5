"""States of GaLore: moments of gradients that are projected to a few directions."""

from __future__ import annotations

import re

from memplan.footprint.optimizer_8bit import EMBEDDING
from memplan.types import Tensor

__all__ = ["GALORE", "galore_rank", "galore_state", "takes_galore"]

GALORE = re.compile(r"galore(?:-r(\d{1,6}))?")
"""Optimizer's name: "galore" (rank 128, transformers' default), or "galore-r256" ..."""
_RANK = 128


def galore_rank(name: str) -> int | None:
    """Return the rank that an optimizer's name says, or None when it is not GaLore."""
    found = GALORE.fullmatch(name)
    if found is None:
        return None
    return int(found[1]) if found[1] else _RANK


def takes_galore(name: str, dimensions: int) -> bool:
    """Say whether a parameter is projected: the matrix of a linear, the output matrix too.

    As transformers' Trainer with `optim_target_modules="all-linear"` (5.23, trainer_optimizer.py).
    """
    return dimensions == 2 and not EMBEDDING.search(name)


def galore_state(tensor: Tensor, rank: int) -> int:
    """Return the bytes of one parameter's projection and moments.

    A matrix (m, n): 2·max(m, n)·r for the moments and min(m, n)·r for the projection, in the
    gradient's dtype; in float32 the projection is a view of all min(m, n)² values of the
    decomposition, which stay alive with it. Other parameters keep two whole moments.

    Args:
        tensor: the parameter as stored.
        rank: r, at most min(m, n).

    Source: galore_torch 1.0 (adamw.py, galore_projector.py), projection "std".
    """
    if not takes_galore(tensor.name, len(tensor.shape)):
        return 2 * tensor.bytes
    rows, columns = tensor.shape
    short, long = min(rows, columns), max(rows, columns)
    element = tensor.bytes // (rows * columns)
    kept = min(rank, short)
    projection = short * (short if tensor.dtype == "float32" else kept)
    return element * (2 * long * kept + projection)
