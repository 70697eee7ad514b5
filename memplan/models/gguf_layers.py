"""GGUF metadata -> the shapes that the formulas need, by llama.cpp's own rules.

Keys begin with the architecture's exact name and a dot; a key of another prefix never counts.
Source: llama.cpp 0c1e570, llama-model.cpp and the file of each architecture under src/models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memplan.errors import BadModelError
from memplan.formats.gguf import Counted
from memplan.models.facts import MAX_LAYERS, Facts
from memplan.types import Layer, State, Tensor

__all__ = ["gguf_facts"]

_PERIODS = {
    "afmoe": 4,
    "cohere2": 4,
    "exaone-moe": 4,
    "exaone4": 4,
    "gemma-embedding": 6,
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gpt-oss": 2,
    "llama4": 4,
    "mellum": 4,
    "olmo2": 4,
    "plamo3": 8,
}
"""Architectures whose layers slide: every n-th is global where the file has no pattern."""

_DENSE_FIRST = {"cohere2moe": 4, "laguna": 4, "smallthinker": 4}
"""The same, the global layer first."""

_BY_LIST = ("gemma4", "mimo2", "step35", "granite-swa", "lfm2", "spark2-5", "dots3note", "maple")
"""Architectures whose file always lists the sliding layers."""

_DEFAULT_WINDOW = {"cohere2": 4096, "exaone4": 4096, "gemma2": 4096, "gpt-oss": 128}

_ENCODERS = (
    *("bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "modern-bert"),
    *("neo-bert", "eurobert", "gemma-embedding", "t5encoder", "wavtokenizer-dec"),
)


def gguf_facts(metadata: Mapping[str, Any], tensors: Sequence[Tensor]) -> Facts | None:
    """Return the shapes of a language model, or None where the file is of another kind.

    Raises BadModelError for a number that makes no sense.
    """
    keys = _Keys(metadata)
    if keys.number("block_count") == 0:
        return None
    count = keys.number("block_count") - keys.number("nextn_predict_layers")
    hidden = keys.number("embedding_length")
    if not 1 <= count <= MAX_LAYERS or not hidden:
        raise BadModelError(
            f"{keys.architecture}: the file claims {count} layers of hidden size {hidden}",
            hint="download the file again",
        )
    heads = max((keys.per_layer("attention.head_count", i) for i in range(count)), default=0) or 1
    return Facts(
        hidden=hidden,
        heads=heads,
        head_dim=keys.number("attention.key_length_mla", "attention.key_length") or hidden // heads,
        vocab=keys.number("vocab_size") or _vocab(metadata, tensors),
        max_context=keys.number("context_length") or None,
        layers=_layers(keys, count, hidden),
        experts=keys.number("expert_count") or None,
        experts_per_token=keys.number("expert_used_count") or None,
    )


def _vocab(metadata: Mapping[str, Any], tensors: Sequence[Tensor]) -> int:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, Counted):
        return int(tokens)
    for tensor in tensors:
        if tensor.name in ("output.weight", "token_embd.weight") and len(tensor.shape) == 2:
            return tensor.shape[0]
    return 0


class _Keys:
    """The metadata under the architecture's own prefix."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._data = metadata
        self.architecture = str(metadata.get("general.architecture", ""))
        self._prefix = f"{self.architecture}."

    def get(self, key: str) -> Any:
        return self._data.get(self._prefix + key)

    def number(self, *keys: str) -> int:
        """The first of the keys that is there, 0 without; of a list the largest."""
        for key in keys:
            value = self.get(key)
            if isinstance(value, list) and value:
                value = max(value)
            if value is None or isinstance(value, Counted):
                continue
            if not isinstance(value, int) or not 0 <= value < 2**40:
                raise BadModelError(
                    f"{self._prefix}{key} is {value!r}, not a whole number >= 0",
                    hint="download the file again",
                )
            return int(value)
        return 0

    def per_layer(self, key: str, layer: int) -> int:
        value = self.get(key)
        if isinstance(value, list):
            entry = value[layer] if layer < len(value) else 0
            return int(entry) if isinstance(entry, int) and 0 <= entry < 2**40 else 0
        return self.number(key)


def _layers(keys: _Keys, count: int, hidden: int) -> tuple[Layer, ...]:
    architecture = keys.architecture
    window = keys.number("attention.sliding_window") or _DEFAULT_WINDOW.get(architecture, 0)
    if architecture == "llama4":
        window = keys.number("attention.chunk_size") or 8192
    shared = keys.number("attention.shared_kv_layers")
    result = []
    for position in range(count):
        slides = bool(window) and _slides(architecture, keys, position)
        owned = position < count - shared
        layer = _layer(architecture, keys, position, hidden, window if slides else None)
        result.append(layer if owned else Layer(kind="shared_kv", intermediate=layer.intermediate))
    return tuple(result)


def _slides(architecture: str, keys: _Keys, position: int) -> bool:
    known = {*_PERIODS, *_DENSE_FIRST, *_BY_LIST}
    if architecture not in known:
        return False  # llama.cpp caches the whole context of all others, whatever the file says
    pattern = keys.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        return position < len(pattern) and bool(pattern[position])
    if architecture in _DENSE_FIRST:
        period = pattern if isinstance(pattern, int) and pattern else _DENSE_FIRST[architecture]
        return position % period != 0
    if architecture not in _PERIODS:
        return False
    period = pattern if isinstance(pattern, int) and pattern else _PERIODS[architecture]
    return position % period < period - 1


def _layer(architecture: str, keys: _Keys, position: int, hidden: int, window: int | None) -> Layer:
    heads = keys.per_layer("attention.head_count", position)
    kv_heads = keys.per_layer("attention.head_count_kv", position)
    if keys.get("attention.head_count_kv") is None:
        kv_heads = heads
    intermediate = _intermediate(keys, position)
    if architecture in _ENCODERS:
        return Layer(kind="encoder_only", intermediate=intermediate, heads=heads)
    states = _states(architecture, keys, position, hidden, kv_heads)
    attends = kv_heads > 0 and (not states or architecture == "falcon-h1")
    if not attends:
        return Layer(kind="state" if states else "none", states=states, intermediate=intermediate)
    default = hidden // heads if heads else 0
    key = keys.number("attention.key_length") or default
    value = keys.number("attention.value_length") or default
    if window:
        key = keys.number("attention.key_length_swa") or key
        value = keys.number("attention.value_length_swa") or value
    shared: dict[str, Any] = {"intermediate": intermediate, "heads": heads, "states": states}
    if keys.number("attention.key_length_mla"):
        latent = keys.number("attention.kv_lora_rank")
        return Layer(
            kind="sliding_mla" if window else "mla",
            kv_heads=1,
            key_dim=latent or key,
            value_dim=key - latent if latent else 0,
            window=window,
            index_dim=keys.number("attention.indexer.key_length"),
            **shared,
        )
    kind = "chunked_attention" if architecture == "llama4" else "sliding_attention"
    return Layer(
        kind=kind if window else "full_attention",
        kv_heads=kv_heads,
        key_dim=key,
        value_dim=value,
        window=window,
        **shared,
    )


def _intermediate(keys: _Keys, position: int) -> int:
    used = keys.number("expert_used_count")
    expert = keys.per_layer("expert_feed_forward_length", position)
    if not used or not expert:
        return keys.per_layer("feed_forward_length", position) * max(used, 1)
    shared = keys.number("expert_shared_feed_forward_length")
    shared = shared or keys.number("expert_shared_count") * expert
    return used * expert + shared


def _states(
    architecture: str, keys: _Keys, position: int, hidden: int, kv_heads: int
) -> tuple[State, ...]:
    """Return what a recurrent layer keeps; () for attention (llama-hparams.cpp, n_embd_r/s)."""
    if keys.number("wkv.head_size"):
        shift = keys.number("token_shift_count") or 2
        return (
            State(kind="shift", elements=shift * hidden, dtype="float32"),
            State(kind="recurrent", elements=hidden * keys.number("wkv.head_size")),
        )
    if not _is_recurrent(architecture, keys, position, kv_heads):
        return ()
    if keys.number("shortconv.l_cache"):
        return (State(kind="conv", elements=hidden, kernel=keys.number("shortconv.l_cache")),)
    kernel = keys.number("ssm.conv_kernel")
    head = keys.number("kda.head_dim")
    if head:
        heads = keys.number("attention.head_count")
        return (
            State(kind="conv", elements=3 * heads * head, kernel=kernel),
            State(kind="recurrent", elements=heads * head * head),
        )
    inner, state = keys.number("ssm.inner_size"), keys.number("ssm.state_size")
    channels = inner + 2 * keys.number("ssm.group_count") * state
    return (
        State(kind="conv", elements=channels, kernel=kernel),
        State(kind="recurrent", elements=inner * state),
    )


def _is_recurrent(architecture: str, keys: _Keys, position: int, kv_heads: int) -> bool:
    listed = keys.get("attention.recurrent_layers")
    if isinstance(listed, list):
        return position < len(listed) and bool(listed[position])
    if not (keys.number("ssm.conv_kernel") or keys.number("shortconv.l_cache")):
        return False
    if architecture in ("qwen3next", "qwen35", "qwen35moe"):
        return (position + 1) % (keys.number("full_attention_interval") or 4) != 0
    if architecture in {"nemotron_h", "nemotron_h_moe"}:
        return kv_heads == 0 and keys.per_layer("feed_forward_length", position) == 0
    return architecture in ("mamba", "mamba2", "falcon-h1") or kv_heads == 0
