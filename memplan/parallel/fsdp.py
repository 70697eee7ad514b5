"""FSDP2 (torch.distributed.fsdp.fully_shard): each parameter divided along its first axis.

Read in torch 2.13, torch/distributed/fsdp/_fully_shard: _fsdp_param.py (chunks, padding),
_fsdp_collectives.py (buffers) and _fsdp_param_group.py (what is alive when).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from memplan.footprint.lines import band_line, exact_line
from memplan.parallel.model import chunk
from memplan.parallel.types import (
    ELEMENT_BYTES,
    FLOATS,
    Moment,
    Piece,
    ShardOptions,
    StateRule,
    elements,
)
from memplan.types import Line, Tensor

__all__ = ["FsdpRank", "fsdp_gather_bytes", "fsdp_moments", "fsdp_part", "fsdp_rank"]


def fsdp_part(piece: Piece, *, padded: bool) -> Tensor:
    """Return what one rank has of a parameter: ceil(rows / n) rows until they run out.

    `padded`: as it is stored. Every rank allocates the rows of the first one, so that they can be
    gathered without a copy; the parameter is a view of its own rows, and optimizer states, which
    are made like that view, are not padded.
    """
    tensor = piece.tensor
    if not tensor.shape:
        return tensor
    rows = chunk(tensor.shape[0], piece.group, 0 if padded else piece.position)
    part = replace(tensor, shape=(rows, *tensor.shape[1:]))
    return replace(part, bytes=elements(part) * _element(tensor))


def _element(tensor: Tensor) -> int:
    count = elements(tensor)
    return ELEMENT_BYTES.get(tensor.dtype) or (-(-tensor.bytes // count) if count else 0)


@dataclass(frozen=True, slots=True)
class _Unit:
    """One FSDP module, in bytes."""

    gathered: int
    """The output of its all-gather, padded to n equal parts."""
    unsharded: int
    """Its whole parameters, copied out of that, padded too."""
    gradients: int
    """Their gradients before reduction."""
    scattered: int
    """The input of its reduce-scatter, padded."""
    reduced: int
    """The rank's part of its gradients, padded: the output of its reduce-scatter."""
    last: int
    """Gradient of its last parameter, which torch's loop holds until it is reduced."""


def _unit(pieces: Sequence[Piece], options: ShardOptions, *, mixed: str | None) -> _Unit:
    gathered = unsharded = gradients = scattered = own = last = 0
    for piece in pieces:
        cast = mixed is not None and piece.tensor.dtype in FLOATS
        width = ELEMENT_BYTES[mixed] if cast and mixed else _element(piece.tensor)
        reduced = ELEMENT_BYTES[options.reduce_dtype] if cast else width
        whole = piece.group * elements(fsdp_part(piece, padded=True))
        unsharded += whole * width
        gathered += whole * width if piece.group > 1 else 0
        if piece.trainable:
            gradients += elements(piece.tensor) * width
            scattered += whole * reduced
            own += fsdp_part(piece, padded=True).bytes
            last = elements(piece.tensor) * width if piece.group > 1 else 0
    return _Unit(gathered, unsharded, gradients, scattered, own, last)


_NOTHING = _Unit(0, 0, 0, 0, 0, 0)
_NONE = Fraction(0)
_LAST = {False: _NONE, True: Fraction(1, 4)}
"""Is it the last module -> share of the loss that is alive in its backward pass."""


def fsdp_gather_bytes(
    pieces: Sequence[Piece], options: ShardOptions, *, mixed: str | None = None
) -> tuple[int, int, int]:
    """Return the bytes of gathered weights, full gradients and reduction inputs: (low, all, high).

    All is the highest of `fsdp_moments`; low is the root and the largest layer once (the
    optimizer's step holds none at all), high one more gathered layer and its reduction input.
    Against torch's own FSDPMemTracker (8 layers, 4 and 8 ranks, both settings): the same, without
    what the tracker calls temporary beyond the weights' gradients.
    """
    return _gathered(pieces, options, fsdp_moments(pieces, options, mixed=mixed), mixed=mixed)


def _gathered(
    pieces: Sequence[Piece],
    options: ShardOptions,
    moments: Sequence[Moment],
    *,
    mixed: str | None,
) -> tuple[int, int, int]:
    root, layers = _units(pieces, options, mixed=mixed)
    largest = max(layers, key=lambda unit: unit.unsharded, default=_NOTHING)
    value = max(moment.buffers for moment in moments)
    low = min(value, root.unsharded + largest.unsharded)
    return low, value, value + largest.gathered + largest.scattered


def _units(
    pieces: Sequence[Piece], options: ShardOptions, *, mixed: str | None
) -> tuple[_Unit, list[_Unit]]:
    """Return the root and the other FSDP modules in order."""
    names: dict[str | None, list[Piece]] = {None: []}
    for piece in pieces:
        names.setdefault(piece.unit, []).append(piece)
    root = _unit(names.pop(None), options, mixed=mixed)
    return root, [_unit(group, options, mixed=mixed) for group in names.values()]


def fsdp_moments(
    pieces: Sequence[Piece],
    options: ShardOptions,
    *,
    mixed: str | None = None,
    accumulate: bool = False,
) -> tuple[Moment, ...]:
    """Return the instants of the passes at which a rank can hold most.

    One FSDP module for each numbered layer, and the root for the rest; `mixed` is the dtype in
    which weights are gathered when it is not their own. The root stays gathered from the forward
    pass to the end of the backward pass, its gradients are reduced last. Alive beside it:

    forward, layer i: its weights, its all-gather's output and that of the layer before, which is
    held until the copy is done (implicit prefetch); the saved tensors of the layers up to it;
    backward, layer i: its weights, its full gradients, the reduction input of the layer after it,
    and the all-gather's output of the layer before it (prefetch), beside the root's gradients
    that come first (output matrix, tied embedding), and the saved tensors up to it;
    last: the root's full gradients and the input of their reduction; of each module's gradients,
    the last parameter's is held until the reduction's output is there.

    The loss is worked out between them, when layers are given back, but for the output of the last
    all-gather, and all is saved; one of its four copies of the logits, their gradient, is alive in
    the last module's backward pass.

    Without reshard_after_forward every layer stays gathered up to its own backward pass. Reduced
    gradients add up from the last layer to the first, the root's come last; with `accumulate`
    those of earlier micro-batches are there from the beginning.
    """
    root, layers = _units(pieces, options, mixed=mixed)
    outside = [piece for piece in pieces if piece.unit is None and piece.early]
    first = _unit(outside, options, mixed=mixed).gradients
    whole = root.reduced + sum(layer.reduced for layer in layers)
    count = max(len(layers), 1)
    extra = 1 if options.gloo else 0

    def moment(
        buffers: int, done: int, alive: int, *, loss: Fraction = _NONE, output: int = 0
    ) -> Moment:
        gradients = (whole if accumulate else done) + output
        saved = Fraction(alive, count)
        return Moment(gradients=gradients, buffers=buffers, saved=saved, loss=loss)

    found = [moment(root.gathered + max(root.unsharded, extra * root.gathered), 0, 0)]
    stays, done = 0, whole - root.reduced
    for i, layer in enumerate(layers):
        before = layers[i - 1] if i else root
        after = layers[i + 1] if i + 1 < len(layers) else _NOTHING
        ahead = 0 if not options.reshard_after_forward or not i else before.gathered
        done -= layer.reduced
        forward = layer.gathered + before.gathered
        forward += max(layer.unsharded, extra * layer.gathered)
        backward = layer.unsharded + layer.gradients + after.scattered + ahead
        copy = extra * layer.scattered if layer.gathered else 0
        around = root.unsharded + first + stays + ahead + layer.scattered + copy
        found += [
            moment(root.unsharded + stays + forward, 0, i + 1),
            moment(
                root.unsharded + first + stays + backward, done, i + 1, loss=_LAST[i + 1 == count]
            ),
            moment(around + layer.gradients, done, i),
            moment(around + layer.last, done, i, output=layer.reduced),
        ]
        stays += 0 if options.reshard_after_forward else layer.unsharded
    held = layers[-1].gathered if layers else 0
    found.append(moment(root.unsharded + stays + held, 0, count, loss=Fraction(1)))
    done = whole - root.reduced
    copy = extra * root.scattered if root.gathered else 0
    if layers:
        last = root.unsharded + root.gradients + layers[0].scattered
        found.append(moment(last, done, 0))
    around = root.scattered + copy
    found += [
        moment(around + root.gradients, done, 0),
        moment(around + root.last, done, 0, output=root.reduced),
    ]
    return tuple(found)


@dataclass(frozen=True, slots=True)
class FsdpRank:
    """What FSDP2 makes of one rank."""

    lines: dict[str, tuple[Line, ...]]
    """By part, with "host" for what lies in host memory."""
    moments: tuple[Moment, ...]
    """The passes in order."""


def fsdp_rank(
    pieces: Sequence[Piece],
    rule: StateRule,
    options: ShardOptions,
    *,
    mixed: str | None,
    accumulate: bool = False,
) -> FsdpRank:
    """Return a rank's lines; with "cpu" offload its parts lie in host memory (CPUOffloadPolicy).

    Weights and gradients are the padded parts, in the parameters' own dtype (also when they are
    gathered and reduced in another), states those of the rank's own rows. Offloaded gradients are
    copies of the rank's own rows, without padding. The collectives' buffers are a formula
    (`fsdp_moments`): what they take at the highest moment beyond the gradients' line, as most
    gradients are not reduced yet when the buffers are largest.
    """
    trainable = [piece for piece in pieces if piece.trainable]
    offload = "cpu" in {options.offload_param, options.offload_optimizer}
    weights = sum(fsdp_part(piece, padded=True).bytes for piece in pieces)
    gradients = sum(fsdp_part(piece, padded=not offload).bytes for piece in trainable)
    states = sum(rule(fsdp_part(piece, padded=False)) for piece in trainable)
    ranks = max((piece.group for piece in pieces), default=1)
    own = (
        exact_line("weights", weights, f"FSDP2: ceil(rows / {ranks}) rows of each parameter"),
        exact_line("gradients", gradients, "FSDP2: one for each part, in its dtype"),
        exact_line("optimizer", states, "FSDP2: states of the rank's own rows"),
    )
    moments = fsdp_moments(pieces, options, mixed=mixed, accumulate=accumulate)
    if offload:
        moments = tuple(replace(moment, gradients=0) for moment in moments)
    buffers = (_buffers(pieces, options, moments, 0 if offload else gradients, mixed=mixed),)
    if offload:
        empty = tuple(exact_line(line.part, 0, "in host memory (CPUOffloadPolicy)") for line in own)
        return FsdpRank(_by_part(empty) | {"buffers": buffers, "host": own}, moments)
    return FsdpRank(_by_part(own) | {"buffers": buffers}, moments)


def _buffers(
    pieces: Sequence[Piece],
    options: ShardOptions,
    moments: Sequence[Moment],
    gradients: int,
    *,
    mixed: str | None,
) -> Line:
    low, value, high = _gathered(pieces, options, moments, mixed=mixed)
    most = max(moment.gradients + moment.buffers for moment in moments)
    beyond = max(most - gradients, 0)
    kept = "resharded" if options.reshard_after_forward else "kept"
    text = f"FSDP2: gathered weights, full gradients and reductions; layers {kept} after forward"
    return band_line(
        "buffers",
        beyond,
        low=min(beyond, max(low - gradients, 0)),
        high=beyond + high - value,
        source=text,
    )


def _by_part(lines: Sequence[Line]) -> dict[str, tuple[Line, ...]]:
    return {str(line.part): (line,) for line in lines}
