"""What state-space, linear-attention and convolution layers keep for one sequence.

The family is told by its keys. Shapes: transformers 5.23, the modeling file of each family, and
the caches that those models really fill (tests/models/test_sweep.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.errors import UnsupportedModelError
from memplan.models.numbers import number
from memplan.types import State

__all__ = ["attention_states", "layer_states"]

FLOAT32 = "float32"


def layer_states(text: Mapping[str, Any], model_type: str, kind: str) -> tuple[State, ...]:
    """Return the states of a layer that is not (only) attention.

    Args:
        text: the language model's config.
        model_type: its model type.
        kind: the layer's kind as the config or `memplan.models.kinds` names it.

    Raises UnsupportedModelError when no family's keys are there.
    """
    if kind in ("conv", "short_conv"):
        return (_conv(number(text, "hidden_size"), number(text, "conv_L_cache", "conv_l_cache")),)
    if model_type.startswith(("inkling", "zaya")):
        return ()  # `attention_states` has them
    for key, rule in _RULES:
        if text.get(key) is not None or model_type.startswith(key):
            return rule(text)
    raise UnsupportedModelError(
        f"memplan has no rule for the {kind!r} layers of model type {model_type!r}",
        hint="report the model; a GGUF file of it may be readable",
    )


def attention_states(text: Mapping[str, Any], model_type: str, width: int) -> tuple[State, ...]:
    """Return what an attention layer keeps beside keys and values: mostly nothing.

    Inkling: float32 convolutions of keys, values and both residual inputs. Zaya: the convolution
    of queries and keys, and the last half of the value before it.

    Args:
        text: the language model's config.
        model_type: its model type.
        width: elements of all cached key heads of the layer.
    """
    if model_type.startswith("inkling"):
        kernel = number(text, "conv_kernel_size", default=4)
        hidden = number(text, "hidden_size")
        sizes = (width, width, hidden, hidden)
        return tuple(_conv(size, kernel, dtype=FLOAT32) for size in sizes)
    if model_type == "zaya":
        queries = number(text, "num_attention_heads") * number(text, "head_dim")
        conv = _conv(queries + width, number(text, "cca_time0", default=2))
        return (conv, State(kind="shift", elements=width // 2))
    return ()


def _conv(channels: int, kernel: int, dtype: str | None = None) -> State:
    return State(kind="conv", elements=channels, kernel=kernel, dtype=dtype)


def _recurrent(elements: int, dtype: str | None = FLOAT32) -> State:
    return State(kind="recurrent", elements=elements, dtype=dtype)


def _gated_delta(text: Mapping[str, Any]) -> tuple[State, ...]:
    """Qwen3-Next, Qwen3.5, OLMo-hybrid: conv over q, k and v; one key x value matrix a head."""
    key_dim = number(text, "linear_key_head_dim")
    value_dim = number(text, "linear_value_head_dim")
    key_heads = number(text, "linear_num_key_heads")
    value_heads = number(text, "linear_num_value_heads")
    channels = 2 * key_heads * key_dim + value_heads * value_dim
    return (
        _conv(channels, number(text, "linear_conv_kernel_dim", default=4)),
        _recurrent(value_heads * key_dim * value_dim),
    )


def _kimi_delta(text: Mapping[str, Any]) -> tuple[State, ...]:
    """Kimi-Linear and Bailing-hybrid: three convolutions, one d x d matrix a head."""
    inner = text.get("linear_attn_config")
    own = {**text, **inner} if isinstance(inner, Mapping) else text
    heads = number(own, "linear_num_heads", "num_heads", "num_attention_heads")
    size = number(own, "linear_head_dim", "head_dim")
    kernel = number(own, "linear_conv_kernel_dim", "short_conv_kernel_size", default=4)
    return (_conv(3 * heads * size, kernel), _recurrent(heads * size * size))


def _lightning(text: Mapping[str, Any]) -> tuple[State, ...]:
    """MiniMax-01: one d x d matrix a head, in the model's dtype."""
    heads = number(text, "num_attention_heads")
    size = number(text, "head_dim", default=0) or number(text, "hidden_size") // max(heads, 1)
    return (_recurrent(heads * size * size, dtype=None),)


def _recurrent_gemma(text: Mapping[str, Any]) -> tuple[State, ...]:
    """RG-LRU: one float32 value a channel, and conv1d_width - 1 earlier inputs."""
    width = number(text, "lru_width", default=0) or number(text, "hidden_size")
    kernel = number(text, "conv1d_width", default=4)
    return (_recurrent(width), State(kind="shift", elements=width * (kernel - 1)))


def _rwkv(text: Mapping[str, Any]) -> tuple[State, ...]:
    """RWKV-4: the last input of both blocks, and three float32 sums."""
    hidden = number(text, "hidden_size")
    inner = number(text, "attention_hidden_size", default=0) or hidden
    return (State(kind="shift", elements=2 * hidden), _recurrent(3 * inner))


def _rwkv5(text: Mapping[str, Any]) -> tuple[State, ...]:
    """RWKV-5 and later: the last input of both blocks, one d x d float32 matrix a head."""
    hidden = number(text, "hidden_size")
    size = number(text, "head_size", "head_dim", default=64)
    return (State(kind="shift", elements=2 * hidden), _recurrent(hidden * size))


def _any_rwkv(text: Mapping[str, Any]) -> tuple[State, ...]:
    later = text.get("head_size") is not None or str(text.get("model_type", "")) != "rwkv"
    return _rwkv5(text) if later else _rwkv(text)


def _xlstm(text: Mapping[str, Any]) -> tuple[State, ...]:
    """XLSTM (mLSTM cells): matrix, normaliser and stabiliser of each head, the model's dtype."""
    heads = number(text, "num_heads")
    hidden = number(text, "hidden_size", "embedding_dim")
    key = round(hidden * float(text.get("qk_dim_factor", 0.5))) // heads
    value = round(hidden * float(text.get("v_dim_factor", 1.0))) // heads
    return (_recurrent(heads * (key * value + key + 1), dtype=None),)


def _mamba2(text: Mapping[str, Any]) -> tuple[State, ...]:
    """Mamba-2: conv over x and the groups' B and C; heads x head size x N states."""
    heads = number(text, "mamba_n_heads", "n_mamba_heads", "mamba_num_heads", "num_heads")
    inner = number(text, "mamba_d_ssm", default=0) or _inner(text)
    size = number(text, "mamba_d_head", "mamba_headdim", "mamba_head_dim", "head_dim", default=0)
    if size and not text.get("mamba_d_ssm"):
        inner = heads * size
    groups = number(text, "mamba_n_groups", "mamba_ngroups", "n_groups", default=1)
    state = number(text, "mamba_d_state", "ssm_state_size", "state_size")
    return (_conv(inner + 2 * groups * state, _kernel(text)), _recurrent(inner * state))


def _mamba1(text: Mapping[str, Any]) -> tuple[State, ...]:
    """Mamba-1: conv over the inner channels; N states a channel."""
    inner = number(text, "intermediate_size", default=0) if "state_size" in text else _inner(text)
    inner = inner or _inner(text)
    state = number(text, "mamba_d_state", "state_size", default=16)
    return (_conv(inner, _kernel(text)), _recurrent(inner * state))


def _inner(text: Mapping[str, Any]) -> int:
    hidden = number(text, "hidden_size", "d_model")
    expand = text.get("mamba_expand", text.get("expand", 2))
    return int(hidden * float(expand if isinstance(expand, int | float) else 2))


def _kernel(text: Mapping[str, Any]) -> int:
    return number(text, "mamba_d_conv", "conv_kernel", "d_conv", default=4)


_RULES = (
    ("linear_key_head_dim", _gated_delta),
    ("linear_attn_config", _kimi_delta),
    ("linear_num_heads", _kimi_delta),
    ("minimax", _lightning),
    ("attn_type_list", _lightning),
    ("lru_width", _recurrent_gemma),
    ("recurrent_gemma", _recurrent_gemma),
    ("rwkv", _any_rwkv),
    ("xlstm", _xlstm),
    ("mamba_n_groups", _mamba2),
    ("mamba_ngroups", _mamba2),
    ("mamba_num_heads", _mamba2),
    ("n_groups", _mamba2),
    ("mamba_d_state", _mamba1),
    ("state_size", _mamba1),
    ("mamba", _mamba1),
)
"""Key (or beginning of the model type) -> rule; the first that is there counts."""
