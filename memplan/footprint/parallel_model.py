"""Tensor, expert, pipeline and context parallelism: which part of a model one rank has.

Weights first: a stage takes whole layers, tensor parallelism a part of each matrix, expert
parallelism some of the experts. What is left is a list of pieces, which data parallelism divides
(`parallel_ddp`, `parallel_zero`, `parallel_fsdp`). Then the share of the saved tensors.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from memplan.errors import UsageError
from memplan.footprint.parallel_grid import Grid, Place
from memplan.footprint.parallel_types import ActivationShare, Piece, ShardOptions, elements
from memplan.types import Tensor

__all__ = [
    "DEFAULT_PLAN",
    "activation_share",
    "chunk",
    "in_flight",
    "pieces",
    "stage_layers",
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
class _Layers:
    """Units of a model by stage."""

    main: str
    """Where the decoder layers live ("model.layers")."""
    stage: Mapping[str, int]
    """Layer -> stage."""
    per_stage: tuple[int, ...]


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


def _layers(parameters: Sequence[Tensor], pp: int, options: ShardOptions) -> _Layers:
    sizes: dict[str, int] = {}
    units: dict[str, dict[str, None]] = {}
    for tensor in parameters:
        unit = unit_of(tensor.name)
        if unit:
            home = unit.rpartition(".")[0]
            sizes[home] = sizes.get(home, 0) + tensor.bytes
            units.setdefault(home, {})[unit] = None
    main = max(sizes, key=lambda home: sizes[home], default="")
    names = sorted(units.get(main, ()), key=lambda unit: int(unit.rpartition(".")[2]))
    counts = stage_layers(len(names), pp, options.stage_layers)
    stage = [index for index, count in enumerate(counts) for _ in range(count)]
    return _Layers(main, dict(zip(names, stage, strict=True)), counts)


def _after_layers(name: str) -> bool:
    """Is a parameter outside the layers used after them: the last norm and the output matrix."""
    last = name.rsplit(".", 2)[-2] if "." in name else name
    return "head" in last or "output" in last or last.endswith(("norm", "ln_f", "norm_f"))


def _style(name: str, plan: Mapping[str, str] | None) -> str:
    module = name.removesuffix(".weight").removesuffix(".bias")
    if plan is None:
        found = [key for key in DEFAULT_PLAN if ("." + module).endswith("." + key)]
        return DEFAULT_PLAN[max(found, key=len)] if found else ""
    for pattern, style in plan.items():
        if re.search(r"(?:^|\.)" + re.escape(pattern).replace(r"\*", r"\d+") + "$", module):
            return style
    return ""


def _tensor_part(tensor: Tensor, parts: int, position: int, style: str) -> Tensor:
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
    return _resized(tensor, (*shape[:axis], own, *shape[axis + 1 :]))


def _resized(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
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
    return _resized(tensor, (chunk(tensor.shape[0], parts, position), *tensor.shape[1:]))


def pieces(
    parameters: Sequence[Tensor],
    trainable: Collection[str] | None,
    grid: Grid,
    place: Place,
    options: ShardOptions,
) -> tuple[tuple[Piece, ...], int]:
    """Return the pieces of one rank, and the decoder layers of its stage.

    A tied tensor costs nothing where its owner lives; on another pipeline stage it is a copy of
    its own (Megatron's first and last stage both hold a tied embedding).
    """
    layers = _layers(parameters, grid.pp, options)
    owners = {tensor.name: tensor for tensor in parameters}
    experts = 1 + max((int(m[1]) for t in parameters if (m := _EXPERT.search(t.name))), default=-1)
    tied = {tensor.tied_to for tensor in parameters if tensor.tied_to}
    found = []
    for tensor in parameters:
        where = _stage_of(tensor.name, layers, grid.pp)
        if tensor.kind != "parameter" or where != place.pp:
            continue
        if tensor.tied_to:
            owner = owners.get(tensor.tied_to)
            if owner is None or _stage_of(owner.name, layers, grid.pp) == where:
                continue
            local = replace(owner, name=tensor.name, tied_to=None)
        else:
            local = tensor
        asked = trainable is None or local.name in trainable
        asked = asked or (tensor.tied_to or "") in (trainable or ())
        piece = _piece(local, grid, place, options, experts=experts, trainable=asked, tied=tied)
        if piece is not None:
            found.append(piece)
    return tuple(found), layers.per_stage[place.pp]


def _stage_of(name: str, layers: _Layers, pp: int) -> int:
    unit = unit_of(name)
    if unit is None:
        return pp - 1 if _after_layers(name) else 0
    return layers.stage.get(unit, 0)


def _piece(
    tensor: Tensor,
    grid: Grid,
    place: Place,
    options: ShardOptions,
    *,
    experts: int,
    trainable: bool,
    tied: Collection[str],
) -> Piece | None:
    unit = unit_of(tensor.name)
    among = place.dp * grid.cp + place.cp
    style = _style(tensor.name, options.tp_plan)
    if grid.ep == 1 or not _STACKED.search(tensor.name):
        part = _tensor_part(tensor, grid.tp, place.tp, style)
        group = grid.sharers
    elif options.expert_tensor_parallel:
        part = _tensor_part(tensor, grid.tp, place.tp, style)
        group = grid.sharers // grid.ep
    else:
        part = tensor
        group = grid.sharers * grid.tp // grid.ep
        among = among * grid.tp + place.tp
    if grid.ep > 1 and _STACKED.search(tensor.name):
        own = _expert_part(part, grid.ep, among % grid.ep, experts)
        if own is None:
            return None
        part, among = own, among // grid.ep
    whole = style == "embedding_rowwise" and part is not tensor
    return Piece(
        tensor=part,
        gradient_bytes=tensor.bytes if whole else part.bytes,
        early=unit is None and (_after_layers(tensor.name) or tensor.name in tied),
        unit=unit,
        group=group,
        position=among,
        trainable=trainable,
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
