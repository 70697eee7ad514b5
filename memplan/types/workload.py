"""What is done with a model: every option with the value used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from memplan.types.base import Extra, no_extra

__all__ = ["Workload"]

_COUNTED = (
    *("context", "batch", "prefill_chunk", "seq", "grad_accum", "eval_batch", "draft_tokens"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is done with the model. Names are the command line's; None = does not apply."""

    task: Literal["infer", "train"] = "infer"
    """Generate tokens, or update weights."""
    runtime: str = "transformers"
    """The engine whose rules hold."""
    dtype: str = "bfloat16"
    """dtype of the weights as loaded."""
    quant: str = "none"
    """Quantization applied at load."""
    context: int | None = None
    """Tokens that each sequence's cache holds (infer)."""
    batch: int = 1
    """Sequences at once."""
    prefill_chunk: int | None = None
    """Prompt tokens per sequence in one forward pass (infer); None = the whole context."""
    images: int | None = None
    """Images in each sequence (infer), part of its context; None and 0 = text only."""
    image_size: str | None = None
    """Width x height of each image in pixels, such as "1024x768" (infer)."""
    kv_dtype: str | None = None
    """dtype of the cache (infer)."""
    cache: str | None = None
    """How transformers keeps its cache (infer): "dynamic", "static", "offloaded" (all but two
    layers in host memory) or "offloaded-static"."""
    attention: str = "sdpa"
    """Attention implementation."""
    logits: str | None = None
    """Logits that a prompt's pass computes (infer): "last" token's, as generate does; "full" in
    the model's dtype; "full-fp32" with a float32 copy (transformers before 4.45)."""
    method: str | None = None
    """"full", or adapters: "lora", "rslora", "dora", "qlora" (train)."""
    optimizer: str | None = None
    """Optimizer's name (train)."""
    seq: int | None = None
    """Tokens of each training sequence (train)."""
    grad_accum: int | None = None
    """Micro-batches before each optimizer step (train)."""
    checkpointing: str | None = None
    """Activation checkpointing: "none", "selective" or "full" (train)."""
    precision: str | None = None
    """Arithmetic and master weights: "bf16", "bf16-mixed", "fp16-mixed", "fp32" (train)."""
    loss: str | None = None
    """"full-logits": all logits at once; "chunked": output matrix and loss together, chunk by
    chunk (train)."""
    data: str | None = None
    """"packed": every token counts; "padded": sequences of a batch differ in length, so that a
    mask is built (train)."""
    eval_batch: int | None = None
    """Sequences at once of an evaluation without gradients between steps (train); None = none."""
    compile: bool | None = None
    """The model runs through torch.compile (train)."""
    lora_dropout: float | None = None
    """Share of the adapters' inputs that is dropped, 0 to 1 (train)."""
    lora_dtype: str | None = None
    """dtype of trained adapters: "float32" as PEFT keeps them, or "bfloat16" (train)."""
    lora_slots: int | None = None
    """Adapters that are kept loaded (infer)."""
    lora_rank: int | None = None
    """Rank of the adapters."""
    lora_targets: str | None = None
    """Modules that get adapters, or "all-linear"."""
    draft: str | None = None
    """What drafts tokens (infer): a model's name, or "mtp" for the model's own layers."""
    draft_tokens: int | None = None
    """Tokens that are drafted at once (infer)."""
    gpus: int = 1
    """Devices that share the work."""
    nodes: int = 1
    """Machines."""
    strategy: str | None = None
    """How several devices share the work."""
    tp: int = 1
    """Tensor-parallel degree."""
    pp: int = 1
    """Pipeline-parallel degree."""
    dp: int = 1
    """Data-parallel degree."""
    ep: int = 1
    """Expert-parallel degree."""
    cp: int = 1
    """Context-parallel degree."""
    offload_optimizer: str | None = None
    """Where optimizer states live instead of the GPU: "cpu" or "disk" (train)."""
    offload_params: str | None = None
    """Where a rank's part of the weights lives between its uses: "cpu" or "disk" (train)."""
    prune: str | None = None
    """Structured pruning applied before loading."""
    sparsity: float | None = None
    """Share of zero weights, 0 to 1."""
    sparse_format: str | None = None
    """How sparse weights are stored."""
    offload: str | None = None
    """How what the devices do not hold is used (infer): "stream", "uva", "prefetch" ...; None =
    as the runtime does."""
    pin: tuple[str, ...] = ()
    """Modules that the user put on a device, as "MODULE=DEVICE"."""
    device: tuple[str, ...] = ()
    """Devices as the user named them."""
    host_memory: int | None = None
    """Bytes of host memory that may be used."""
    disk: int | None = None
    """Bytes of disk that may be used."""
    reserve: int | None = None
    """Bytes left untouched on each GPU."""
    host_bandwidth: int | None = None
    """Bytes a second from host memory to the computing device."""
    disk_bandwidth: int | None = None
    """Bytes a second from disk to the computing device."""
    estimator: Literal["formula", "trace"] = "formula"
    """How activations are found."""
    assumed: tuple[str, ...] = ()
    """Names of the options that nobody set: defaults."""
    extra: Extra = field(default_factory=no_extra)
    """Unknown fields of a newer version."""

    def __post_init__(self) -> None:
        """Check that every count is at least one."""
        for name in (*_COUNTED, "gpus", "nodes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
