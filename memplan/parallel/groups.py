"""FSDP2 with the embedding and the output matrix as groups of their own, where that is lower.

transformers' models are usually cut at the decoder layers alone: embedding, output matrix and last
norm are then one root group, which stays gathered for a whole step.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from memplan.parallel.fsdp import fsdp_gather_bytes
from memplan.parallel.grid import grid_of
from memplan.parallel.model import layout_of, pieces
from memplan.parallel.types import Piece, ShardOptions
from memplan.types import Tensor, Workload

__all__ = ["Groups", "fsdp_groups", "grouped"]


_ENDS = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|embed_in|lm_head|embed_out)\.weight$"
)
"""Names of embeddings of tokens and output matrices, which transformers calls as modules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Which modules outside the layers become FSDP modules, and what a rank gathers at most."""

    modules: tuple[str, ...]
    """Their paths ("model.embed_tokens"); empty = they stay in the root."""
    bytes: int
    """Gathered weights, full gradients and reduction inputs with these groups, at the peak."""
    root_bytes: int
    """The same with everything outside the layers in the root."""


def fsdp_groups(
    parameters: Sequence[Tensor],
    workload: Workload,
    *,
    trainable: Collection[str] | None = None,
    options: ShardOptions | None = None,
    mixed: str | None = None,
) -> Groups:
    """Return the grouping of the lowest peak, of the first rank.

    Only the embedding and the output matrix are cut out, and only where they share nothing: tied
    ones have to stay in one group. Both ways are worked out by `fsdp_gather_bytes`; the root group
    is kept when it is as low.

    Args:
        parameters: the model's tensors in definition order.
        workload: strategy "fsdp2", degrees and gpus are read.
        trainable: names that get gradients; None = all.
        options: settings of the framework; None = its defaults.
        mixed: dtype in which weights are gathered when it is not their own.
    """
    options = options or ShardOptions()
    grid = grid_of(workload)
    found = pieces(layout_of(parameters, 1, options), trainable, grid, grid.place(0), options)
    tied = frozenset(tensor.tied_to for tensor in parameters if tensor.tied_to)
    return grouped(found, tied, options, mixed=mixed)[1]


def grouped(
    found: Sequence[Piece],
    tied: Collection[str],
    options: ShardOptions,
    *,
    mixed: str | None = None,
) -> tuple[tuple[Piece, ...], Groups]:
    """Return a rank's pieces in the grouping of the lowest peak, and that grouping.

    `tied`: names of tensors that others share.
    """
    root = fsdp_gather_bytes(found, options, mixed=mixed)[1]
    outside = [piece for piece in found if _own(piece, tied)]
    cut = tuple(piece.tensor.name.rpartition(".")[0] for piece in outside)
    apart = tuple(
        replace(piece, unit=piece.tensor.name.rpartition(".")[0], early=False)
        if piece in outside
        else piece
        for piece in found
    )
    own = fsdp_gather_bytes(apart, options, mixed=mixed)[1] if cut else root
    if own >= root:
        return tuple(found), Groups(modules=(), bytes=root, root_bytes=root)
    return apart, Groups(modules=cut, bytes=own, root_bytes=root)


def _own(piece: Piece, tied: Collection[str]) -> bool:
    """Is a piece the embedding of tokens or the output matrix, and shares nothing.

    Nothing else is cut out: models read some matrices without calling their module (a tower's
    position table), which would then find it divided.
    """
    tensor = piece.tensor
    known = piece.unit is None and _ENDS.search(tensor.name) is not None
    return known and not tensor.tied_to and tensor.name not in tied
