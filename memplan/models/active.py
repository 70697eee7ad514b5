"""Parameters that one token passes through in a mixture of experts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from memplan.types import Tensor

__all__ = ["active_parameters"]

_ROUTED = (".experts.", "_exps.")


def active_parameters(
    tensors: Sequence[Tensor], *, experts: int | None, chosen: int | None
) -> int | None:
    """Return all parameters but those of routed experts that a token does not choose.

    Args:
        tensors: of the model, logical shapes.
        experts: routed experts per layer.
        chosen: routed experts that one token passes through.

    None for a dense model.
    """
    if not experts or not chosen:
        return None
    total = routed = 0
    for tensor in tensors:
        if tensor.kind == "parameter" and not tensor.tied_to:
            count = math.prod(tensor.shape)
            total += count
            routed += count if any(mark in tensor.name for mark in _ROUTED) else 0
    return total - routed + routed * chosen // experts
