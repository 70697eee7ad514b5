"""Reading model files with limits: nothing here trusts what it reads."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

from memplan.errors import BadModelError, ModelNotFoundError
from memplan.formats import safetensors
from memplan.formats.gguf import Source
from memplan.types import Tensor

__all__ = [
    "MAX_JSON_BYTES",
    "join_shards",
    "parse_json",
    "read_head",
    "read_json",
    "read_safetensors",
    "read_sharded",
    "regular_size",
]

MAX_JSON_BYTES = 64 * 1024**2
"""Largest config.json or index that is read (the 671B index has 9 MB)."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises ModelNotFoundError when it is not there and BadModelError when it is too large, no
    valid JSON, holds NaN, is nested too deeply, or is no object.
    """
    try:
        size = regular_size(path)
        if size > MAX_JSON_BYTES:
            raise BadModelError(
                f"{path} has {size} bytes: too large for a config or an index",
                hint="name the model's folder, its config.json or its *.safetensors.index.json",
            )
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{path} does not exist") from error
    except OSError as error:
        raise BadModelError(f"cannot read {path}: {error.strerror or error}") from error
    return parse_json(data, str(path))


def regular_size(path: Path) -> int:
    """Return the bytes of a plain file.

    Raises BadModelError for a pipe, a device or a folder (reading one might never end), and
    OSError.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise BadModelError(f"{path} is no plain file", hint="name a file or a model's folder")
    return status.st_size


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object in a file's bytes. Raises BadModelError, see `read_json`."""
    try:
        found = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadModelError(
            f"{where} is not valid JSON: {error}", hint="download the file again"
        ) from error
    if not isinstance(found, dict):
        raise BadModelError(f"{where} holds no JSON object", hint="download the file again")
    return found


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
        size = regular_size(path)
        with path.open("rb") as file:
            return read_head(_Opened(file, size), str(path))
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{path} does not exist", hint="is a shard missing?") from error
    except OSError as error:
        raise BadModelError(f"cannot read {path}: {error.strerror or error}") from error


class _Opened:
    """An open file as a `Source`."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self.size = file, size

    def read(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(length)


def read_head(source: Source, where: str) -> tuple[Tensor, ...]:
    """Read the header of a safetensors file, wherever it is. Raises BadModelError."""
    prefix = source.read(0, safetensors.PREFIX_BYTES)
    length = safetensors.header_length(prefix, source.size, where)
    header = source.read(safetensors.PREFIX_BYTES, length)
    if len(header) < length:
        raise BadModelError(f"{where} is truncated", hint="download the file again")
    return safetensors.parse_header(header, source.size, where)


def read_sharded(index_path: Path) -> tuple[Tensor, ...]:
    """Read the headers of all shards that a `*.safetensors.index.json` names.

    Raises BadModelError when the index names a file outside its folder, when a tensor it lists is
    in no shard, and whatever `read_safetensors` raises.
    """

    def read(names: list[str]) -> Iterable[tuple[Tensor, ...]]:
        return (read_safetensors(index_path.parent / name) for name in names)

    return join_shards(read_json(index_path), str(index_path), read)


def join_shards(
    index: dict[str, Any],
    where: str,
    read: Callable[[list[str]], Iterable[tuple[Tensor, ...]]],
) -> tuple[Tensor, ...]:
    """Return the tensors of all shards of an index.

    Args:
        index: the parsed `*.safetensors.index.json`.
        where: its name, for messages.
        read: gives the tensors of each of the shards that it is handed the names of.

    Raises BadModelError, see `read_sharded`, and what `read` raises.
    """
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadModelError(f"{where} has no weight_map", hint="download the file again")
    tensors = [tensor for shard in read(_shard_names(weight_map, where)) for tensor in shard]
    found = {tensor.name for tensor in tensors}
    if len(found) != len(tensors):
        raise BadModelError(f"{where}: the same tensor is in two shards")
    missing = weight_map.keys() - found
    if missing:
        raise BadModelError(
            f"{where} lists {len(missing)} tensors that are in no shard, such as {min(missing)!r}",
            hint="download the shards again",
        )
    return tuple(tensors)


def _shard_names(weight_map: dict[str, Any], where: str) -> list[str]:
    texts = {value for value in weight_map.values() if isinstance(value, str)}
    others = [value for value in weight_map.values() if not isinstance(value, str)]
    return sorted(_shard_name(value, where) for value in (*texts, *others[:1]))


def _shard_name(value: Any, where: str) -> str:
    if not isinstance(value, str) or Path(value).name != value or value in ("", ".", ".."):
        raise BadModelError(
            f"{where} names a shard outside its folder: {value!r}", hint="download the index again"
        )
    return value
