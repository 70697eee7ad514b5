"""Optimizer states, exact by the parameters' shapes. Sources: the classes of torch.optim 2.13."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memplan.errors import UsageError
from memplan.types import Tensor

__all__ = ["OPTIMIZERS", "optimizer_bytes"]

STEP_BYTES = 4
"""One float32 step counter per parameter tensor."""


def _one_state(tensor: Tensor) -> int:
    return tensor.bytes


def _adam(tensor: Tensor) -> int:
    """First and second moment and the step."""
    return 2 * tensor.bytes + STEP_BYTES


def _one_state_and_step(tensor: Tensor) -> int:
    return tensor.bytes + STEP_BYTES


def _adafactor(tensor: Tensor) -> int:
    """Factored second moment of matrices (one value per row and per column), full for vectors."""
    if len(tensor.shape) < 2:
        return tensor.bytes + STEP_BYTES
    *outer, rows, columns = tensor.shape
    count = rows + columns
    for size in outer:
        count *= size
    elements = 1
    for size in tensor.shape:
        elements *= size
    return (tensor.bytes // elements if elements else 0) * count + STEP_BYTES


def _nothing(tensor: Tensor) -> int:
    del tensor
    return 0


OPTIMIZERS: dict[str, tuple[Callable[[Tensor], int], str]] = {
    "adamw": (_adam, "torch.optim.AdamW: 2 states and a step each"),
    "adam": (_adam, "torch.optim.Adam: 2 states and a step each"),
    "adafactor": (_adafactor, "torch.optim.Adafactor: a row and a column of each matrix"),
    "adagrad": (_one_state_and_step, "torch.optim.Adagrad: 1 state and a step each"),
    "rmsprop": (_one_state_and_step, "torch.optim.RMSprop: 1 state and a step each"),
    "sgd": (_nothing, "torch.optim.SGD without momentum: no state"),
    "sgd-momentum": (_one_state, "torch.optim.SGD with momentum: 1 state"),
}
"""Name -> (bytes of one parameter's state, source)."""


def optimizer_bytes(name: str, parameters: Sequence[Tensor]) -> int:
    """Return the bytes of all states after the first step, for trainable parameters as stored.

    Raises UsageError for an optimizer without a rule.
    """
    if name not in OPTIMIZERS:
        raise UsageError(f"no rule for optimizer {name!r}", hint="one of: " + ", ".join(OPTIMIZERS))
    rule, _ = OPTIMIZERS[name]
    return sum(rule(tensor) for tensor in parameters)
