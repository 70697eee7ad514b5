"""What the parallel part of a training plan is told, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from memplan.errors import UsageError
from memplan.types import Line, Tensor

__all__ = [
    "ELEMENT_BYTES",
    "FLOATS",
    "ActivationShare",
    "Moment",
    "Piece",
    "Shard",
    "ShardOptions",
    "StateRule",
    "elements",
]

StateRule = Callable[[Tensor], int]
"""Bytes of one parameter's optimizer states (`memplan.footprint.optimizer.OPTIMIZERS`)."""

ELEMENT_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one element of the dtypes that training computes in."""
FLOATS = frozenset(ELEMENT_BYTES)
"""dtypes that a framework casts when it trains in another precision."""


def elements(tensor: Tensor) -> int:
    """Return the number of elements of a tensor."""
    count = 1
    for size in tensor.shape:
        count *= size
    return count


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOptions:
    """Settings of the frameworks that `Workload` has no field for; defaults are theirs."""

    bucket_bytes: int = 25 * 1024 * 1024
    """DDP: bytes of a bucket (`bucket_cap_mb`)."""
    first_bucket_bytes: int = 1024 * 1024
    """DDP: bytes of the first bucket."""
    gradient_as_bucket_view: bool = False
    """DDP: gradients are views of the buckets, which then cost nothing more."""
    reshard_after_forward: bool = True
    """FSDP2: decoder layers give their gathered weights back after the forward pass."""
    reduce_dtype: str = "float32"
    """FSDP2 with mixed precision: dtype in which gradients are reduced (`reduce_dtype`)."""
    embedding_groups: bool = True
    """FSDP2: embedding and output matrix are groups of their own where that is lower."""
    gloo: bool = False
    """FSDP2: collectives run on CPUs, over gloo: it works on a copy of what it gathers or reduces,
    and torch's kernel that fills a reduction's input makes one, too, where there is more than one
    rank."""
    reduce_bucket_size: int = 500_000_000
    """DeepSpeed: elements of one gradient bucket."""
    overlap_comm: bool | None = None
    """DeepSpeed: reduce during the backward pass; None = its default (ZeRO-3 alone)."""
    stage3_max_live_parameters: int = 1_000_000_000
    """DeepSpeed ZeRO-3: gathered elements that may be alive."""
    stage3_prefetch_bucket_size: int = 50_000_000
    """DeepSpeed ZeRO-3: elements that are gathered ahead of use."""
    stage3_param_persistence_threshold: int = 100_000
    """DeepSpeed ZeRO-3: parameters up to this many elements stay gathered."""
    sub_group_size: int = 1_000_000_000
    """DeepSpeed ZeRO-3: elements of a rank's partition that one optimizer step handles at once."""
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    """Where optimizer states live (DeepSpeed; "cpu" with FSDP2 is its CPUOffloadPolicy)."""
    offload_param: Literal["none", "cpu", "nvme"] = "none"
    """Where partitions of weights live (DeepSpeed ZeRO-3; "cpu" with FSDP2 as above)."""
    swap_buffers: int = 4
    """DeepSpeed: pinned buffers for optimizer states on NVMe (`buffer_count`)."""
    param_buffers: int = 5
    """DeepSpeed: pinned buffers for weights on NVMe (`buffer_count`)."""
    param_buffer_size: int = 100_000_000
    """DeepSpeed: elements of one of those (`buffer_size`)."""
    param_max_in_cpu: int = 1_000_000_000
    """DeepSpeed: elements of weights kept in host memory beside NVMe (`max_in_cpu`)."""
    tp_plan: Mapping[str, str] | None = None
    """transformers' tensor-parallel plan, "layers.*.mlp.up_proj" -> "colwise"; None = the names
    that most of its plans share."""
    sequence_parallel: bool = False
    """Megatron: what tensor parallelism leaves whole is divided along the sequence."""
    expert_tensor_parallel: bool = False
    """Megatron: experts are divided by tp too; False = whole experts (transformers)."""
    schedule: Literal["gpipe", "1f1b", "interleaved"] = "1f1b"
    """How a pipeline orders micro-batches."""
    chunks: int = 2
    """Model chunks of one stage ("interleaved")."""
    stage_layers: tuple[int, ...] | None = None
    """Decoder layers of each stage; None = as equal as can be, the first ones take what is left."""

    def __post_init__(self) -> None:
        """Check what would otherwise give wrong bytes; raises UsageError."""
        if self.reduce_dtype not in FLOATS:
            raise UsageError(
                f"gradients cannot be reduced in {self.reduce_dtype!r}",
                hint="one of: " + ", ".join(sorted(FLOATS)),
            )
        if self.chunks < 1 or self.sub_group_size < 1 or self.reduce_bucket_size < 1:
            raise UsageError(
                "chunks, sub_group_size and reduce_bucket_size must be at least 1",
                hint="leave them out for the frameworks' defaults",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one rank of a stage has of one parameter before data parallelism divides it."""

    tensor: Tensor
    """Its tensor- and expert-parallel part."""
    gradient_bytes: int
    """Bytes of its gradient as autograd makes it (torch gives the input embedding that tensor
    parallelism divides by rows a gradient of all rows)."""
    early: bool
    """True for what the backward pass reaches before every layer: last norm, output matrix."""
    unit: str | None
    """Decoder layer that it belongs to ("model.layers.3"); None = the rest of the model."""
    group: int
    """Ranks that hold the same piece, and among which it can be divided."""
    position: int
    """This rank's place among them, from 0."""
    trainable: bool
    """Does it get a gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationShare:
    """How much of a training step's saved tensors one rank holds."""

    layers: int
    """Decoder layers of its stage."""
    micro_batches: Fraction
    """Micro-batches whose saved tensors are alive at once, in units of the stage's layers."""
    sequence: Fraction
    """Share of each sequence (context parallelism)."""
    tensor: Fraction
    """Share of a layer's saved tensors (tensor parallelism)."""
    logits: bool
    """True on the last stage, which alone computes the loss."""
    source: str
    """The rules in words."""

    @property
    def per_layer(self) -> Fraction:
        """Saved tensors of one layer and one whole micro-batch, times this."""
        return self.micro_batches * self.sequence * self.tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One instant of the passes of a step, beyond weights and optimizer states that stay."""

    gradients: int
    """Bytes of reduced gradients that are there already."""
    buffers: int
    """Bytes of gathered weights, full gradients and inputs of reductions."""
    saved: Fraction
    """Share of the layers' saved tensors that is alive."""
    loss: Fraction = Fraction(0)
    """Share of what the loss takes that is alive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """What one rank of a training job holds."""

    rank: int
    """Global rank: tensor parallelism counts fastest, then context, data and pipeline."""
    stage: int
    """Pipeline stage, from 0."""
    weights: Line
    """Weights that stay on the device."""
    gradients: Line
    """Gradients that stay there until the optimizer's step."""
    optimizer: Line
    """Master weights and states there."""
    buffers: tuple[Line, ...]
    """Buckets and gathered weights there."""
    host: tuple[Line, ...]
    """What lies in host memory instead, for this rank alone."""
    disk: tuple[Line, ...]
    """What lies on NVMe instead, for this rank alone."""
    activations: ActivationShare
    """Its part of the saved tensors."""
    moments: tuple[Moment, ...] = ()
    """The passes in order, where gradients, buffers and saved tensors are not at their highest
    at once (FSDP2); empty = they are added up."""

    @property
    def lines(self) -> tuple[Line, ...]:
        """Lines of the device, without activations."""
        return (self.weights, self.gradients, self.optimizer, *self.buffers)

    @property
    def device_bytes(self) -> int:
        """Bytes on the device, without activations."""
        return sum(line.bytes for line in self.lines)

    @property
    def host_bytes(self) -> int:
        """Bytes in host memory, for this rank alone."""
        return sum(line.bytes for line in self.host)

    @property
    def disk_bytes(self) -> int:
        """Bytes on NVMe, for this rank alone."""
        return sum(line.bytes for line in self.disk)
