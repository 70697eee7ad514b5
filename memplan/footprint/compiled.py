"""What torch.compile changes of a training step's activations: a band, as nothing is traced."""

from __future__ import annotations

from dataclasses import replace

from memplan.types import Line

__all__ = ["compiled"]

LEAST, MOST = 0.5, 1.25
"""Of what the same step takes without torch.compile; see `compiled`."""


def compiled(line: Line) -> Line:
    """Return the activations' line of a compiled model: the same estimate in a wider band.

    TorchInductor fuses what follows pointwise, and computes anew in the backward pass what is
    cheaper to compute than to keep (min-cut partitioner).

    """
    return replace(
        line,
        low_bytes=int(LEAST * line.low_bytes),
        high_bytes=max(int(MOST * line.bytes), line.high_bytes),
        source=f"{line.source}; torch.compile: as without it, in a band",
    )
