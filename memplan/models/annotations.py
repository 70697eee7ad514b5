"""What transformers itself says about the values of a config, without importing it.

Importing transformers and torch takes seconds and 300 MB, so a config that cannot be built is
refused before: its class in configuration_*.py is found by the model type, and each value is held
against the annotation of its field (transformers 5 checks the same, later). Names that select code
(activations, rotary scaling) must stand in the file that lists them.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from memplan.errors import BadModelError

__all__ = ["check_values"]

_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (float, int),
    "str": (str,),
    "bool": (bool,),
    "None": (type(None),),
    "list": (list,),
    "tuple": (list,),
    "set": (list,),
    "dict": (dict,),
    "Mapping": (dict,),
    "Sequence": (list,),
    "RopeParameters": (dict,),
}
"""Annotation -> types of JSON that it takes."""

_POSITIVE = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("vocab_size", "head_dim", "d_model", "n_embd", "n_head", "n_layer"),
)
_SIZE = re.compile(
    r"((?<!chunk)_size|_dim|_heads|_layers|_experts|_rank|_positions|_per_tok|_groups)$"
)
_MULTIPLE = "is not a multiple of the number of attention"
_NAMES = (
    ("hidden_act", "activations.py", "ACT2FN[config.hidden_act]"),
    ("rope_type", "modeling_rope_utils.py", "ROPE_INIT_FUNCTIONS["),
)
"""Key, the file of transformers that lists its names, and what a model that looks there has."""
_OLD_NAMES = ("default", "mrope", "su")


def check_values(config: Mapping[str, Any]) -> None:
    """Refuse values that no config of this model type can have, in nested parts too.

    Where transformers is not installed only signs and lengths are checked. Raises BadModelError.
    """
    _check_part(config)
    for value in config.values():
        if isinstance(value, Mapping) and value.get("model_type"):
            check_values(value)


def _check_part(config: Mapping[str, Any]) -> None:
    for key in ("dtype", "torch_dtype"):
        if config.get(key) is not None and not isinstance(config[key], str):
            raise _bad(key, config[key], "the name of a dtype")
    found = config.get("quantization_config")
    if found is not None and not isinstance(found, Mapping):
        raise _bad("quantization_config", found, "an object")
    _check_signs(config)
    layers, types = config.get("num_hidden_layers"), config.get("layer_types")
    if isinstance(types, list) and isinstance(layers, int) and len(types) != layers:
        raise _bad("layer_types", types, f"a list of {layers}, one for each layer")
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        return
    fields, text, folder = _fields(model_type)
    for key, value in config.items():
        allowed = fields.get(key)
        if allowed is not None and not _fits(value, allowed):
            names = sorted({kind.__name__ for kind in allowed} - {"NoneType"})
            raise _bad(key, value, " or ".join(names))
    _check_heads(config, text)
    _check_names(config, _source("models", folder, f"modeling_{folder}.py"))


def _check_signs(config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if value < 0 and _SIZE.search(key):
            raise _bad(key, value, "a number of 0 or more")
        if value <= 0 and key in _POSITIVE:
            raise _bad(key, value, "a number of 1 or more")


def _check_heads(config: Mapping[str, Any], text: str) -> None:
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if not isinstance(hidden, int) or not isinstance(heads, int):
        return
    if hidden % heads and _MULTIPLE in text:
        raise _bad("hidden_size", hidden, f"a multiple of the {heads} heads")


def _check_names(config: Mapping[str, Any], model: str) -> None:
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    if scaling is not None and not isinstance(scaling, Mapping):
        raise _bad("rope_scaling", scaling, "an object")
    flat = scaling or {}
    named = {
        "hidden_act": config.get("hidden_act"),
        "rope_type": flat.get("rope_type", flat.get("type")),
    }
    for key, file, use in _NAMES:
        value = named[key]
        if not isinstance(value, str) or use not in model or value in _OLD_NAMES:
            continue
        if f'"{value}"' not in _source(file) and f'"{value}"' not in model:
            raise _bad(key, value, "one that transformers knows")


def _fits(value: Any, allowed: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in allowed
    return isinstance(value, allowed)


def _bad(key: str, value: Any, wanted: str) -> BadModelError:
    text = repr(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return BadModelError(
        f"config.json: {key} is {text}, not {wanted}", hint="check the config file"
    )


@cache
def _source(*path: str) -> str:
    """Return a file of the installed transformers, or nothing."""
    found = importlib.util.find_spec("transformers")
    if found is None or not found.origin:
        return ""
    try:
        return Path(found.origin).parent.joinpath(*path).read_text("utf-8")
    except (OSError, ValueError):
        return ""


def _fields(model_type: str) -> tuple[dict[str, tuple[type, ...]], str, str]:
    """Return the fields of a type's config class with what they take, its source, its folder."""
    for folder, text in _candidates(model_type):
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and _type_of(node) == model_type:
                return dict(_annotated(node)), ast.get_source_segment(text, node) or "", folder
    return {}, "", "-"


def _candidates(model_type: str) -> Iterator[tuple[str, str]]:
    """Yield folders and sources that may define a model type: its own, or its parent's."""
    parts = re.sub(r"\W", "_", model_type).split("_")
    for count in range(len(parts), 0, -1):
        folder = "_".join(parts[:count])
        text = _source("models", folder, f"configuration_{folder}.py")
        if text:
            yield folder, text


def _type_of(node: ast.ClassDef) -> str | None:
    for item in node.body:
        if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant):
            target = item.targets[0]
            if isinstance(target, ast.Name) and target.id == "model_type":
                return str(item.value.value)
    return None


def _annotated(node: ast.ClassDef) -> Iterator[tuple[str, tuple[type, ...]]]:
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            kinds = _kinds(item.annotation)
            if kinds:
                yield item.target.id, kinds


def _kinds(node: ast.expr) -> tuple[type, ...]:
    """Return the JSON types that an annotation takes; nothing where that is not known."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        left, right = _kinds(node.left), _kinds(node.right)
        return (*left, *right) if left and right else ()
    if isinstance(node, ast.Subscript):
        return _kinds(node.value)
    if isinstance(node, ast.Constant):
        return (type(None),) if node.value is None else ()
    if isinstance(node, ast.Name):
        return (dict,) if node.id.endswith("Config") else _TYPES.get(node.id, ())
    return ()
