"""Reading numbers from a config.json whose families call the same thing by many names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.errors import BadModelError

__all__ = ["MAX_NUMBER", "architecture", "check_sizes", "number", "numbers", "text_config", "words"]

_TEXT_KEYS = (
    *("text_config", "llm_config", "language_config", "decoder", "text_cfg", "global_config"),
)
_OUTER_KEYS = ("thinker_config",)

MAX_NUMBER = 2**40
"""No size of a model is larger: a config that claims more is damaged."""


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a config that describes the language model.

    A composite of Qwen-Omni's kind is looked into twice (thinker, then text).
    """
    for key in _OUTER_KEYS:
        inner = config.get(key)
        if isinstance(inner, Mapping) and inner:
            return text_config(inner)
    for key in _TEXT_KEYS:
        inner = config.get(key)
        if isinstance(inner, Mapping) and inner:
            return inner
    return config


def number(config: Mapping[str, Any], *keys: str, default: int | None = None) -> int:
    """Return the first of the keys that is a whole number from 0 to MAX_NUMBER.

    null counts as absent; of a list that repeats a number per layer the largest counts.
    Raises BadModelError for anything else, and when no key is there and no default is given.
    """
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, list) and value and all(_is_size(item) for item in value):
            value = max(value)
        if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_NUMBER:
            value = int(value)
        if not _is_size(value):
            raise BadModelError(
                f"config.json: {key} is {_short(value)}, not a whole number from 0 to 2^40",
                hint="check the config file",
            )
        return int(value)
    if default is None:
        raise BadModelError(
            f"config.json does not say {keys[0]}",
            hint="is this the config of a language model?",
        )
    return default


def architecture(config: Mapping[str, Any]) -> str | None:
    """Return the first of the config's model classes, or None."""
    names = config.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return names[0]
    return None


_SIZE_ENDINGS = ("_size", "_dim", "_heads", "_layers", "_rank", "_experts", "_per_tok", "_layer")


def check_sizes(config: Mapping[str, Any]) -> None:
    """Refuse a config whose sizes are texts, negative or absurd, before anything is imported.

    Looks at every key that ends like a size, in nested parts too. Raises BadModelError.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            check_sizes(value)
        elif key.endswith(_SIZE_ENDINGS) and (
            isinstance(value, str) or (isinstance(value, int | float) and abs(value) > MAX_NUMBER)
        ):
            raise BadModelError(
                f"config.json: {key} is {_short(value)}, not a sensible number",
                hint="check the config file",
            )


def numbers(config: Mapping[str, Any], key: str) -> list[int]:
    """Return the whole numbers from 0 of a list, or nothing."""
    value = config.get(key)
    if not isinstance(value, list):
        return []
    return [item for item in value if isinstance(item, int) and item >= 0]


def words(config: Mapping[str, Any], *keys: str) -> list[str] | None:
    """Return the first of the keys that is a list of texts, or None."""
    for key in keys:
        value = config.get(key)
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            return list(value)
    return None


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_NUMBER


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
