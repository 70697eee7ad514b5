"""Which part of a training job each rank holds: weights, gradients, states and their buffers.

    parameters + Workload + optimizer rule -> Shard (of the most loaded rank, or of one)

Model parallelism first (`memplan.parallel.model`: tp, ep, pp), then what data parallelism does with
the pieces (`ddp`, `zero` and `fsdp` beside it): a hybrid is the product of the two.
Activations are not counted here; `Shard.activations` says which share of them a rank has.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from memplan.errors import UsageError
from memplan.footprint.lines import exact_line
from memplan.parallel.ddp import ddp_lines
from memplan.parallel.fsdp import FsdpRank, fsdp_rank
from memplan.parallel.grid import Grid, data_strategy, grid_of
from memplan.parallel.groups import grouped
from memplan.parallel.model import Layout, activation_share, layout_of, pieces
from memplan.parallel.types import (
    FLOATS,
    Piece,
    Shard,
    ShardOptions,
    StateRule,
    elements,
)
from memplan.parallel.zero import ZeroDtypes, touched_elements, zero3_lines, zero12_lines
from memplan.types import Line, Part, Tensor, Workload

__all__ = ["gathered_in", "shard", "shards"]


def shard(
    parameters: Sequence[Tensor],
    workload: Workload,
    rule: StateRule,
    *,
    trainable: Collection[str] | None = None,
    options: ShardOptions | None = None,
    rank: int | None = None,
) -> Shard:
    """Return what one rank of a training job holds, by default the most loaded one.

    Args:
        parameters: the model's tensors in definition order, in the dtype in which it is loaded;
            tied ones name their owner, buffers are passed over.
        workload: strategy, gpus, nodes, tp, pp, dp, ep, cp, precision and grad_accum are read.
        rule: bytes of one parameter's states, such as OPTIMIZERS["adamw"][0].
        trainable: names that get gradients; None = all.
        options: settings of the framework; None = its defaults.
        rank: a global rank; None = the one with the most bytes on its device. Remainders are
            dealt out from the front, so the first rank of each pipeline stage is looked at, and
            with ZeRO-1 and 2 the one whose partition the longest parameters reach into.

    Raises UsageError for an unknown strategy, degrees that do not multiply to the devices, or a
    rank that is not there.
    """
    job = _job(parameters, workload, rule, trainable, options)
    if rank is not None:
        if not 0 <= rank < job.grid.world:
            raise UsageError(
                f"rank {rank} of {job.grid.world}", hint=f"ranks are 0 to {job.grid.world - 1}"
            )
        return _shard(job, rank)
    found = (_shard(job, one) for stage in range(job.grid.pp) for one in _fullest(job, stage))
    return max(found, key=lambda one: one.device_bytes)


def shards(
    parameters: Sequence[Tensor],
    workload: Workload,
    rule: StateRule,
    *,
    trainable: Collection[str] | None = None,
    options: ShardOptions | None = None,
) -> tuple[Shard, ...]:
    """Return what each rank holds, by global rank; the arguments and errors are `shard`'s.

    Its cost is ranks x tensors: for a large job ask `shard` for one rank.
    """
    job = _job(parameters, workload, rule, trainable, options)
    return tuple(_shard(job, rank) for rank in range(job.grid.world))


@dataclass(frozen=True, slots=True)
class _Job:
    """The arguments of `shard`, complete."""

    layout: Layout
    workload: Workload
    rule: StateRule
    trainable: Collection[str] | None
    options: ShardOptions
    grid: Grid
    tied: frozenset[str]
    """Names of tensors that others share."""


def _job(
    parameters: Sequence[Tensor],
    workload: Workload,
    rule: StateRule,
    trainable: Collection[str] | None,
    options: ShardOptions | None,
) -> _Job:
    options = options or ShardOptions()
    grid = grid_of(workload, expert_tensor_parallel=options.expert_tensor_parallel)
    names = None if trainable is None else frozenset(trainable)
    layout = layout_of(parameters, grid.pp, options)
    tied = frozenset(tensor.tied_to for tensor in parameters if tensor.tied_to)
    return _Job(layout, workload, rule, names, options, grid, tied)


def _fullest(job: _Job, stage: int) -> set[int]:
    """Return the ranks of a stage among which the most loaded one is."""
    first = job.grid.first_of_stage(stage)
    if data_strategy(job.workload) not in {"zero1", "zero2"}:
        return {first}
    place = job.grid.place(first)
    found = pieces(job.layout, job.trainable, job.grid, place, job.options)
    dense = [p.tensor for p in found if p.trainable and p.group == job.grid.sharers]
    if not dense:
        return {first}
    touched = touched_elements([elements(tensor) for tensor in dense], job.grid.sharers)
    return {first, first + job.grid.tp * touched.index(max(touched))}


def _shard(job: _Job, rank: int) -> Shard:
    place = job.grid.place(rank)
    found = pieces(job.layout, job.trainable, job.grid, place, job.options)
    micro = job.workload.grad_accum or 1
    sharded = data_strategy(job.workload) == "fsdp2"
    fsdp = _fsdp(job, found) if sharded else FsdpRank(_lines(job, found), ())
    lines = fsdp.lines
    return Shard(
        rank=rank,
        stage=place.pp,
        weights=_one(lines, "weights"),
        gradients=_one(lines, "gradients"),
        optimizer=_one(lines, "optimizer"),
        buffers=_some(lines.get("buffers", ())),
        host=_some(lines.get("host", ())),
        disk=_some(lines.get("disk", ())),
        activations=activation_share(
            job.grid, place, job.options, layers=job.layout.layers[place.pp], micro_batches=micro
        ),
        moments=fsdp.moments,
    )


def _fsdp(job: _Job, found: Sequence[Piece]) -> FsdpRank:
    """Return a rank of FSDP2, embedding and output matrix in groups of their own where lower.

    The script that `emit` writes for torchrun makes them so; accelerate's own wrapping and
    transformers' tensor parallelism leave them in the root, which the band's upper end covers.
    """
    mixed = gathered_in(job.workload)
    more = (job.workload.grad_accum or 1) > 1

    def rank(parts: Sequence[Piece]) -> FsdpRank:
        return fsdp_rank(parts, job.rule, job.options, mixed=mixed, accumulate=more)

    root = rank(found)
    if job.grid.tp > 1 or job.grid.pp > 1 or not job.options.embedding_groups:
        return root
    parts, groups = grouped(found, job.tied, job.options, mixed=mixed)
    if not groups.modules:
        return root
    own = rank(parts)
    (line,), (whole,) = own.lines["buffers"], root.lines["buffers"]
    source = f"{line.source}; {' and '.join(groups.modules)} in groups of their own"
    high = max(line.high_bytes, whole.high_bytes)
    both = replace(line, high_bytes=high, source=source)
    return FsdpRank(own.lines | {"buffers": (both,)}, own.moments)


def _one(lines: dict[str, tuple[Line, ...]], part: Part) -> Line:
    return lines[part][0] if lines.get(part) else exact_line(part, 0, "none")


def _some(lines: Sequence[Line]) -> tuple[Line, ...]:
    return tuple(line for line in lines if line.high_bytes)


def _lines(job: _Job, found: Sequence[Piece]) -> dict[str, tuple[Line, ...]]:
    workload, rule, options = job.workload, job.rule, job.options
    strategy = data_strategy(workload)
    if strategy == "ddp":
        wrapped = job.grid.sharers > 1 or (workload.strategy == "ddp" and job.grid.world == 1)
        return ddp_lines(found, rule, options, wrapped=wrapped)
    kinds = _zero_dtypes(found, workload)
    if strategy == "zero3":
        return zero3_lines(found, rule, options, kinds)
    stage = 1 if strategy == "zero1" else 2
    accumulate = (workload.grad_accum or 1) > 1
    return zero12_lines(found, rule, options, kinds, stage=stage, accumulate=accumulate)


def gathered_in(workload: Workload) -> str | None:
    """Return the dtype in which FSDP2 gathers (its param_dtype), or None for the weights' own."""
    return {"bf16-mixed": "bfloat16", "fp16-mixed": "float16"}.get(workload.precision or "")


def _zero_dtypes(found: Sequence[Piece], workload: Workload) -> ZeroDtypes:
    """Return DeepSpeed's dtypes: "-mixed" keeps 16-bit weights and float32 master weights.

    "bf16" is plain: master weights and states are bfloat16 too (bf16_master_weights_and_grads
    with bf16_optimizer_states).
    """
    named = {
        "bf16": ("bfloat16", "bfloat16"),
        "bf16-mixed": ("bfloat16", "float32"),
        "fp16-mixed": ("float16", "float32"),
        "fp32": ("float32", "float32"),
    }
    if workload.precision in named:
        model, master = named[workload.precision]
        return ZeroDtypes(model=model, master=master)
    stored = [piece.tensor.dtype for piece in found if piece.trainable]
    own = next((dtype for dtype in stored if dtype in FLOATS), "float32")
    return ZeroDtypes(model=own, master=own)
