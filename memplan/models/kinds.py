"""Which kind each decoder layer is, from the list in the config or by its family's rule.

Kinds here are what `memplan.models.facts` builds layers from: "full_attention",
"sliding_attention", "chunked_attention", "indexed_attention", "state", "conv", "hybrid" (attention
and state), "hybrid_sliding", "compressed_attention", "shared_kv", "encoder_only" and "none".
Sources: the configuration classes of transformers 5.23 and the keys of published config.json files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from memplan.models.numbers import architecture, number, numbers, words

__all__ = ["layer_kinds"]

_NAMES = {
    "attention": "full_attention",
    "full": "full_attention",
    "global": "full_attention",
    "global_attention": "full_attention",
    "*": "full_attention",
    "sliding": "sliding_attention",
    "sliding_window": "sliding_attention",
    "local": "sliding_attention",
    "local_attention": "sliding_attention",
    "linear_attention": "state",
    "linear": "state",
    "mamba": "state",
    "mamba2": "state",
    "recurrent": "state",
    "kda": "state",
    "M": "state",
    "deepseek_sparse_attention": "indexed_attention",
    "short_conv": "conv",
    "moe": "none",
    "mlp": "none",
    "-": "none",
    "E": "none",
    "compressed_sparse_attention": "compressed_attention",
    "heavily_compressed_attention": "compressed_attention",
}

_ENCODERS = (
    *("albert", "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "deberta"),
    *("deberta-v2", "distilbert", "electra", "ernie", "eurobert", "megatron-bert", "modernbert"),
    *("mpnet", "nomic_bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer"),
    *("xlm-roberta", "xlm-roberta-xl", "xmod", "jina_bert", "gte", "new", "neobert"),
)
"""Families that are encoders unless the config says is_decoder."""

_NO_CACHE = ("openai-gpt", "xlm", "flaubert")
"""Decoders whose transformers model has no cache at all."""

_ENCODER_HEADS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")

_PERIODS = {
    "gemma2": 2,
    "gemma3": 6,
    "gemma3_text": 6,
    "gemma4": 6,
    "cohere2": 4,
    "exaone4": 4,
    "gpt_oss": 2,
    "llama4": 4,
    "llama4_text": 4,
    "olmo3": 4,
}
"""Every n-th layer is global where the config does not list its layers."""


def layer_kinds(config: Mapping[str, Any], text: Mapping[str, Any], count: int) -> list[str]:
    """Return the kind of each layer.

    Args:
        config: the whole config.json.
        text: its part about the language model.
        count: number of decoder layers.
    """
    model_type = str(text.get("model_type") or config.get("model_type") or "")
    kinds = _listed(text, count) or _by_family(config, text, model_type, count)
    if model_type in _ALWAYS_BOTH:
        kinds = ["hybrid"] * count
    for position in numbers(text, "cross_attention_layers"):
        if position < count:
            kinds[position] = "none"
    shared = number(text, "num_kv_shared_layers", default=0)
    if 0 < shared < count:
        kinds[count - shared :] = ["shared_kv"] * shared
    return kinds


_ALWAYS_BOTH = ("falcon_h1",)


def _listed(text: Mapping[str, Any], count: int) -> list[str] | None:
    names = words(text, "layer_types", "layers_block_type", "_block_types", "block_types")
    pattern = text.get("hybrid_override_pattern")
    if names is None and isinstance(pattern, str):
        names = [letter for letter in pattern if letter in "M*-E"]
    if not names:
        return None
    if "block_types" in text or "_block_types" in text:
        names = [names[i % len(names)] for i in range(count)]
    if len(names) < count:
        return None
    return [_NAMES.get(name, name) for name in names[:count]]


def _by_family(
    config: Mapping[str, Any], text: Mapping[str, Any], model_type: str, count: int
) -> list[str]:
    if model_type in _NO_CACHE:
        return ["none"] * count
    if _is_encoder(config, text, model_type):
        return ["encoder_only"] * count
    for key, rule in _LISTS:
        if text.get(key) is not None:
            return rule(text, count)
    if model_type.startswith(_ALL_STATE):
        return ["state"] * count
    return _windows(text, model_type, count)


_ALL_STATE = ("mamba", "falcon_mamba", "rwkv", "xlstm", "bamba", "granitemoehybrid")


def _is_encoder(config: Mapping[str, Any], text: Mapping[str, Any], model_type: str) -> bool:
    if (architecture(config) or "").endswith(_ENCODER_HEADS):
        return True
    bidirectional = text.get("use_bidirectional_attention") is True
    return bidirectional or (model_type in _ENCODERS and not config.get("is_decoder"))


def _windows(text: Mapping[str, Any], model_type: str, count: int) -> list[str]:
    """Sliding or chunked layers by their period; all sliding where a window has no period."""
    if text.get("attention_chunk_size") and model_type.startswith("llama4"):
        ropeless = numbers(text, "no_rope_layers")
        if len(ropeless) >= count:
            return ["chunked_attention" if ropeless[i] else "full_attention" for i in range(count)]
        period = number(text, "no_rope_layer_interval", default=4) or 4
        return _periodic("chunked_attention", period, count)
    if not number(text, "sliding_window", default=0) or text.get("use_sliding_window") is False:
        return ["full_attention"] * count
    if text.get("use_sliding_window"):
        first = number(text, "max_window_layers", default=0)
        return ["sliding_attention" if i >= first else "full_attention" for i in range(count)]
    pattern = text.get("sliding_window_pattern", text.get("_sliding_window_pattern"))
    if isinstance(pattern, str) and pattern:
        names = [pattern[i % len(pattern)] for i in range(count)]
        kinds = ["full_attention" if name == "G" else "sliding_attention" for name in names]
        return [*kinds[:-1], "full_attention"]
    keys = ("sliding_window_pattern", "_sliding_window_pattern", "global_attn_every_n_layers")
    period = number(text, *keys, default=0) or _PERIODS.get(model_type, 0)
    if not period:
        return ["sliding_attention"] * count
    return _periodic("sliding_attention", period, count)


def _periodic(kind: str, period: int, count: int, other: str = "full_attention") -> list[str]:
    return [kind if (i + 1) % period else other for i in range(count)]


def _chosen(key: str, other: str) -> Callable[[Mapping[str, Any], int], list[str]]:
    """The layers whose positions are listed are attention, the others `other`."""

    def rule(text: Mapping[str, Any], count: int) -> list[str]:
        wanted = set(numbers(text, key))
        return ["full_attention" if i in wanted else other for i in range(count)]

    return rule


def _jamba(text: Mapping[str, Any], count: int) -> list[str]:
    period = number(text, "attn_layer_period") or 1
    offset = number(text, "attn_layer_offset", default=0)
    return ["full_attention" if i % period == offset else "state" for i in range(count)]


def _zamba(text: Mapping[str, Any], count: int) -> list[str]:
    both = set(numbers(text, "hybrid_layer_ids"))
    return ["hybrid" if i in both else "state" for i in range(count)]


def _interval(text: Mapping[str, Any], count: int) -> list[str]:
    return _periodic("state", number(text, "full_attention_interval") or 1, count)


def _group(text: Mapping[str, Any], count: int) -> list[str]:
    return _periodic("state", number(text, "layer_group_size") or 1, count)


def _kimi(text: Mapping[str, Any], count: int) -> list[str]:
    """Positions count from 1."""
    inner = text["linear_attn_config"]
    listed = numbers(inner, "full_attn_layers") if isinstance(inner, Mapping) else []
    return ["full_attention" if i + 1 in listed else "state" for i in range(count)]


def _minimax(text: Mapping[str, Any], count: int) -> list[str]:
    """1 = softmax attention, 0 = lightning attention."""
    return _flags(text, "attn_type_list", count, on="full_attention", off="state")


def _mimo(text: Mapping[str, Any], count: int) -> list[str]:
    """1 = sliding, 0 = global."""
    pattern = numbers(text, "hybrid_layer_pattern")
    if len(pattern) < count:
        return _windows(text, "", count)
    return _flags(text, "hybrid_layer_pattern", count, on="sliding_attention")


def _flags(
    text: Mapping[str, Any], key: str, count: int, *, on: str, off: str = "full_attention"
) -> list[str]:
    flags: Sequence[int] = [*numbers(text, key), *([0] * count)]
    return [on if flags[i] else off for i in range(count)]


def _deepseek4(text: Mapping[str, Any], count: int) -> list[str]:
    """0 = the window alone, else tokens per compressed entry."""
    ratios = [*numbers(text, "compress_ratios"), *([0] * count)]
    return ["compressed_attention" if ratios[i] else "sliding_attention" for i in range(count)]


_LISTS: tuple[tuple[str, Callable[[Mapping[str, Any], int], list[str]]], ...] = (
    ("attn_layer_indices", _chosen("attn_layer_indices", "state")),
    ("attn_layer_period", _jamba),
    ("hybrid_layer_ids", _zamba),
    ("full_attention_interval", _interval),
    ("linear_attn_config", _kimi),
    ("layer_group_size", _group),
    ("attn_type_list", _minimax),
    ("full_attn_idxs", _chosen("full_attn_idxs", "conv")),
    ("hybrid_layer_pattern", _mimo),
    ("compress_ratios", _deepseek4),
)
"""Key that tells a family -> its rule; the first that is there counts."""
