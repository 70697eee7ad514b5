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
    cheaper to compute than to keep (min-cut partitioner). A small Llama's step (torch 2.13, the
    host's Inductor, exact allocator events) took beyond its weights 0.56 in bfloat16 and 0.88 in
    float32 of what it takes without; no CUDA machine was at hand, where tuning and CUDA graphs
    (mode "reduce-overhead") have memory of their own. Band: half of the lower end, and at least
    1.25 times the estimate.

    Args:
        line: the activations of the same step without torch.compile.
    """
    return replace(
        line,
        low_bytes=int(LEAST * line.low_bytes),
        high_bytes=max(int(MOST * line.bytes), line.high_bytes),
        source=f"{line.source}; torch.compile: as without it, in a band",
    )
