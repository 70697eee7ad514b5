"""DeepSpeed ZeRO stages 1, 2 and 3: what each rank keeps, and what offloading moves.

Read in DeepSpeed 0.19.8: runtime/zero/stage_1_and_2.py, stage3.py, partition_parameters.py,
partitioned_param_coordinator.py, config.py, offload_config.py. Symbols: N trainable elements, n
ranks that share them, p this rank's elements of the partition, e bytes of one element of the
weights, m of the master weights (4, or e without mixed precision), A elements of the parameters
that reach into a rank's partition.

One optimizer parameter group is assumed; each further one (no weight decay for vectors, as the
Trainer makes) pads by itself, at most 2n elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from memplan.footprint.lines import band_line, exact_line
from memplan.parallel.types import (
    ELEMENT_BYTES,
    FLOATS,
    Piece,
    ShardOptions,
    StateRule,
    elements,
)
from memplan.types import Line, Tensor

__all__ = [
    "ALIGNMENT",
    "ZeroDtypes",
    "partition_elements",
    "touched_elements",
    "zero3_lines",
    "zero12_lines",
]

ALIGNMENT = 2
"""Elements to which each rank's part of a flat group is aligned (nccl_start_alignment_factor)."""

Lines = dict[str, tuple[Line, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroDtypes:
    """In which dtypes a job keeps its weights."""

    model: str
    """dtype of the weights, gradients and buckets."""
    master: str
    """dtype of the optimizer's copy of the weights and of its states."""

    @property
    def e(self) -> int:
        """Bytes of one element of the weights."""
        return ELEMENT_BYTES[self.model]

    @property
    def m(self) -> int:
        """Bytes of one element of the master weights."""
        return ELEMENT_BYTES[self.master]


def partition_elements(count: int, ranks: int) -> int:
    """Return p of a flat group of `count` elements: ceil(count / 2n) · 2.

    Stages 1 and 2 put all trainable parameters end to end, pad to a multiple of 2n and cut
    into n equal parts (flatten_dense_tensors_aligned, get_data_parallel_partitions).
    """
    return -(-count // (ALIGNMENT * ranks)) * ALIGNMENT


def _groups(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Return pieces that are divided among the same ranks (experts have fewer than the rest)."""
    found: dict[int, list[Piece]] = {}
    for piece in pieces:
        found.setdefault(piece.group, []).append(piece)
    return list(found.values())


def _stored(tensor: Tensor, element: int) -> int:
    """Return bytes in the job's dtype; quantized weights keep their own."""
    return elements(tensor) * element if tensor.dtype in FLOATS else tensor.bytes


def _flat(count: int, dtype: str) -> Tensor:
    size = count * ELEMENT_BYTES[dtype]
    return Tensor(name="flat", shape=(count,), dtype=dtype, bytes=size)


def touched_elements(sizes: Sequence[int], ranks: int) -> list[int]:
    """Return A of each rank: parameters that reach into its partition, whole.

    `sizes`: elements of each parameter, in order. Source: get_partition_info.
    """
    found = [0] * ranks
    part = partition_elements(sum(sizes), ranks)
    at = 0
    for size in sizes:
        for rank in range(at // part, (at + size - 1) // part + 1) if size else ():
            found[rank] += size
        at += size
    return found


@dataclass(slots=True)
class _Sums:
    """What stages 1 and 2 add up over groups, in elements (states in bytes)."""

    weights: int = 0
    part: int = 0
    touched: int = 0
    trainable: int = 0
    states: int = 0
    largest: int = 0


def _sums(pieces: Sequence[Piece], rule: StateRule, kinds: ZeroDtypes) -> _Sums:
    sums = _Sums()
    for group in _groups([piece for piece in pieces if piece.trainable]):
        sizes = [elements(piece.tensor) for piece in group]
        count = sum(sizes)
        part = partition_elements(count, group[0].group)
        sums.weights += part * group[0].group
        sums.part += part
        sums.touched += touched_elements(sizes, group[0].group)[group[0].position]
        sums.trainable += count
        sums.states += rule(_flat(part, kinds.master))
        sums.largest = max(sums.largest, *sizes)
    return sums


def zero12_lines(
    pieces: Sequence[Piece],
    rule: StateRule,
    options: ShardOptions,
    kinds: ZeroDtypes,
    *,
    stage: int,
    accumulate: bool,
) -> Lines:
    """Return a rank's lines of ZeRO-1 or ZeRO-2.

    Weights are whole on every rank, with the flat group's padding. Master weights (m · p) and
    states are partitioned. Gradients: stage 1 keeps all of them (e · N) until the last
    micro-batch, then as stage 2; stage 2 keeps those of parameters that reach into the partition
    (e · A), and at the step their copy in the master's dtype (m · p). Band: the smaller of the two
    instants; the flat copy between them (e · p), and with accumulation the older e · A. Buckets are
    allocated whole, however small the model is: reduce_bucket_size · e, twice with overlap_comm.
    The update is gathered in place.

    Offloaded (DeepSpeed takes "nvme" for "cpu" here): master weights, states, a gradient in the
    master's dtype, a copy of the partition in the weights' dtype and a buffer like the largest
    parameter lie in host memory, pinned, and one such buffer on the device; with accumulation the
    gradients e · A too. Stage 2 then keeps no gradient on the device beyond its bucket.
    """
    sums, e, m = _sums(pieces, rule, kinds), kinds.e, kinds.m
    frozen = sum(_stored(piece.tensor, e) for piece in pieces if not piece.trainable)
    name = f"ZeRO-{stage}"
    buckets = options.reduce_bucket_size * e * (2 if options.overlap_comm else 1)
    text = f"{name}: reduce_bucket_size {options.reduce_bucket_size:,} elements"
    buffers = [exact_line("buffers", buckets if sums.trainable else 0, text)]
    lines: Lines = {
        "weights": (
            exact_line("weights", sums.weights * e + frozen, f"{name}: whole, padded to 2n"),
        )
    }
    offload = options.offload_optimizer != "none"
    master = exact_line("optimizer", sums.part * m, f"{name}: {kinds.master} weights, 1/n")
    states = exact_line("optimizer", sums.states, f"{name}: states of 1/n")
    if not offload:
        lines["optimizer"] = (
            exact_line(
                "optimizer", master.bytes + states.bytes, f"{master.source}, and its states"
            ),
        )
        lines["gradients"] = (_gradients12(sums, kinds, stage=stage, accumulate=accumulate),)
        lines["buffers"] = tuple(buffers)
        return lines
    kept = sums.trainable * e if stage == 1 else 0
    lines["gradients"] = (exact_line("gradients", kept, f"{name}, offloaded: until reduced"),)
    lines["optimizer"] = (exact_line("optimizer", 0, f"{name}: in host memory"),)
    largest = sums.largest * e
    buffers.append(exact_line("buffers", largest, f"{name}: gradient on its way to the host"))
    lines["buffers"] = tuple(buffers)
    older = sums.touched * e if accumulate else 0
    lines["host"] = (
        master,
        states,
        exact_line("gradients", sums.part * m + older, f"{name}: {kinds.master} gradients, pinned"),
        exact_line("buffers", sums.part * e + largest, f"{name}: pinned copies on their way"),
    )
    return lines


def _gradients12(sums: _Sums, kinds: ZeroDtypes, *, stage: int, accumulate: bool) -> Line:
    own, step = sums.touched * kinds.e, sums.part * kinds.m
    flat = sums.part * kinds.e if kinds.m != kinds.e else 0
    whole = sums.trainable * kinds.e
    if stage == 1:
        return band_line(
            "gradients",
            max(whole, own + step),
            low=min(whole, step),
            high=max(whole + own, own + flat + step),
            source="ZeRO-1: all gradients, then 1/n for the step",
        )
    older = own if accumulate else 0
    return band_line(
        "gradients",
        own + step,
        low=min(own, step),
        high=own + flat + step + older,
        source="ZeRO-2: those of 1/n, and their copy for the step",
    )


def _part3(piece: Piece) -> int:
    """Return one rank's elements of a parameter: ceil(elements / n), the last ones padded."""
    return -(-elements(piece.tensor) // piece.group)


def _bytes3(piece: Piece, element: int) -> int:
    tensor = piece.tensor
    if tensor.dtype in FLOATS:
        return _part3(piece) * element
    return -(-tensor.bytes // piece.group)


def _sub_groups(parts: Sequence[int], size: int) -> list[int]:
    """Return the elements of each sub-group: filled until `size` is reached."""
    if sum(parts) <= size:
        return [sum(parts)]
    found, filling = [], 0
    for part in parts:
        filling += part
        if filling >= size:
            found.append(filling)
            filling = 0
    return [*found, filling] if filling else found


def zero3_lines(
    pieces: Sequence[Piece], rule: StateRule, options: ShardOptions, kinds: ZeroDtypes
) -> Lines:
    """Return a rank's lines of ZeRO-3.

    Each parameter is cut into n parts of ceil(elements / n), the last padded; weights (e · p),
    master weights (m · p) and states follow. Where m = e DeepSpeed means to share weights and
    master weights, but compares a device with its name, which are never equal: it makes a copy
    (measured). Gradients: one buffer of e · p from the start, and at the step one sub-group's copy
    in the master's dtype.

    Buffers: the gradient bucket, whole; parameters up to the persistence threshold, which stay
    gathered; and gathered ones up to max_live_parameters (a model that is smaller than
    max_reuse_distance, 1e9 too, stays gathered between forward and backward). Band of those: the
    largest parameter alone; with one prefetch bucket and the largest parameter more.
    """
    e, m = kinds.e, kinds.m
    trainable = [piece for piece in pieces if piece.trainable]
    subs = _sub_groups([_part3(piece) for piece in trainable], options.sub_group_size)
    part, sub = sum(subs), max(subs, default=0)
    states = sum(rule(_flat(count, kinds.master)) for count in subs if count)
    weights = exact_line(
        "weights", sum(_bytes3(piece, e) for piece in pieces), "ZeRO-3: ceil(elements / n) of each"
    )
    lines: Lines = {"buffers": tuple(_buffers3(pieces, options, e))}
    host: list[Line] = []
    disk: list[Line] = []
    if options.offload_param == "none":
        lines["weights"] = (weights,)
    else:
        lines["weights"] = (exact_line("weights", 0, "ZeRO-3: gathered from the host when used"),)
        _offload_weights(weights, options, e, host, disk)
    offload = options.offload_optimizer
    master = exact_line(
        "optimizer", part * m + states, f"ZeRO-3: {kinds.master} weights and states"
    )
    flat = exact_line("gradients", part * e, "ZeRO-3: 1/n of the gradients")
    step = sub * m
    if offload == "none":
        lines["optimizer"] = (master,)
        high = part * e + step + (sub * e if m != e else 0)
        text = "ZeRO-3: 1/n of the gradients, and a sub-group's copy for the step"
        lines["gradients"] = (
            band_line("gradients", part * e + step, low=part * e, high=high, source=text),
        )
    else:
        lines["optimizer"] = (exact_line("optimizer", 0, f"ZeRO-3: offloaded to {offload}"),)
        lines["gradients"] = (exact_line("gradients", 0, f"ZeRO-3: offloaded to {offload}"),)
        master_gradients = exact_line("gradients", part * m, "ZeRO-3: gradients for the step")
        (disk if offload == "nvme" else host).extend((master, master_gradients))
        host.append(replace(flat, source=flat.source + ", pinned"))
    if offload == "nvme":
        text = f"ZeRO-3: {options.swap_buffers} pinned buffers for swapping, each a sub-group"
        host.append(exact_line("buffers", options.swap_buffers * step, text))
    return lines | {"host": tuple(host), "disk": tuple(disk)}


def _buffers3(pieces: Sequence[Piece], options: ShardOptions, e: int) -> list[Line]:
    """Return ZeRO-3's bucket, its persistent parameters and its gathered ones."""
    bucket = options.reduce_bucket_size * e if any(piece.trainable for piece in pieces) else 0
    text = f"ZeRO-3: reduce_bucket_size {options.reduce_bucket_size:,} elements"
    limit = options.stage3_param_persistence_threshold
    small = [piece for piece in pieces if elements(piece.tensor) <= limit]
    stays = sum(_bytes3(piece, e) * piece.group for piece in small)
    sizes = [elements(p.tensor) for p in pieces if elements(p.tensor) > limit]
    total, largest = sum(sizes), max(sizes, default=0)
    live = min(total, options.stage3_max_live_parameters)
    more = min(total, live + options.stage3_prefetch_bucket_size + largest)
    return [
        band_line("buffers", bucket, low=bucket, high=2 * bucket, source=text),
        exact_line("buffers", stays, f"ZeRO-3: parameters up to {limit:,} elements stay gathered"),
        band_line(
            "buffers",
            max(live, largest) * e,
            low=largest * e,
            high=max(more, largest) * e,
            source="ZeRO-3: gathered weights, up to stage3_max_live_parameters",
        ),
    ]


def _offload_weights(
    weights: Line, options: ShardOptions, e: int, host: list[Line], disk: list[Line]
) -> None:
    if options.offload_param == "cpu":
        host.append(replace(weights, source=weights.source + ", pinned"))
        return
    kept = min(weights.bytes, options.param_max_in_cpu * e)
    text = "ZeRO-3: weights beside NVMe, up to max_in_cpu"
    host.append(band_line("weights", kept, low=0, high=kept, source=text))
    pinned = options.param_buffers * options.param_buffer_size * e
    text = f"ZeRO-3: {options.param_buffers} pinned buffers for weights"
    host.append(exact_line("buffers", pinned, text))
    left = weights.bytes - kept
    text = "ZeRO-3: weights that max_in_cpu leaves"
    disk.append(band_line("weights", left, low=left, high=weights.bytes, source=text))
