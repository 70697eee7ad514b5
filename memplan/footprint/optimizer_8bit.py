"""States of bitsandbytes' optimizers (0.50, optim/optimizer.py).

Each 8-bit state is one byte for an element, one float32 for a block of 256, and one table of 256
float32 that all parameters of a kind share. Parameters below 4096 elements keep float32 states,
and so do embeddings under transformers' Trainer (trainer.py registers them).
"""

from __future__ import annotations

import re

from memplan.types import Tensor

__all__ = ["EMBEDDING", "TABLE_BYTES", "elements", "packed_state", "plain_state"]

_BLOCK = 256
_LEAST = 4096
"""Elements from which a state is kept in 8 bits (`min_8bit_size`)."""
TABLE_BYTES = 4 * 256
"""Table of the values that a byte stands for, one for each state of an optimizer."""
EMBEDDING = re.compile(r"(^|\.)(embed\w*|w[tp]e|\w*embeddings?)\.weight$")
"""Input embeddings by name."""


def elements(tensor: Tensor) -> int:
    """Return the number of elements."""
    count = 1
    for size in tensor.shape:
        count *= size
    return count


def packed_state(tensor: Tensor, states: int) -> int:
    """Return the bytes of so many states of one parameter, in 8 bits where they are kept so."""
    count = elements(tensor)
    if count < _LEAST or EMBEDDING.search(tensor.name):
        return plain_state(tensor, states)
    return states * (count + 4 * -(-count // _BLOCK))


def plain_state(tensor: Tensor, states: int) -> int:
    """Return the bytes of so many float32 states of one parameter."""
    return 4 * states * elements(tensor)
