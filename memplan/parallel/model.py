"""Tensor, expert, pipeline and context parallelism: which part of a model one rank has.

Weights first: a stage takes whole layers, tensor parallelism a part of each matrix, expert
parallelism some of the experts. What is left is a list of pieces, which data parallelism divides
(`ddp`, `zero` and `fsdp` beside this). Then the share of the saved tensors.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from memplan.errors import UsageError
from memplan.parallel.grid import Grid, Place
from memplan.parallel.types import ActivationShare, Piece, ShardOptions, elements
from memplan.types import Tensor

__all__ = [
    "DEFAULT_PLAN",
    "Layout",
    "Placed",
    "activation_share",
    "chunk",
    "in_flight",
    "layout_of",
    "pieces",
    "resized",
    "stage_layers",
    "style_of",
    "tensor_part",
    "unit_of",
]

DEFAULT_PLAN: Mapping[str, str] = {
    "q_proj": "colwise",
    "k_proj": "colwise",
    "v_proj": "colwise",
    "qkv_proj": "colwise",
    "q_b_proj": "colwise",
    "kv_b_proj": "colwise",
    "o_proj": "rowwise",
    "gate_proj": "colwise",
    "up_proj": "colwise",
    "down_proj": "rowwise",
    "experts.gate_up_proj": "packed_colwise",
    "experts.down_proj": "rowwise",
    "mlp.gate_up_proj": "colwise",
    "lm_head": "colwise",
    "embed_tokens": "embedding_rowwise",
}
"""Last parts of a module's name -> style. Source: base_model_tp_plan of the families of
transformers 5.23, its `lm_head` ("colwise_gather_output") and its input embedding, which it
divides by rows of the vocabulary (seen in a real run of two processes)."""

_INDEX = re.compile(r"^(.*?)\.(\d+)(?:\.|$)")
_EXPERT = re.compile(r"(?:^|\.)experts\.(\d+)\.")
_STACKED = re.compile(r"(?:^|\.)experts\.")


def unit_of(name: str) -> str | None:
    """Return the numbered layer that a parameter belongs to ("model.layers.3"), or None."""
    match = _INDEX.match(name)
    return f"{match[1]}.{match[2]}" if match else None


def chunk(size: int, parts: int, position: int) -> int:
    """Return how much of `size` one of `parts` gets: ceil(size / parts) each until it runs out.

    Source: torch.chunk, which DTensor's Shard and FSDP2 follow; late ranks may get nothing.
    """
    step = -(-size // parts)
    return max(0, min(step, size - position * step))


@dataclass(frozen=True, slots=True)
class Placed:
    """One parameter and what its name says about it."""

    tensor: Tensor
    """Whole."""
    unit: str | None
    """Its numbered layer."""
    style: str
    """How tensor parallelism divides it; "" = not at all."""
    early: bool
    """Its gradient comes before those of the layers."""
    names: tuple[str, ...]
    """Names under which it may be called trainable: its own, and its owner's when tied."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A model by pipeline stage."""

    stages: tuple[tuple[Placed, ...], ...]
    """Parameters of each stage, in the model's order."""
    layers: tuple[int, ...]
    """Decoder layers of each stage."""
    experts: int
    """Experts of one layer that are tensors of their own; 0 = stacked, or none."""


def stage_layers(count: int, pp: int, wanted: Sequence[int] | None = None) -> tuple[int, ...]:
    """Return the decoder layers of each stage: L / p each, the first ones one more.

    Raises UsageError when there are more stages than layers, or `wanted` does not add up.
    """
    if wanted is not None:
        if len(wanted) != pp or sum(wanted) != count or min(wanted) < 0:
            raise UsageError(
                f"stages of {tuple(wanted)} layers do not make {count} layers in {pp} stages",
                hint="name one count for each stage, adding up to the model's layers",
            )
        return tuple(wanted)
    if pp > max(count, 1):
        raise UsageError(
            f"{pp} pipeline stages for {count} layers", hint=f"--pp {max(count, 1)} or less"
        )
    return tuple(count // pp + (1 if i < count % pp else 0) for i in range(pp))


def layout_of(parameters: Sequence[Tensor], pp: int, options: ShardOptions) -> Layout:
    """Return which parameters each stage has: whole layers in order, the rest first or last.

    What stands before the layers (the embedding, a tower) goes to the first stage, the last norm
    and the output matrix to the last one. A tied tensor costs nothing where its owner lives; on
    another stage it is a copy of its own (Megatron's first and last stage both hold a tied
    embedding).

    Raises UsageError when the stages do not fit the layers.
    """
    units = {tensor.name: unit_of(tensor.name) for tensor in parameters}
    stage, counts = _stages(parameters, units, pp, options)
    owners = {tensor.name: tensor for tensor in parameters}
    tied = {tensor.tied_to for tensor in parameters if tensor.tied_to}
    where = {
        name: stage.get(unit, 0) if unit else (pp - 1 if _after_layers(name) else 0)
        for name, unit in units.items()
    }
    found: list[list[Placed]] = [[] for _ in range(pp)]
    experts = 0
    for tensor in parameters:
        name, owner = tensor.name, owners.get(tensor.tied_to or "")
        if tensor.kind != "parameter":
            continue
        if tensor.tied_to and (owner is None or where[owner.name] == where[name]):
            continue
        whole = replace(owner, name=name, tied_to=None) if owner else tensor
        match = _EXPERT.search(name)
        experts = max(experts, int(match[1]) + 1) if match else experts
        unit = units[name]
        early = unit is None and (_after_layers(name) or name in tied)
        names = (name, owner.name) if owner else (name,)
        found[where[name]].append(
            Placed(whole, unit, style_of(name, options.tp_plan), early, names)
        )
    return Layout(tuple(map(tuple, found)), counts, experts)


def _stages(
    parameters: Sequence[Tensor], units: Mapping[str, str | None], pp: int, options: ShardOptions
) -> tuple[dict[str, int], tuple[int, ...]]:
    """Return the stage of each decoder layer, and the layers of each stage.

    The decoder's layers are the numbered list with the most bytes.
    """
    sizes: dict[str, int] = {}
    for tensor in parameters:
        unit = units[tensor.name]
        if unit:
            sizes[unit] = sizes.get(unit, 0) + tensor.bytes
    lists: dict[str, list[str]] = {}
    for unit in sizes:
        lists.setdefault(unit.rpartition(".")[0], []).append(unit)
    names = max(lists.values(), key=lambda some: sum(sizes[unit] for unit in some), default=[])
    names = sorted(names, key=lambda unit: int(unit.rpartition(".")[2]))
    counts = stage_layers(len(names), pp, options.stage_layers)
    stage = [index for index, count in enumerate(counts) for _ in range(count)]
    return dict(zip(names, stage, strict=True)), counts


def _after_layers(name: str) -> bool:
    """Is a parameter outside the layers used after them: the last norm and the output matrix."""
    last = name.rsplit(".", 2)[-2] if "." in name else name
    return "head" in last or "output" in last or last.endswith(("norm", "ln_f", "norm_f"))


def style_of(name: str, plan: Mapping[str, str] | None) -> str:
    """Return how tensor parallelism divides a parameter: by a plan, None = by its name; "" = not.

    A plan's keys have "*" for numbers.
    """
    module = name.removesuffix(".weight").removesuffix(".bias")
    if plan is None:
        found = [key for key in DEFAULT_PLAN if ("." + module).endswith("." + key)]
        return DEFAULT_PLAN[max(found, key=len)] if found else ""
    for pattern, style in plan.items():
        if re.search(r"(?:^|\.)" + re.escape(pattern).replace(r"\*", r"\d+") + "$", module):
            return style
    return ""


def tensor_part(tensor: Tensor, parts: int, position: int, style: str) -> Tensor:
    """Return one rank's part of a tensor.

    colwise: the rows of a linear layer's weight (its output features) and its bias; rowwise: its
    columns, the bias whole; packed: each half of a fused gate and up on its own. Source:
    transformers 5.23 distributed/tensor_parallel.py, DTensor's Shard.
    """
    shape = tensor.shape
    bias = len(shape) == 1
    if parts == 1 or not shape:
        return tensor
    if "colwise" in style and style != "embedding_colwise":
        axis = 0 if bias else len(shape) - 2
    elif style == "embedding_rowwise":
        axis = 0
    elif ("rowwise" in style and not bias) or style == "embedding_colwise":
        axis = len(shape) - 1
    else:
        return tensor
    packed = 2 if style.startswith("packed") and shape[axis] % 2 == 0 and not bias else 1
    own = packed * chunk(shape[axis] // packed, parts, position)
    return resized(tensor, (*shape[:axis], own, *shape[axis + 1 :]))


def resized(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor of another shape, its bytes in proportion."""
    part = replace(tensor, shape=shape)
    whole = elements(tensor)
    size = -(-tensor.bytes * elements(part) // whole) if whole else 0
    return replace(part, bytes=size)


def _expert_part(tensor: Tensor, parts: int, position: int, count: int) -> Tensor | None:
    """Return a rank's experts of one tensor: by index, or part of the first axis when stacked."""
    match = _EXPERT.search(tensor.name)
    if match:
        step = -(-count // parts)
        return tensor if int(match[1]) // step == position else None
    if not tensor.shape:
        return tensor
    return resized(tensor, (chunk(tensor.shape[0], parts, position), *tensor.shape[1:]))


def pieces(
    layout: Layout,
    trainable: Collection[str] | None,
    grid: Grid,
    place: Place,
    options: ShardOptions,
) -> tuple[Piece, ...]:
    """Return what one rank has of its stage; `trainable` names what gets gradients, None = all."""
    found = (
        _piece(placed, trainable, grid, place, options, experts=layout.experts)
        for placed in layout.stages[place.pp]
    )
    return tuple(piece for piece in found if piece is not None)


def _piece(
    placed: Placed,
    trainable: Collection[str] | None,
    grid: Grid,
    place: Place,
    options: ShardOptions,
    *,
    experts: int,
) -> Piece | None:
    tensor, style = placed.tensor, placed.style
    among = place.dp * grid.cp + place.cp
    expert = grid.ep > 1 and _STACKED.search(tensor.name) is not None
    if not expert:
        part, group = tensor_part(tensor, grid.tp, place.tp, style), grid.sharers
    elif options.expert_tensor_parallel:
        part = tensor_part(tensor, grid.tp, place.tp, style)
        group = grid.sharers // grid.ep
    else:
        part, group = tensor, grid.sharers * grid.tp // grid.ep
        among = among * grid.tp + place.tp
    if expert:
        own = _expert_part(part, grid.ep, among % grid.ep, experts)
        if own is None:
            return None
        part, among = own, among // grid.ep
    whole = style == "embedding_rowwise" and part is not tensor
    return Piece(
        tensor=part,
        gradient_bytes=tensor.bytes if whole else part.bytes,
        early=placed.early,
        unit=placed.unit,
        group=group,
        position=among,
        trainable=trainable is None or any(name in trainable for name in placed.names),
    )


def in_flight(options: ShardOptions, *, stages: int, stage: int, micro_batches: int) -> Fraction:
    """Return the micro-batches whose saved tensors a stage keeps at once.

    GPipe: all m (Huang et al. 2019). 1F1B: min(m, p - i) on stage i (Narayanan et al. 2021).
    Interleaved with v chunks: 2(p - i - 1) + (v - 1)p + 1 chunks, each 1 / v of the stage, at most
    m; on the first stage that is p(1 + (p - 1) / (pv)), the factor of Korthikanti et al. 2022 and
    of Megatron-LM's theoretical_memory_usage.py.
    """
    if stages == 1 or options.schedule == "gpipe":
        return Fraction(1 if stages == 1 else micro_batches)
    if options.schedule == "1f1b":
        return Fraction(min(micro_batches, stages - stage))
    warm = 2 * (stages - stage - 1) + (options.chunks - 1) * stages + 1
    return min(Fraction(micro_batches), Fraction(warm, options.chunks))


def activation_share(
    grid: Grid, place: Place, options: ShardOptions, *, layers: int, micro_batches: int
) -> ActivationShare:
    """Return a rank's share of the saved tensors.

    Tensor parallelism divides 24 of the 34 bytes that a layer keeps of each token's hidden
    element and leaves 10 (inputs of norms and linear layers, dropout masks) on every rank; with
    sequence parallelism all 34 are divided (Korthikanti et al. 2022, table 2, flash or selective
    recomputation). Context parallelism divides the sequence; ring attention holds two blocks of
    keys and values of other ranks beside it, which the band of the activations must cover.
    """
    kept = in_flight(options, stages=grid.pp, stage=place.pp, micro_batches=micro_batches)
    tensor = Fraction(1)
    if grid.tp > 1:
        tensor = Fraction(1, grid.tp)
        if not options.sequence_parallel:
            tensor = Fraction(10, 34) + Fraction(24, 34) * tensor
    said = [f"{layers} layers"]
    if grid.pp > 1:
        said.append(f"{float(kept):.4g} micro-batches in flight ({options.schedule})")
    if grid.tp > 1:
        kind = "with" if options.sequence_parallel else "without"
        said.append(f"tp {grid.tp} {kind} sequence parallelism (Korthikanti 2022)")
    if grid.cp > 1:
        said.append(f"1/{grid.cp} of each sequence")
    return ActivationShare(
        layers=layers,
        micro_batches=kept,
        sequence=Fraction(1, grid.cp),
        tensor=tensor,
        logits=place.pp == grid.pp - 1,
        source=", ".join(said),
    )
