"""What a model is: tensors, layers, states, towers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import ClassVar

from memplan.types.base import Extra, ModelSource, TensorKind, no_extra, not_negative

__all__ = ["Layer", "ModelSpec", "ModelSummary", "State", "Tensor", "Vision"]


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
        not_negative(self, "elements", "kernel")


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
        not_negative(self, "kv_heads", "key_dim", "value_dim", "window", "intermediate")
        not_negative(self, "heads", "index_dim", "compress", "cross_tokens", "prefix")


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
    extra: Extra = field(default_factory=no_extra)
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
    extra: Extra = field(default_factory=no_extra)
    """Unknown fields of a newer version."""
