"""The two instants of a training step at which most is alive, for one device that does it all."""

from __future__ import annotations

from dataclasses import dataclass

from memplan.footprint.compiled import compiled
from memplan.parallel.types import Shard
from memplan.runtimes import trainer
from memplan.types import Basis, Line, ModelSpec, Workload

__all__ = ["Moments", "closed_moments", "rank_line"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """What a step holds beyond weights, gradients and optimizer states."""

    saved_bytes: int
    """At the end of the forward pass or in the backward pass: saved tensors and temporaries."""
    step_bytes: int
    """In the optimizer's step."""
    loss_bytes: int = 0
    """Of those in the passes, what the loss takes, before the first layer's backward pass."""
    evaluation_bytes: int = 0
    """In an evaluation between steps, where there is no gradient."""
    basis: Basis
    """How it is known."""
    source: str
    """In words."""
    low: float
    """Lower end of the band, as a share."""
    high: float
    """Upper end of the band, as a share."""


def closed_moments(spec: ModelSpec, workload: Workload, *, gradients: int) -> Moments:
    """Return both by the runtime's formulas.

    Args:
        spec: the model.
        workload: complete.
        gradients: bytes of all gradients.
    """
    engine = trainer(workload.runtime)
    kept, loss, step = engine.training_moments(spec, workload, gradients=gradients, kind="gpu")
    return Moments(
        saved_bytes=kept + loss,
        step_bytes=step,
        loss_bytes=loss,
        evaluation_bytes=engine.evaluation_bytes(spec, workload),
        basis="formula",
        source="saved tensors, logits and the step's temporaries",
        low=0.6,
        high=1.6,
    )


def rank_line(
    moments: Moments, shard: Shard, workload: Workload, *, layers: int, whole: int
) -> Line:
    """Return the activations' line of one rank.

    As on one device, gradients are a line of their own and taken off here; the saved tensors are
    the rank's share, and the optimizer's temporaries go with the gradients that it holds. Where the
    shard knows the moments of its passes, the line is what their highest takes beyond gradients
    and buffers. Each rank evaluates a batch of its own, beside no gradient.

    Args:
        moments: of one device.
        shard: what the rank holds.
        workload: complete.
        layers: decoder layers of the model.
        whole: bytes of all gradients on one device.
    """
    share = shard.activations
    part = float(share.per_layer) * share.layers / max(layers, 1)
    own = shard.gradients.bytes
    step = int(moments.step_bytes * own / whole) if whole else 0
    kept = own if (workload.grad_accum or 1) > 1 else 0

    buffers = sum(line.bytes for line in shard.buffers)

    logits = float(share.sequence * share.tensor) if share.logits else 0.0

    def evaluated(scale: float) -> int:
        return int(scale * logits * moments.evaluation_bytes) - own

    def beyond(scale: float, temporary: int) -> int:
        saved = int(scale * part * moments.saved_bytes)
        if shard.moments:
            loss = saved * moments.loss_bytes // max(moments.saved_bytes, 1)
            passes = max(
                x.gradients + x.buffers + int(x.saved * (saved - loss) + x.loss * loss)
                for x in shard.moments
            )
            return max(passes - own - buffers, temporary - buffers, evaluated(scale), 0)
        return max(saved + kept - own, temporary, evaluated(scale)) if own else saved

    line = Line(
        part="activations",
        bytes=beyond(1.0, step),
        low_bytes=beyond(moments.low, 0),
        high_bytes=beyond(moments.high, step),
        basis=moments.basis,
        source=f"{moments.source}; {share.source}",
    )
    return compiled(line) if workload.compile else line
