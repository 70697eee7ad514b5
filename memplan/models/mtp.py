"""Layers of a checkpoint that only guess tokens ahead (MTP, NextN).

transformers 5.23 ignores them when it loads (`_keys_to_ignore_on_load_unexpected`), and vLLM loads
them for speculative decoding alone. They are called `mtp.*`, or are layers behind the last one
(DeepSeek-V3: model.layers.61, GLM-4.5: 46 and 92).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from memplan.models.numbers import number, text_config
from memplan.types import Tensor

__all__ = ["mtp_layers", "split_mtp"]

_NAMED = re.compile(r"(?:^|\.)mtp(?:_\w+)?\.(?:layers\.)?(\d+)?")
_LAYER = re.compile(r"(?:model\.|language_model\.|text_model\.)*layers\.(\d+)\.")
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def split_mtp(
    config: Mapping[str, Any] | None, tensors: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the tensors that a model loads, and those of its guessing layers.

    Args:
        config: the parsed config.json, which says how many layers the model has.
        tensors: of the checkpoint.

    Raises BadModelError for a number of layers that is none.
    """
    text = text_config(config or {})
    count = number(text, *_COUNTS, default=0)
    main: list[Tensor] = []
    ahead: list[Tensor] = []
    for tensor in tensors:
        (ahead if _is_ahead(tensor.name, count) else main).append(tensor)
    return (tuple(main), tuple(ahead)) if main else (tuple(tensors), ())


def _is_ahead(name: str, count: int) -> bool:
    match = _LAYER.match(name)
    if match is not None:
        return 0 < count <= int(match[1])
    return "mtp" in name and _NAMED.search(name) is not None


def mtp_layers(tensors: Sequence[Tensor]) -> int:
    """Return how many guessing layers some tensors are."""
    matches = (_LAYER.match(t.name) or _NAMED.search(t.name) for t in tensors)
    numbered = {match[1] for match in matches if match is not None and match[1]}
    return max(len(numbered), 1)
