"""Optimizer states, exact by the parameters' shapes. Sources: the classes of torch.optim 2.13."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memplan.errors import UsageError
from memplan.footprint.optimizer_8bit import (
    EMBEDDING,
    TABLE_BYTES,
    packed_state,
    paged_state,
    plain_state,
    torchao_pieces,
)
from memplan.footprint.optimizer_low_rank import galore_rank, galore_state
from memplan.types import Tensor

__all__ = [
    "IN_BACKWARD",
    "OPTIMIZERS",
    "PAGED",
    "gradient_bytes",
    "optimizer_bytes",
    "optimizer_rule",
    "paged_bytes",
    "split_name",
    "takes_muon",
]

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


def _muon(tensor: Tensor) -> int:
    """One momentum for matrices inside the model; vectors, embeddings and heads are Adam's."""
    return tensor.bytes if takes_muon(tensor.name, len(tensor.shape)) else _adam(tensor)


def takes_muon(name: str, dimensions: int) -> bool:
    """Say whether Muon updates a parameter: a matrix that is no embedding and no output matrix."""
    return dimensions == 2 and not EMBEDDING.search(name) and "lm_head" not in name


def _nothing(tensor: Tensor) -> int:
    del tensor
    return 0


_ADAMW = "torch.optim.AdamW: 2 states and a step each"
_PAGED = "in unified memory, which can be moved to the host"
PAGED = f"bitsandbytes' paged states, {_PAGED}"
"""Source of the line of what torch's allocator does not count."""

OPTIMIZERS: dict[str, tuple[Callable[[Tensor], int], str]] = {
    "adamw": (_adam, _ADAMW),
    "adamw-foreach": (_adam, _ADAMW),
    "adamw-for-loop": (_adam, _ADAMW),
    "adamw-fused": (_adam, _ADAMW),
    "adamw-8bit": (lambda t: packed_state(t, 2), "bitsandbytes AdamW8bit: 2 states of a byte"),
    "paged-adamw": (lambda t: plain_state(t, 2), f"bitsandbytes PagedAdamW: float32, {_PAGED}"),
    "paged-adamw-8bit": (
        lambda t: packed_state(t, 2),
        f"bitsandbytes PagedAdamW8bit: 2 states of a byte, {_PAGED}",
    ),
    "lion": (lambda t: plain_state(t, 1), "bitsandbytes Lion: 1 float32 state"),
    "lion-8bit": (lambda t: packed_state(t, 1), "bitsandbytes Lion8bit: 1 state of a byte"),
    "ademamix": (lambda t: plain_state(t, 3), "bitsandbytes AdEMAMix: 3 float32 states"),
    "ademamix-8bit": (
        lambda t: packed_state(t, 3),
        "bitsandbytes AdEMAMix8bit: 3 states of a byte",
    ),
    "torchao-adamw-8bit": (
        lambda t: sum(torchao_pieces(t, 8)),
        "torchao AdamW8bit: 2 states of a byte, tables and a step each",
    ),
    "torchao-adamw-4bit": (
        lambda t: sum(torchao_pieces(t, 4)),
        "torchao AdamW4bit: 2 states of half a byte, tables and a step each",
    ),
    "torchao-adamw-fp8": (
        lambda t: sum(torchao_pieces(t, 8, table=False)),
        "torchao AdamWFp8: 2 states of a byte and a step each",
    ),
    "galore": (
        lambda t: galore_state(t, 128),
        "galore_torch AdamW of rank 128: projection and 2 low-rank states of each linear",
    ),
    "muon": (_muon, "torch.optim.Muon: 1 state of each matrix, AdamW for the rest"),
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
    rule, _ = optimizer_rule(name)
    base, _ = split_name(name)
    return sum(rule(tensor) for tensor in parameters) + TABLE_BYTES * _TABLES.get(base, 0)


def optimizer_rule(name: str) -> tuple[Callable[[Tensor], int], str]:
    """Return (bytes of one parameter's state, source). Raises UsageError for an unknown name."""
    base, in_backward = split_name(name)
    rank = galore_rank(base)
    if rank is not None:
        text = OPTIMIZERS["galore"][1].replace("128", str(rank))
        return (lambda t: galore_state(t, rank)), text
    if base not in OPTIMIZERS:
        raise UsageError(
            f"no rule for optimizer {name!r}",
            hint="one of: " + ", ".join(OPTIMIZERS) + f"; each with {IN_BACKWARD}, too",
        )
    rule, source = OPTIMIZERS[base]
    return rule, f"{source}, stepped in the backward pass" if in_backward else source


def split_name(name: str) -> tuple[str, bool]:
    """Return an optimizer's own name, and does it step parameter by parameter while backward runs.

    Then a gradient is used and let go as soon as it is there (torchtune's
    `optimizer_in_bwd`, torch's "optimizer step in backward" tutorial).
    """
    return name.removesuffix(IN_BACKWARD), name.endswith(IN_BACKWARD)


def gradient_bytes(name: str, parameters: Sequence[Tensor]) -> int:
    """Return the gradients that are alive at once: all, or the largest where each is used up."""
    sizes = [tensor.bytes for tensor in parameters]
    return max(sizes, default=0) if split_name(name)[1] else sum(sizes)


IN_BACKWARD = "-in-backward"
"""End of an optimizer's name: one step for each parameter as soon as its gradient is there."""

_TABLES = {"adamw-8bit": 2, "paged-adamw-8bit": 2, "lion-8bit": 1, "ademamix-8bit": 2}
"""Tables that the parameters of an optimizer share."""


def paged_bytes(name: str, parameters: Sequence[Tensor]) -> int:
    """Return the bytes of `optimizer_bytes` that torch's allocator neither holds nor counts."""
    if not name.startswith("paged-"):
        return 0
    packed = split_name(name)[0].endswith("8bit")
    return sum(paged_state(tensor, 2, packed=packed) for tensor in parameters)
