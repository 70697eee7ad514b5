"""The core types: what flows through the program.

    ModelSpec + Workload -> Footprint -> (+ Device) Plan -> (+ Run, Sample, Phase) Comparison

All are frozen, slotted, keyword-only and hashable. Sizes are whole bytes, times whole
nanoseconds since the epoch (UTC), and None means "not available" (never 0 or -1).
Field names are the JSON keys; `memplan.serialize` turns each type to JSON and back.
`extra` keeps the fields that a newer minor version wrote, so that a round trip loses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import ClassVar, Generic, Literal, TypeVar

__all__ = [
    "PARTS",
    "Basis",
    "Change",
    "Comparison",
    "Device",
    "DeviceComparison",
    "DeviceKind",
    "Footprint",
    "FrozenMap",
    "Layer",
    "Ledger",
    "Line",
    "ModelSpec",
    "ModelSummary",
    "Part",
    "PartComparison",
    "Peak",
    "Phase",
    "Placement",
    "Plan",
    "Range",
    "Run",
    "RunStatus",
    "Sample",
    "Series",
    "State",
    "Tensor",
    "Verdict",
    "Vision",
    "Workload",
]

V = TypeVar("V")

Part = Literal[
    "weights",
    "kv_cache",
    "state_cache",
    "activations",
    "gradients",
    "optimizer",
    "buffers",
    "overhead",
]
Basis = Literal["exact", "formula", "trace", "measured", "assumed"]
DeviceKind = Literal["gpu", "cpu", "disk"]
ModelSource = Literal["safetensors", "gguf", "config", "hub", "catalog", "module"]
TensorKind = Literal["parameter", "buffer"]
RunStatus = Literal["running", "finished", "failed", "lost"]
CompareVerdict = Literal["within", "over", "under"]

PARTS: tuple[Part, ...] = (
    "weights",
    "kv_cache",
    "state_cache",
    "activations",
    "gradients",
    "optimizer",
    "buffers",
    "overhead",
)
"""Every part in the order in which it is printed."""


class FrozenMap(Mapping[str, V], Generic[V]):
    """A read-only, hashable mapping with string keys that keeps its order."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, V] | None = None) -> None:
        self._items: dict[str, V] = dict(items or {})

    def __getitem__(self, key: str) -> V:
        """Return the value of a key."""
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys in their order."""
        return iter(self._items)

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._items)

    def __hash__(self) -> int:
        """Hash by content, whatever the order."""
        return hash(frozenset(self._items.items()))

    def __eq__(self, other: object) -> bool:
        """Compare by content, also with a dict."""
        if isinstance(other, FrozenMap):
            return self._items == other._items
        return self._items == other

    def __repr__(self) -> str:
        """Show the content."""
        return f"FrozenMap({self._items!r})"


Extra = FrozenMap[str]
"""Unknown fields of newer versions: name -> JSON text."""


def _no_extra() -> FrozenMap[str]:
    return FrozenMap()


def _not_negative(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if value is not None and value < 0:
            raise ValueError(f"{type(owner).__name__}.{name} must not be negative: {value}")


@dataclass(frozen=True, slots=True, kw_only=True, init=False)
class Tensor:
    """One stored tensor of a model.

    A checkpoint can have 90,000, so the constructor is written out: it takes two thirds of the
    time of a generated one.
    """

    name: str
    """Full name, such as "model.layers.0.mlp.up_proj.weight"."""
    shape: tuple[int, ...]
    """Elements along each axis."""
    dtype: str
    """torch's dtype name, such as "bfloat16"."""
    bytes: int
    """Stored size in bytes."""
    kind: TensorKind = "parameter"
    """A parameter, or a buffer (counted with `buffers`, placed with its module)."""
    tied_to: str | None = None
    """Name of the tensor whose storage this one shares; its bytes are then counted there only."""

    def __init__(
        self,
        *,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        bytes: int,  # noqa: A002 - the field's name
        kind: TensorKind = "parameter",
        tied_to: str | None = None,
    ) -> None:
        if bytes < 0:
            raise ValueError(f"Tensor.bytes must not be negative: {bytes}")
        if shape and min(shape) < 0:
            raise ValueError(f"tensor {name} has a negative size: {shape}")
        _set_name(self, name)
        _set_shape(self, shape)
        _set_dtype(self, dtype)
        _set_bytes(self, bytes)
        _set_kind(self, kind)
        _set_tied_to(self, tied_to)


_set_name, _set_shape, _set_dtype, _set_bytes, _set_kind, _set_tied_to = (
    getattr(Tensor, field.name).__set__ for field in fields(Tensor)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What one sequence keeps in one layer however many tokens it has."""

    kind: str
    """"conv" (the last inputs of a causal convolution), "recurrent" (SSM or linear attention) or
    "shift" (plain vectors of the last token)."""
    elements: int
    """Elements; for "conv" the channels."""
    kernel: int = 1
    """Width of the convolution. transformers keeps all of it, vLLM and llama.cpp one less."""
    dtype: str | None = None
    """torch's dtype name in transformers; None = the cache's dtype."""

    def __post_init__(self) -> None:
        """Check that the sizes make sense."""
        _not_negative(self, "elements", "kernel")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What one decoder layer keeps between tokens, and how wide it works inside.

    A hybrid layer has both key/value heads and states.
    """

    kind: str
    """The cache rule: "full_attention", "sliding_attention", "chunked_attention", "mla",
    "sliding_mla", "compressed_attention", "state" (only states), "encoder_only", "shared_kv" and
    "none" (nothing is kept)."""
    kv_heads: int = 0
    """Key/value heads that are cached."""
    key_dim: int = 0
    """Elements of one cached key head (MLA: the latent, kv_lora_rank)."""
    value_dim: int = 0
    """Elements of one cached value head (MLA: the rotary part, qk_rope_head_dim)."""
    window: int | None = None
    """Tokens that a sliding or chunked layer looks at."""
    intermediate: int = 0
    """Widest inner size of the feed-forward part, per token, in elements."""
    heads: int = 0
    """Query heads; 0 = the model's."""
    states: tuple[State, ...] = ()
    """What is kept whatever the length."""
    index_dim: int = 0
    """Elements of the sparse-attention indexer's key, one per token (DeepSeek V3.2); 0 = none."""
    index_dtype: str | None = None
    """torch's dtype name of that key; None = the cache's dtype."""
    compress: int = 0
    """Tokens that are pooled into one cached entry beside the window (DeepSeek V4); 0 = none."""
    cross_tokens: int | None = None
    """Encoder tokens whose keys and values stay cached; 0 = as many as the context, None = the
    layer does not look at an encoder."""
    prefix: int = 0
    """Learned tokens that are cached before the prompt."""

    def __post_init__(self) -> None:
        """Check that the sizes make sense."""
        _not_negative(self, "kv_heads", "key_dim", "value_dim", "window", "intermediate")
        _not_negative(self, "heads", "index_dim", "compress", "cross_tokens", "prefix")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vision:
    """The part of a model that sees: its tower's widths, and how an image becomes tokens."""

    rule: str
    """How an image is cut: "square" (resized to one square), "pixels" (Qwen-VL), "pinpoints"
    (LLaVA-NeXT), "tiles" (InternVL), "longest" (Pixtral), "split" (Idefics3), "chunks" (Llama-4)
    and "cross" (Mllama: no tokens, but keys and values of its own)."""
    patch: int
    """Pixels along one side of a patch."""
    hidden: int
    """Hidden size of the tower."""
    intermediate: int
    """Inner size of its feed-forward part."""
    heads: int
    """Its attention heads."""
    layers: int
    """Its layers."""
    side: int = 0
    """Pixels along one side of the tile that it takes; 0 = any size."""
    merge: int = 1
    """Patches along one side that become one token."""
    tokens: int = 0
    """Text tokens of one tile; 0 = by its patches."""
    classes: int = 0
    """Tokens of a tile in the tower that are no patch (CLS)."""
    style: str = "plain"
    """What a layer's peak is: "plain" (gelu), "quick" (quick_gelu), "rotary" (16-bit rotation),
    "rotary32" (queries and keys rotated in float32), "quick32" and "gated32" (that, with
    quick_gelu or a gated inner part).
    """
    kept: int = 0
    """Hidden states that are kept until the tower ends."""
    min_pixels: int = 0
    """Fewest pixels after resizing ("pixels")."""
    max_pixels: int = 0
    """Most pixels after resizing ("pixels")."""
    max_tiles: int = 1
    """Most tiles of one image, its overview not counted."""
    longest: int = 0
    """Longest edge after resizing, pixels."""
    pinpoints: tuple[tuple[int, int], ...] = ()
    """Canvases as (height, width) ("pinpoints")."""

    def __post_init__(self) -> None:
        """Check that the sizes make sense."""
        if self.patch < 1 or self.hidden < 1 or self.merge < 1 or self.max_tiles < 1:
            raise ValueError(f"a tower needs patches and a width: {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What is loaded: every tensor, and the facts that the formulas need."""

    SCHEMA: ClassVar[str] = "memplan.model/1"

    name: str
    """The argument's last part, for people."""
    architecture: str | None
    """Model class, such as "LlamaForCausalLM"."""
    model_type: str | None
    """transformers' model type, such as "llama"."""
    source: ModelSource
    """Where the tensor list comes from."""
    path: str | None
    """Folder or file it was read from; "org/name@commit" on the Hub."""
    tensors: tuple[Tensor, ...]
    """Every parameter and buffer in definition (or file) order; tied ones name their owner."""
    layers: tuple[Layer, ...]
    """One entry per decoder layer that can hold a cache."""
    dtype: str
    """The model's own dtype (most bytes of its weights), torch's name."""
    weight_format: str
    """How the weights are stored: "bfloat16", "float8_e4m3fn", a quantization's name ..."""
    exact_modules: bool = True
    """True when tensor names are those of the loaded model; False when they are a file's (a
    loader may rename or fuse them, and buffers that are not stored do not show)."""
    hidden: int = 0
    """Hidden size h."""
    heads: int = 0
    """Query heads."""
    head_dim: int = 0
    """Elements of one query head."""
    vocab: int = 0
    """Rows of the output matrix."""
    rotary_dim: int = 0
    """Elements of each head that are rotated by position; 0 = none (learned positions)."""
    max_context: int | None = None
    """Longest context that the config names, tokens."""
    active_parameters: int | None = None
    """Parameters that one token passes through (mixture of experts), if known."""
    experts_per_token: int | None = None
    """Routed experts that one token passes through (mixture of experts)."""
    origin: str = ""
    """Where the list of tensors comes from, in words."""
    config: str = ""
    """The config.json, for what builds the model; "" = unknown."""
    mtp: tuple[Tensor, ...] = ()
    """Tensors of the file that only guess tokens ahead: loaded for --draft mtp alone."""
    mtp_layers: int = 0
    """How many layers those are."""
    vision: Vision | None = None
    """The tower that sees images; None = a text model, or one whose tower has no rule."""
    extra: Extra = field(default_factory=_no_extra)
    """Unknown fields of a newer version."""

    @property
    def parameters(self) -> int:
        """Number of parameter elements, tied ones once."""
        return _totals(self.tensors)[0]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all parameters, tied ones once."""
        return _totals(self.tensors)[1]

    @property
    def buffer_bytes(self) -> int:
        """Bytes of all buffers, shared ones once."""
        return _totals(self.tensors)[2]

    def summary(self) -> ModelSummary:
        """Return the short form that plans carry."""
        return ModelSummary(
            name=self.name,
            architecture=self.architecture,
            source=self.source,
            parameters=self.parameters,
            active_parameters=self.active_parameters,
            layers=len(self.layers),
            weight_format=self.weight_format,
            path=self.path,
        )


_LAST_TOTALS: list[tuple[tuple[Tensor, ...], tuple[int, int, int]]] = []
"""Of the last model that was asked: one plan asks many times, and a model can have 90,000."""


def _totals(tensors: tuple[Tensor, ...]) -> tuple[int, int, int]:
    """Return parameter elements, bytes of parameters and bytes of buffers."""
    if _LAST_TOTALS and _LAST_TOTALS[0][0] is tensors:
        return _LAST_TOTALS[0][1]
    elements = weights = buffers = 0
    for tensor in tensors:
        if tensor.tied_to:
            continue
        if tensor.kind == "parameter":
            elements += math.prod(tensor.shape)
            weights += tensor.bytes
        else:
            buffers += tensor.bytes
    _LAST_TOTALS[:] = [(tensors, (elements, weights, buffers))]
    return elements, weights, buffers


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSummary:
    """The `model` block of a plan."""

    name: str
    """Name for people."""
    architecture: str | None
    """Model class."""
    source: ModelSource
    """Where the tensor list comes from."""
    parameters: int
    """Parameter elements, tied ones once."""
    active_parameters: int | None
    """Parameters that one token passes through, if known."""
    layers: int
    """Decoder layers."""
    weight_format: str
    """How the weights are stored."""
    path: str | None = None
    """Folder or file it was read from."""
    extra: Extra = field(default_factory=_no_extra)
    """Unknown fields of a newer version."""


_COUNTED = ("context", "batch", "prefill_chunk", "seq", "grad_accum", "draft_tokens")


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
    prune: str | None = None
    """Structured pruning applied before loading."""
    sparsity: float | None = None
    """Share of zero weights, 0 to 1."""
    sparse_format: str | None = None
    """How sparse weights are stored."""
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
    extra: Extra = field(default_factory=_no_extra)
    """Unknown fields of a newer version."""

    def __post_init__(self) -> None:
        """Check that every count is at least one."""
        for name in (*_COUNTED, "gpus", "nodes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One part of a footprint at the peak, with where the number comes from."""

    part: Part
    """Which part."""
    bytes: int
    """Best estimate."""
    low_bytes: int
    """Lower end of the band."""
    high_bytes: int
    """Upper end of the band."""
    basis: Basis
    """How it is known."""
    source: str
    """The rule in words, or where the number was read."""
    extra: Extra = field(default_factory=_no_extra)
    """Unknown fields of a newer version."""

    def __post_init__(self) -> None:
        """Check that the band holds the estimate."""
        _not_negative(self, "low_bytes")
        if not self.low_bytes <= self.bytes <= self.high_bytes:
            raise ValueError(
                f"{self.part}: {self.bytes} lies outside its band "
                f"{self.low_bytes}..{self.high_bytes}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What one workload needs on one device that holds everything, part by part."""

    SCHEMA: ClassVar[str] = "memplan.footprint/1"
    DERIVED: ClassVar[tuple[str, ...]] = ("total_bytes", "low_bytes", "high_bytes")

    lines: tuple[Line, ...]
    """Parts that are alive at the peak; they add up to the total."""
    extra: Extra = field(default_factory=_no_extra)
    """Unknown fields of a newer version."""

    @property
    def total_bytes(self) -> int:
        """Best estimate of the peak."""
        return sum(line.bytes for line in self.lines)

    @property
    def low_bytes(self) -> int:
        """Lower end of the peak's band."""
        return sum(line.low_bytes for line in self.lines)

    @property
    def high_bytes(self) -> int:
        """Upper end of the peak's band."""
        return sum(line.high_bytes for line in self.lines)

    def part(self, part: Part) -> int:
        """Return the bytes of one part (0 when it has no line)."""
        return sum(line.bytes for line in self.lines if line.part == part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Where bytes can go."""

    name: str
    """"cuda:0", "cpu", "disk": the name used in device maps."""
    kind: DeviceKind
    """What it is."""
    capacity_bytes: int
    """All of its memory (disk: free space)."""
    reserve_bytes: int = 0
    """Left untouched for others."""
    bandwidth: int | None = None
    """Bytes a second from here to the device that computes; None = not known."""
    label: str = ""
    """Product name for people."""
    uuid: str | None = None
    """Stable identity of a GPU."""
    vendor: str | None = None
    """Who makes a GPU, if known."""
    compute: str | None = None
    """Compute capability ("8.9") or gfx name of a GPU, if known."""
    source: str = ""
    """Where the numbers come from."""
    extra: Extra = field(default_factory=_no_extra)
    """Unknown fields of a newer version."""

    def __post_init__(self) -> None:
        """Check that the sizes make sense."""
        _not_negative(self, "capacity_bytes", "reserve_bytes", "bandwidth")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What one device of a plan holds: the `devices` block."""

    DERIVED: ClassVar[tuple[str, ...]] = ("total_bytes", "free_bytes")

    name: str
    """Device name."""
    kind: DeviceKind
    """What it is."""
    capacity_bytes: int
    """All of its memory."""
    reserve_bytes: int
    """Left untouched."""
    parts: FrozenMap[int]
    """Bytes of each part that lives here at the peak."""
    low_bytes: int
    """Lower end of the band of the total."""
    high_bytes: int
    """Upper end of the band of the total."""
    extra: Extra = field(default_factory=_no_extra)
    """Unknown fields of a newer version."""

    @property
    def total_bytes(self) -> int:
        """Everything that lives here at the peak."""
        return sum(self.parts.values())

    @property
    def free_bytes(self) -> int:
        """What is left after parts and reserve; negative when it does not fit."""
        return self.capacity_bytes - self.reserve_bytes - self.total_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """An estimate with its band; all None when nothing is known."""

    value: float | None
    """Best estimate."""
    low: float | None
    """Lower end."""
    high: float | None
    """Upper end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where every module goes, and what that costs."""

    device_map: FrozenMap[str]
    """Module path -> device name; prefix-free, covers every parameter and buffer."""
    offloaded_bytes: int
    """Weights that do not live on a device that computes."""
    streamed_bytes_per_token: int
    """Bytes copied to the computing device for each forward pass."""
    decode_tokens_per_s: Range
    """Speed of one sequence's decoding, bound by the copies; None when nothing is streamed."""
    policy: str
    """The rule that made this placement, in words."""
    extra: Extra = field(default_factory=_no_extra)
    """Unknown fields of a newer version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change of one option that would make the plan fit."""

    option: str
    """Command-line option without dashes."""
    value: str
    """Its new value."""
    total_bytes: int
    """The peak with it."""
    note: str
    """What it costs, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Does it fit, and why."""

    fits: bool
    """True when every device holds its share within capacity less reserve."""
    reason: str
    """One sentence."""
    changes: tuple[Change, ...] = ()
    """What would make it fit, smallest change first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where everything goes and whether it fits."""

    SCHEMA: ClassVar[str] = "memplan.plan/1"

    id: str | None
    """Name in the database; None when it was not saved."""
    model: ModelSummary
    """What is loaded."""
    workload: Workload
    """What is done with it."""
    footprint: Footprint
    """What it needs (on the most loaded device when there are several GPUs)."""
    devices: tuple[Ledger, ...]
    """What each device holds."""
    placement: Placement
    """Where each module goes."""
    verdict: Verdict
    """Does it fit."""
    created_ns: int = 0
    """When it was made."""
    memplan_version: str = ""
    """Which memplan made it."""
    extra: Extra = field(default_factory=_no_extra)
    """Unknown fields of a newer version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """What a number is about: one quantity of one thing, in one run or on the host at large."""

    run_id: str | None
    """The run it was sampled for; None for the host's own samples."""
    entity: str
    """"host", "tree", "process:4711", "cgroup", "gpu:<uuid>", "torch:cuda:0" ..."""
    metric: str
    """"rss_bytes", "used_bytes", "allocated_bytes" ...: the unit is the last word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measured number."""

    series: Series
    """What it is about."""
    t_ns: int
    """When, wall clock."""
    value: int
    """Bytes (or a count, by the metric's name)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The highest value of one series."""

    series: Series
    """What it is about."""
    value: int
    """The highest value."""
    t_ns: int
    """When it was first reached, wall clock."""
    count: int
    """Samples that were looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of a run that the program itself named, with counters read at its end."""

    SCHEMA: ClassVar[str] = "memplan.phase/1"

    run_id: str
    """The run it belongs to."""
    name: str
    """"load", "prefill", "decode", "forward", "backward", "optimizer_step" ..."""
    pid: int
    """The process that reported it."""
    started_ns: int
    """Begin, wall clock."""
    ended_ns: int | None
    """End; None while it runs or when it was cut off."""
    counters: FrozenMap[int]
    """Name -> bytes at the end of the phase:
    "<device>.weights|gradients|optimizer|kv_cache|buffers" (sums over live tensors, device being
    "cpu", "cuda:0" or "disk"), "<device>.allocated|reserved|peak_allocated|peak_reserved"
    (the allocator's counters, where there is one), "process.rss|rss_anon|rss_file|hwm"."""
    extra: Extra = field(default_factory=_no_extra)
    """Unknown fields of a newer version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One command that was watched."""

    SCHEMA: ClassVar[str] = "memplan.run/1"

    id: str
    """Name in the database."""
    plan_id: str | None
    """The plan it is held against."""
    command: tuple[str, ...]
    """What was started."""
    host: str
    """Machine's name."""
    pid: int | None
    """Process at the root of the tree."""
    started_ns: int
    """Begin, wall clock."""
    ended_ns: int | None = None
    """End; None while it runs."""
    exit_code: int | None = None
    """The command's exit code (128 + signal when it was killed)."""
    status: RunStatus = "running"
    """"lost" = the sampler died before the command did."""
    versions: FrozenMap[str] = field(default_factory=FrozenMap)
    """memplan, python, torch, driver ... at the time."""
    extra: Extra = field(default_factory=_no_extra)
    """Unknown fields of a newer version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartComparison:
    """One part, planned beside measured."""

    part: Part
    """Which part."""
    planned_bytes: int | None
    """By the plan; 0 = the plan says that there is none, None = there is no plan."""
    measured_bytes: int | None
    """By the run; None = nobody measured it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceComparison:
    """One device, planned beside measured."""

    name: str
    """Device name of the plan."""
    planned_bytes: int | None
    """Planned peak of what `measured_by` counts; None = there is no plan."""
    low_bytes: int | None
    """Lower end of the plan's band."""
    high_bytes: int | None
    """Upper end of the plan's band."""
    peak_bytes: int | None
    """Measured peak (process or allocated bytes, see `measured_by`)."""
    peak_reserved_bytes: int | None
    """Peak of the allocator's reserved bytes, where there is one."""
    gap_bytes: int | None
    """Measured less planned peak."""
    within_band: bool | None
    """Is the measured peak inside the band; None when nothing was measured."""
    parts: tuple[PartComparison, ...]
    """Part by part."""
    unaccounted_bytes: int | None
    """Measured peak less every part as measured (as planned where not measured)."""
    measured_by: str = ""
    """The counter behind `peak_bytes`."""
    extra: Extra = field(default_factory=_no_extra)
    """Unknown fields of a newer version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Plan beside measurement."""

    SCHEMA: ClassVar[str] = "memplan.comparison/1"

    run: Run
    """What was measured."""
    plan_id: str | None
    """What it is held against."""
    devices: tuple[DeviceComparison, ...]
    """Device by device."""
    verdict: CompareVerdict | None
    """"over" when a peak lies above its band, else "under" when one lies below, else "within";
    None when nothing was both planned and measured."""
    notes: tuple[str, ...] = ()
    """What a reader must know to judge the numbers."""
    extra: Extra = field(default_factory=_no_extra)
    """Unknown fields of a newer version."""


Core = ModelSpec | Footprint | Plan | Run | Phase | Comparison
"""The types that stand alone as JSON documents, each with a schema tag."""
