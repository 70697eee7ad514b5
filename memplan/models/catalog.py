"""Popular models as data: planned offline, with neither files nor torch.

One JSON object a line in catalog.jsonl, made by scripts/make_catalog.py from config.json files:
names, where the config was published, every tensor (layers that are alike once), and every layer's
shapes. An entry is the model that transformers builds from that config, to the byte.
"""

from __future__ import annotations

import difflib
import importlib.resources
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from functools import cache
from typing import Any

from memplan.errors import BadModelError
from memplan.models.vision import read_vision
from memplan.types import Layer, ModelSpec, State, Tensor
from memplan.units import DTYPE_BITS

__all__ = ["catalog_names", "close_names", "entry_of", "find_model", "plain_name"]

_FILE = "catalog.jsonl"
_LAYER = re.compile(r"^(.*?\b(?:layers|h|blocks|block)\.)(\d+)(\..*)$")
_FACTS = ("hidden", "heads", "head_dim", "vocab", "rotary_dim", "max_context")
_MORE = ("active_parameters", "experts_per_token", "weight_format", "dtype")
_PLAIN = ("float32", "bfloat16", "float16")


def plain_name(name: str) -> str:
    """Return a name without what people write differently: case, spaces and underscores."""
    return re.sub(r"[\s_]+", "-", name.strip().lower())


@cache
def _lines() -> tuple[str, ...]:
    file = importlib.resources.files("memplan.models") / _FILE
    return tuple(file.read_text("utf-8").splitlines())


def _names(line: str) -> list[str]:
    end = line.index("]")
    return list(json.loads(line[line.index("[") : end + 1]))


def catalog_names() -> list[str]:
    """Return the first name of every model, sorted."""
    return sorted(_names(line)[0] for line in _lines())


def close_names(name: str) -> list[str]:
    """Return up to three names of the catalogue that look like one."""
    known = [other for line in _lines() for other in _names(line)]
    return difflib.get_close_matches(plain_name(name), known, n=3, cutoff=0.5)


def find_model(name: str, *, dtype: str | None = None) -> ModelSpec | None:
    """Return a model of the catalogue, or None when it has none of that name.

    Args:
        name: one of its names, or its Hub id; case does not matter.
        dtype: torch's name of the dtype that plain weights are loaded in; None = the model's.

    Raises BadModelError when the shipped data is damaged.
    """
    wanted = plain_name(name)
    for line in _lines():
        if wanted in line[: line.index("]")] and wanted in _names(line):
            try:
                return _spec(json.loads(line), dtype)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise BadModelError(
                    f"the catalogue's entry of {wanted} is damaged ({error})",
                    hint="install memplan again",
                ) from error
    return None


def _spec(entry: dict[str, Any], dtype: str | None) -> ModelSpec:
    kinds = [_layer(row) for row in entry["layer_kinds"]]
    tensors = tuple(_cast(tensor, dtype) for tensor in _tensors(entry))
    own = {name: entry[name] for name in (*_FACTS, *_MORE)}
    if dtype is not None and own["dtype"] in _PLAIN:
        own["dtype"] = own["weight_format"] = dtype
    return ModelSpec(
        name=entry["names"][0],
        architecture=entry["architecture"],
        model_type=entry["model_type"],
        source="catalog",
        path=entry["hub"],
        tensors=tensors,
        layers=tuple(kinds[i] for i in entry["layers"]),
        exact_modules=True,
        vision=read_vision(entry["config"]) if entry["config"] else None,
        config=json.dumps(entry["config"]) if entry["config"] else "",
        **own,
    )


def _layer(row: dict[str, Any]) -> Layer:
    states = tuple(State(**state) for state in row.get("states", ()))
    return Layer(**{**row, "states": states})


def _tensors(entry: dict[str, Any]) -> Iterator[Tensor]:
    shapes = [[_tensor(row) for row in rows] for rows in entry["shapes"]]
    for prefix, first, kinds in entry["stacks"]:
        if first is None:
            yield from shapes[kinds[0]]
            continue
        for offset, kind in enumerate(kinds):
            for tensor in shapes[kind]:
                name = f"{prefix}{first + offset}{tensor.name}"
                tied = tensor.tied_to
                yield Tensor(
                    name=name,
                    shape=tensor.shape,
                    dtype=tensor.dtype,
                    bytes=tensor.bytes,
                    kind=tensor.kind,
                    tied_to=tied,
                )


def _tensor(row: Sequence[Any]) -> Tensor:
    name, shape, dtype, size, kind, tied = row
    size = size if size is not None else math.prod(shape) * DTYPE_BITS[dtype] // 8
    return Tensor(name=name, shape=tuple(shape), dtype=dtype, bytes=size, kind=kind, tied_to=tied)


def _cast(tensor: Tensor, dtype: str | None) -> Tensor:
    if dtype is None or tensor.kind == "buffer" or tensor.dtype not in _PLAIN:
        return tensor
    size = math.prod(tensor.shape) * DTYPE_BITS[dtype] // 8
    return Tensor(
        name=tensor.name, shape=tensor.shape, dtype=dtype, bytes=size, tied_to=tensor.tied_to
    )


def entry_of(
    spec: ModelSpec, *, names: Sequence[str], hub: str | None, source: str
) -> dict[str, Any]:
    """Return the catalogue's entry of a model.

    Args:
        spec: built from its config.
        names: what people call it, the first one first.
        hub: its Hub id, if known.
        source: where its config was published.
    """
    kinds: dict[Layer, int] = {}
    layers = [kinds.setdefault(layer, len(kinds)) for layer in spec.layers]
    shapes: dict[str, int] = {}
    return {
        "names": [plain_name(name) for name in names],
        "hub": hub,
        "source": source,
        "architecture": spec.architecture,
        "model_type": spec.model_type,
        **{name: getattr(spec, name) for name in (*_FACTS, *_MORE)},
        "config": _facts_of(json.loads(spec.config)) if spec.config else None,
        "layer_kinds": [_row(layer) for layer in kinds],
        "layers": layers,
        "stacks": _stacks(spec.tensors, shapes),
        "shapes": [json.loads(text) for text in shapes],
    }


def _facts_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a config decides the model's shape: no file names, tokens or texts."""
    kept: dict[str, Any] = {}
    for name, value in config.items():
        if _NO_FACT.search(name) or value is None:
            continue
        if isinstance(value, Mapping):
            value = _facts_of(value)  # noqa: PLW2901 - the same, shorter
        kept[name] = value
    return kept


_NO_FACT = re.compile(
    r"^_|token_id$|version|name_or_path|auto_map|quantization_config|label|task_specific|"
    r"id2|2id|length_penalty|num_beams|diversity|bad_words|prefix|problem_type|output_"
)


def _row(layer: Layer) -> dict[str, Any]:
    defaults = {f.name: f.default for f in fields(Layer)}
    row = {name: value for name, value in asdict(layer).items() if value != defaults[name]}
    row.pop("extra", None)
    return row


def _stacks(tensors: Sequence[Tensor], shapes: dict[str, int]) -> list[list[Any]]:
    """Return runs of tensors: [prefix, first layer, shape of each layer] or [None, None, [id]]."""
    runs: list[tuple[str | None, int | None, list[list[Any]]]] = []
    for tensor in tensors:
        match = _LAYER.match(tensor.name)
        prefix = match[1] if match else None
        number = int(match[2]) if match else None
        name = match[3] if match else tensor.name
        size = None if tensor.dtype in DTYPE_BITS and _is_plain(tensor) else tensor.bytes
        row = [name, list(tensor.shape), tensor.dtype, size, tensor.kind, tensor.tied_to]
        if runs and runs[-1][0] == prefix and runs[-1][1] == number:
            runs[-1][2].append(row)
        else:
            runs.append((prefix, number, [row]))
    stacks: list[list[Any]] = []
    for prefix, number, rows in runs:
        shape = shapes.setdefault(json.dumps(rows), len(shapes))
        last = stacks[-1] if stacks else None
        if last and number is not None and _follows(last, prefix, number):
            last[2].append(shape)
        else:
            stacks.append([prefix, number, [shape]])
    return stacks


def _follows(last: list[Any], prefix: str | None, number: int) -> bool:
    return last[0] == prefix and last[1] is not None and last[1] + len(last[2]) == number


def _is_plain(tensor: Tensor) -> bool:
    return tensor.bytes * 8 == math.prod(tensor.shape) * DTYPE_BITS[tensor.dtype]
