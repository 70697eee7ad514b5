"""Reading model files with limits: nothing here trusts what it reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from memplan.errors import BadModelError, ModelNotFoundError
from memplan.formats import safetensors
from memplan.types import Tensor

__all__ = ["read_json", "read_safetensors", "read_sharded"]

MAX_JSON_BYTES = 64 * 1024**2
"""Largest config.json or index that is read (the 671B index has 9 MB)."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises ModelNotFoundError when it is not there and BadModelError when it is too large, no
    valid JSON, holds NaN, is nested too deeply, or is no object.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise BadModelError(
                f"{path} has {size} bytes: too large for a config or an index",
                hint="name the model's folder, its config.json or its *.safetensors.index.json",
            )
        data = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{path} does not exist") from error
    except OSError as error:
        raise BadModelError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise BadModelError(
            f"{path} is not valid JSON: {error}", hint="download the file again"
        ) from error
    if not isinstance(data, dict):
        raise BadModelError(f"{path} holds no JSON object", hint="download the file again")
    return data


def _refuse_constant(name: str) -> float:
    """Refuse NaN. Infinity is what published configs have in time_step_limit (Nemotron-H)."""
    if name == "NaN":
        raise ValueError("NaN is not allowed")
    return float(name.replace("Infinity", "inf"))


def read_safetensors(path: Path) -> tuple[Tensor, ...]:
    """Read the header of one safetensors file; the weights are never read.

    Raises ModelNotFoundError and BadModelError.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = safetensors.header_length(file.read(safetensors.PREFIX_BYTES), size, str(path))
            header = file.read(length)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{path} does not exist", hint="is a shard missing?") from error
    except OSError as error:
        raise BadModelError(f"cannot read {path}: {error.strerror or error}") from error
    if len(header) < length:
        raise BadModelError(f"{path} is truncated", hint="download the file again")
    return safetensors.parse_header(header, size, str(path))


def read_sharded(index_path: Path) -> tuple[Tensor, ...]:
    """Read the headers of all shards that a `*.safetensors.index.json` names.

    Raises BadModelError when the index names a file outside its folder, when a tensor it lists is
    in no shard, and whatever `read_safetensors` raises.
    """
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadModelError(f"{index_path} has no weight_map", hint="download the file again")
    tensors: list[Tensor] = []
    for name in _shard_names(weight_map, index_path):
        tensors += read_safetensors(index_path.parent / name)
    found = {tensor.name for tensor in tensors}
    if len(found) != len(tensors):
        raise BadModelError(f"{index_path}: the same tensor is in two shards")
    missing = weight_map.keys() - found
    if missing:
        raise BadModelError(
            f"{index_path} lists {len(missing)} tensors that are in no shard, such as "
            f"{min(missing)!r}",
            hint="download the shards again",
        )
    return tuple(tensors)


def _shard_names(weight_map: dict[str, Any], index_path: Path) -> list[str]:
    texts = {value for value in weight_map.values() if isinstance(value, str)}
    others = [value for value in weight_map.values() if not isinstance(value, str)]
    return sorted(_shard_name(value, index_path) for value in (*texts, *others[:1]))


def _shard_name(value: Any, index_path: Path) -> str:
    if not isinstance(value, str) or Path(value).name != value or value in ("", ".", ".."):
        raise BadModelError(f"{index_path} names a shard outside its folder: {value!r}")
    return value
