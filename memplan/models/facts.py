"""What a config.json says about shapes, whatever the family calls it.

Only numbers that the formulas need; tensor sizes come from headers or the meta build. Keys and
family rules: transformers 5 configuration classes (each rule names its family).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memplan.errors import BadModelError
from memplan.types import Layer, Tensor

__all__ = ["Facts", "read_facts", "text_config"]

_TEXT_KEYS = ("text_config", "llm_config", "language_config")

_SLIDING_PERIOD = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}
"""Every n-th layer is global, the others slide, where the config does not list its layers."""

_STATE_KEYS = (
    "attn_layer_period",
    "attn_layer_indices",
    "block_configs",
    "conv_L_cache",
    "full_attention_interval",
    "hybrid_override_pattern",
    "linear_attn_config",
    "lru_width",
    "mamba_d_state",
    "attn_type_list",
    "ssm_state_size",
    "state_size",
)
"""Keys of families whose layers are not all attention."""

_STATE_TYPES = ("rwkv", "xlstm", "recurrent_gemma")

_ENCODER_HEADS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")

MAX_LAYERS = 100_000


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
    experts: int | None
    """Routed experts per layer (mixture of experts)."""
    experts_per_token: int | None
    """Experts that one token passes through."""


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a config that describes the language model."""
    for key in _TEXT_KEYS:
        inner = config.get(key)
        if isinstance(inner, Mapping) and inner:
            return inner
    return config


def read_facts(config: Mapping[str, Any], tensors: Sequence[Tensor] = ()) -> Facts:
    """Read the shapes from a config, filling gaps from the tensors' own shapes.

    Raises BadModelError when a number is missing that no tensor shows, or is not sensible.
    """
    text = text_config(config)
    hidden = _number(text, "hidden_size", "n_embd", "d_model", "dim")
    heads = _number(text, "num_attention_heads", "n_head", "n_heads", "num_heads", default=1)
    count = _number(
        text, "num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"
    )
    if not 1 <= count <= MAX_LAYERS or not heads or not hidden:
        raise BadModelError(
            f"config.json claims {count} layers of {heads} heads and hidden size {hidden}",
            hint="check num_hidden_layers, num_attention_heads and hidden_size",
        )
    head_dim = _number(text, "head_dim", "attention_head_dim", default=0) or hidden // heads
    width = _Widths(text, heads, head_dim, _key_width(tensors))
    kinds = _layer_kinds(config, text, count)
    experts = _number(text, "num_local_experts", "num_experts", "n_routed_experts", default=0)
    return Facts(
        hidden=hidden,
        heads=heads,
        head_dim=head_dim,
        vocab=_number(text, "vocab_size", default=0),
        max_context=_number(text, "max_position_embeddings", "n_positions", default=0) or None,
        layers=tuple(width.layer(kind, _window(text, kind)) for kind in kinds),
        experts=experts or None,
        experts_per_token=_number(
            text, "num_experts_per_tok", "num_experts_per_token", "moe_top_k", default=0
        )
        or None,
    )


class _Widths:
    """Builds Layer values: the widths are the same for all layers of one model."""

    def __init__(
        self, text: Mapping[str, Any], heads: int, head_dim: int, key_width: int | None
    ) -> None:
        self.intermediate = _intermediate(text)
        self.latent = _number(text, "kv_lora_rank", default=0)
        self.rope = _number(text, "qk_rope_head_dim", default=0)
        self.kv_heads = _kv_heads(text, heads)
        self.key_dim = head_dim
        self.value_dim = _number(text, "v_head_dim", default=0) or head_dim
        stated = any(key in text for key in ("num_key_value_heads", "num_kv_heads", "multi_query"))
        if key_width and not stated and key_width % head_dim == 0:
            self.kv_heads = key_width // head_dim
        elif key_width and "head_dim" not in text and key_width % self.kv_heads == 0:
            self.key_dim = self.value_dim = key_width // self.kv_heads

    def layer(self, kind: str, window: int | None) -> Layer:
        if self.latent and kind in ("full_attention", "mla"):
            return Layer(
                kind="mla",
                kv_heads=1,
                key_dim=self.latent,
                value_dim=self.rope,
                intermediate=self.intermediate,
            )
        return Layer(
            kind=kind,
            kv_heads=self.kv_heads,
            key_dim=self.key_dim,
            value_dim=self.value_dim,
            window=window,
            intermediate=self.intermediate,
        )


def _kv_heads(text: Mapping[str, Any], heads: int) -> int:
    """Return the cached heads: stated, or the family's rule, or one per query head.

    Falcon: the old decoder with multi_query has one head; the new one is cached broadcast to all
    query heads by transformers. GPT-BigCode: multi_query = one head.
    """
    if text.get("new_decoder_architecture"):
        return heads
    if text.get("multi_query"):
        return 1
    return _number(text, "num_key_value_heads", "num_kv_heads", "n_kv_heads", default=0) or heads


def _key_width(tensors: Sequence[Tensor]) -> int | None:
    for tensor in tensors:
        if tensor.name.endswith("self_attn.k_proj.weight") and len(tensor.shape) == 2:
            return tensor.shape[0]
    return None


def _intermediate(text: Mapping[str, Any]) -> int:
    """Return the inner width one token uses: dense, or its experts together with shared ones."""
    dense = _number(
        text, "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff", default=0
    )
    dense = dense or 4 * _number(text, "hidden_size", "n_embd", "d_model", default=0)
    chosen = _number(text, "num_experts_per_tok", "num_experts_per_token", "moe_top_k", default=0)
    if not chosen:
        return dense
    expert = _number(text, "moe_intermediate_size", default=0) or dense
    shared = _number(text, "n_shared_experts", default=0) * expert
    shared += _number(text, "shared_expert_intermediate_size", default=0)
    return chosen * expert + shared


def _layer_kinds(config: Mapping[str, Any], text: Mapping[str, Any], count: int) -> list[str]:
    stated = text.get("layer_types")
    if isinstance(stated, list) and len(stated) == count and all(_is_text(k) for k in stated):
        kinds = [str(kind) for kind in stated]
    else:
        kinds = _guess_kinds(config, text, count)
    shared = _number(text, "num_kv_shared_layers", default=0)
    if 0 < shared < count:
        kinds[count - shared :] = ["shared_kv"] * shared
    return kinds


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _guess_kinds(config: Mapping[str, Any], text: Mapping[str, Any], count: int) -> list[str]:
    model_type = str(text.get("model_type") or config.get("model_type") or "")
    if config.get("is_encoder_decoder"):
        return ["encoder_decoder"] * count
    if any(text.get(key) is not None for key in _STATE_KEYS) or model_type.startswith(_STATE_TYPES):
        return ["state_space"] * count
    names = config.get("architectures") or [""]
    if isinstance(names, list) and str(names[0]).endswith(_ENCODER_HEADS):
        return ["encoder_only"] * count
    if text.get("attention_chunk_size") and model_type.startswith("llama4"):
        return ["full_attention" if (i + 1) % 4 == 0 else "chunked_attention" for i in range(count)]
    if not text.get("sliding_window") or text.get("use_sliding_window") is False:
        return ["full_attention"] * count
    if text.get("use_sliding_window"):
        first = _number(text, "max_window_layers", default=0)
        return ["sliding_attention" if i >= first else "full_attention" for i in range(count)]
    period = _number(text, "sliding_window_pattern", "_sliding_window_pattern", default=0)
    period = period or _SLIDING_PERIOD.get(model_type, 0)
    if not period:
        return ["sliding_attention"] * count
    return ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(count)]


def _window(text: Mapping[str, Any], kind: str) -> int | None:
    if kind == "sliding_attention":
        return _number(text, "sliding_window", default=0) or None
    if kind == "chunked_attention":
        return _number(text, "attention_chunk_size", default=0) or None
    return None


def _number(config: Mapping[str, Any], *keys: str, default: int | None = None) -> int:
    """Return the first of the keys that is a whole number >= 0 (null counts as absent)."""
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise BadModelError(
                f"config.json: {key} is {value!r}, not a whole number >= 0",
                hint="check the config file",
            )
        return value
    if default is None:
        raise BadModelError(
            f"config.json does not say {keys[0]}",
            hint="is this the config of a language model?",
        )
    return default
