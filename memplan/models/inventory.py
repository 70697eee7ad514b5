"""Tensor inventories that were built once, kept by the content of the config.

Key: SHA-256 over the config's canonical JSON, the dtype and the version of transformers, since
each of them can change a tensor. A damaged or foreign file is a miss, never an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memplan.config import cache_dir
from memplan.types import Tensor
from memplan.versions import installed_version

__all__ = ["load_inventory", "save_inventory"]

_FORMAT = 2


def _path(config: Mapping[str, Any], dtype: str | None) -> Path | None:
    version = installed_version("transformers")
    if version is None:
        return None
    text = json.dumps([_FORMAT, version, dtype, config], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return cache_dir() / "inventory" / f"{digest}.json"


def load_inventory(
    config: Mapping[str, Any], dtype: str | None
) -> tuple[tuple[Tensor, ...], dict[str, Any]] | None:
    """Return the stored tensors and filled-in config of a config.json, or None."""
    path = _path(config, dtype)
    if path is None:
        return None
    try:
        data = json.loads(path.read_bytes())
        if data["format"] != _FORMAT:
            return None
        tensors = tuple(_tensor(row) for row in data["tensors"])
        return tensors, dict(data["config"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _tensor(row: list[Any]) -> Tensor:
    name, shape, dtype, size, kind, tied_to = row
    return Tensor(
        name=name, shape=tuple(shape), dtype=dtype, bytes=size, kind=kind, tied_to=tied_to
    )


def save_inventory(
    config: Mapping[str, Any],
    dtype: str | None,
    tensors: tuple[Tensor, ...],
    filled: Mapping[str, Any],
) -> None:
    """Keep an inventory; a cache that cannot be written is no reason to fail."""
    path = _path(config, dtype)
    if path is None:
        return
    rows = [[t.name, t.shape, t.dtype, t.bytes, t.kind, t.tied_to] for t in tensors]
    text = json.dumps({"format": _FORMAT, "tensors": rows, "config": filled})
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
