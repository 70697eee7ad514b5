"""What a config.json says about shapes, whatever the family calls it.

Only numbers that the formulas need; tensor sizes come from headers or the meta build. Keys and
family rules: transformers 5 configuration classes (each rule names its family).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memplan.errors import BadModelError
from memplan.models.attention import attention_layer
from memplan.models.kinds import layer_kinds
from memplan.models.numbers import check_sizes, number, numbers, text_config
from memplan.models.states import layer_states
from memplan.types import Layer, Tensor

__all__ = ["Facts", "read_facts", "text_config"]

MAX_LAYERS = 4096
MAX_EXPERTS = 65_536

_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")
_DECODER_COUNTS = ("num_decoder_layers", "decoder_layers")
_HIDDEN = ("hidden_size", "n_embd", "d_model", "dim", "embedding_dim", "emb_dim")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk", "moe_k")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Shapes of the text model."""

    hidden: int
    """Hidden size."""
    heads: int
    """Query heads."""
    head_dim: int
    """Elements of one query head."""
    vocab: int
    """Vocabulary size."""
    max_context: int | None
    """max_position_embeddings, if stated."""
    layers: tuple[Layer, ...]
    """One entry per decoder layer."""
    rotary_dim: int = 0
    """Rotated elements of each head; 0 without rotary positions."""
    experts: int | None
    """Routed experts per layer (mixture of experts)."""
    experts_per_token: int | None
    """Experts that one token passes through."""


def read_facts(config: Mapping[str, Any], tensors: Sequence[Tensor] = ()) -> Facts:
    """Read the shapes from a config, filling gaps from the tensors' own shapes.

    Raises BadModelError when a number is missing that no tensor shows, or is not sensible, and
    UnsupportedModelError for a kind of layer that no rule covers.
    """
    check_sizes(config)
    text = _flat(text_config(config))
    hidden = number(text, *_HIDDEN)
    heads = number(
        text,
        *("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "num_heads"),
        default=1,
    )
    count = _layer_count(config, text)
    if not 1 <= count <= MAX_LAYERS or not heads or not hidden:
        raise BadModelError(
            f"config.json claims {count} layers of {heads} heads and hidden size {hidden}",
            hint="check num_hidden_layers, num_attention_heads and hidden_size",
        )
    text = {**text, "hidden_size": hidden, "num_attention_heads": heads}
    experts = number(text, *_EXPERTS, default=0)
    if experts > MAX_EXPERTS:
        raise BadModelError(f"config.json claims {experts} experts", hint="check the config file")
    layers = _layers(config, text, count, _key_width(tensors, hidden))
    positions = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    contexts = ("max_target_positions", "model_max_length", "n_ctx", "max_sequence_length")
    return Facts(
        hidden=hidden,
        heads=heads,
        head_dim=number(text, *_HEAD_DIMS, default=0) or hidden // heads,
        vocab=number(text, "vocab_size", default=0),
        max_context=number(text, *positions, *contexts, default=0) or None,
        layers=layers,
        rotary_dim=_rotary_dim(text, hidden // heads),
        experts=experts or None,
        experts_per_token=number(text, *_CHOSEN, default=0) or None,
    )


_HEAD_DIMS = ("head_dim", "attention_head_dim", "d_kv", "kv_channels", "dim_head", "qk_head_dim")


_ROTARY = ("rope_theta", "rope_parameters", "rope_scaling", "rotary_dim", "rotary_pct")


def _rotary_dim(text: Mapping[str, Any], default: int) -> int:
    """Return the rotated elements of a head: MLA's own part, a share, or the whole head."""
    if number(text, "qk_rope_head_dim", default=0):
        return number(text, "qk_rope_head_dim")
    if not any(text.get(key) is not None for key in _ROTARY):
        return 0
    if number(text, "rotary_dim", default=0):
        return number(text, "rotary_dim")
    inner = text.get("rope_parameters")
    own = {**inner, **text} if isinstance(inner, Mapping) else text
    share = own.get("partial_rotary_factor", own.get("rotary_pct", 1.0))
    share = share if isinstance(share, int | float) and 0 < share <= 1 else 1.0
    return int((number(text, *_HEAD_DIMS, default=0) or default) * share)


def _flat(text: Mapping[str, Any]) -> dict[str, Any]:
    """Lift the nested attention block of MPT and DBRX up."""
    flat = dict(text)
    for key in ("attn_config", "ffn_config"):
        inner = text.get(key)
        if isinstance(inner, Mapping):
            flat = {**{k: v for k, v in inner.items() if k != "model_type"}, **flat}
    return flat


def _layer_count(config: Mapping[str, Any], text: Mapping[str, Any]) -> int:
    both = config.get("is_encoder_decoder") or text.get("is_encoder_decoder")
    keys = (*_DECODER_COUNTS, *_COUNTS) if both else (*_COUNTS, *_DECODER_COUNTS)
    listed = text.get("layers_block_type")
    pattern = text.get("hybrid_override_pattern")
    if isinstance(pattern, str) and text.get("num_hidden_layers") is None:
        return len(pattern)
    if isinstance(listed, list) and text.get("num_hidden_layers") is None:
        return len(listed)
    return number(text, *keys)


def _layers(
    config: Mapping[str, Any], text: Mapping[str, Any], count: int, key_width: int | None
) -> tuple[Layer, ...]:
    model_type = str(text.get("model_type") or config.get("model_type") or "")
    cross = _cross_tokens(config, text, model_type)
    kinds = layer_kinds(config, text, count)
    known: dict[Any, Layer] = {}
    seeing = set(numbers(text, "cross_attention_layers"))
    layers = []
    for position, kind in enumerate(kinds):
        own, changed = _own(text, position, count)
        key = (kind, changed, position in seeing)
        if key not in known:
            layer = _layer(own, model_type, kind, key_width, cross)
            known[key] = _seeing(own, model_type, layer) if position in seeing else layer
        layers += [known[key]] * (2 if model_type == "longcat_flash" else 1)
    return tuple(layers)


def _seeing(own: Mapping[str, Any], model_type: str, layer: Layer) -> Layer:
    """Return a layer that caches images alone, with the widths that it has once it sees one."""
    wide = attention_layer(
        own,
        model_type,
        "full_attention",
        intermediate=layer.intermediate,
        key_width=None,
        states=(),
        cross_tokens=None,
    )
    return replace(wide, kind="none")


def _layer(
    own: Mapping[str, Any],
    model_type: str,
    kind: str,
    key_width: int | None,
    cross: int | None,
) -> Layer:
    intermediate = _intermediate(own)
    if kind in ("none", "shared_kv", "encoder_only"):
        return Layer(kind=kind, intermediate=intermediate)
    states = layer_states(own, model_type, kind) if kind in ("state", "conv", "hybrid") else ()
    if kind in ("state", "conv"):
        return Layer(kind="state", states=states, intermediate=intermediate)
    return attention_layer(
        own,
        model_type,
        kind,
        intermediate=intermediate,
        key_width=key_width,
        states=states,
        cross_tokens=cross,
    )


def _own(text: Mapping[str, Any], position: int, count: int) -> tuple[Mapping[str, Any], Any]:
    """Return the config as one layer sees it, and what is its own (hashable).

    transformers' per_layer_config overrides keys; OpenELM and others give lists of numbers.
    """
    overrides: dict[str, Any] = {}
    table = text.get("per_layer_config")
    if isinstance(table, Mapping):
        for key in (str(position), f"{position:02d}", f"{position:03d}"):
            entry = table.get(key)
            if isinstance(entry, Mapping):
                overrides.update(entry)
    for key, value in text.items():
        if isinstance(value, list) and len(value) >= count and key in _PER_LAYER:
            overrides[key] = value[position]
    fingerprint = tuple(sorted((key, repr(value)) for key, value in overrides.items()))
    return ({**text, **overrides}, fingerprint) if overrides else (text, ())


_PER_LAYER = (
    *("num_key_value_heads", "num_kv_heads", "num_attention_heads", "num_query_heads"),
    *("intermediate_size", "head_dim", "indexer_types", "compress_ratios", "layer_types"),
)
"""Keys whose list has one entry per layer."""


def _cross_tokens(
    config: Mapping[str, Any], text: Mapping[str, Any], model_type: str
) -> int | None:
    """Return the encoder tokens each decoder layer caches: Whisper's are fixed by its audio."""
    if not (config.get("is_encoder_decoder") or text.get("is_encoder_decoder")):
        return None
    if model_type == "whisper":
        return number(text, "max_source_positions", default=1500)
    return 0


_TOWERS = ("vision", "visual", "image", "audio", "embed_tokens_extend", "encoder")


def _key_width(tensors: Sequence[Tensor], hidden: int) -> int | None:
    """Return the rows of the language model's key matrix, no other tower's."""
    for tensor in tensors:
        if not tensor.name.endswith("self_attn.k_proj.weight") or len(tensor.shape) != 2:
            continue
        if tensor.shape[1] == hidden and not any(tower in tensor.name for tower in _TOWERS):
            return tensor.shape[0]
    return None


def _intermediate(text: Mapping[str, Any]) -> int:
    """Return the inner width one token uses: dense, or its experts together with shared ones."""
    keys = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff", "decoder_ffn_dim")
    dense = number(text, *keys, "dim_ff", default=0) or 4 * number(text, "hidden_size")
    chosen = number(text, *_CHOSEN, default=0)
    if not chosen:
        return dense
    expert = number(text, "moe_intermediate_size", "expert_ffn_hidden_size", default=0) or dense
    shared = number(text, "n_shared_experts", "num_shared_experts", default=0) * expert
    shared += number(text, "shared_expert_intermediate_size", default=0)
    return chosen * expert + shared
