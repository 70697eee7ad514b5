"""States of optimizers in a few bits: bitsandbytes' (0.50, optim/optimizer.py) and torchao's.

Each 8-bit state is one byte for an element, one float32 for a block of 256, and one table of 256
float32 that all parameters of a kind share. Parameters below 4096 elements keep float32 states,
and so do embeddings under transformers' Trainer (trainer.py registers them).
"""

from __future__ import annotations

import re

from memplan.types import Tensor

__all__ = [
    "EMBEDDING",
    "PAGED_FROM",
    "TABLE_BYTES",
    "elements",
    "packed_state",
    "paged_state",
    "plain_state",
    "torchao_pieces",
]

_BLOCK = 256
_LEAST = 4096
"""Elements from which a state is kept in 8 bits (`min_8bit_size`)."""
TABLE_BYTES = 4 * 256
"""Table of the values that a byte stands for, one for each state of an optimizer."""
PAGED_FROM = 100_000
"""Elements from which a paged optimizer's state lies in unified memory (`get_state_buffer`)."""
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


def paged_state(tensor: Tensor, states: int, *, packed: bool) -> int:
    """Return those bytes of the states of one parameter that lie in unified memory.

    The scales of blocks (absmax) stay in torch's own.
    """
    count = elements(tensor)
    if count < PAGED_FROM:
        return 0
    small = packed and not EMBEDDING.search(tensor.name)
    return states * count * (1 if small else 4)


def torchao_pieces(tensor: Tensor, bits: int, *, table: bool = True) -> tuple[int, ...]:
    """Return the bytes of each tensor that torchao's AdamW keeps for one parameter.

    Two moments of `bits` bits an element, each with a float32 scale for a block (256 elements, of
    4 bits 128) and a float32 table of its own (not for float8), and a step. A parameter below 4096
    elements, or with a rest when cut into blocks, keeps moments like itself.

    Source: torchao 0.18, optim/adam.py (_new_buffer) and optim/subclass_{8bit,4bit,fp8}.py.
    """
    count, block = elements(tensor), 128 if bits == 4 else 256
    if count < _LEAST or count % block:
        return (tensor.bytes, tensor.bytes, 4)
    moment = (count * bits // 8, 4 * count // block, *((4 * 2**bits,) if table else ()))
    return (*moment, *moment, 4)
