"""GGUF files -> ModelSpec: one file or all shards of a split one, headers only."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memplan.errors import BadModelError, ModelNotFoundError
from memplan.formats.gguf import Source, read_gguf
from memplan.models.active import active_parameters
from memplan.models.files import regular_size
from memplan.models.gguf_layers import gguf_facts
from memplan.types import ModelSource, ModelSpec, Tensor

__all__ = ["GgufModel", "LocalFile", "gguf_spec", "read_files", "read_local", "shard_names"]

_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


class LocalFile:
    """A file on disk, read at offsets."""

    def __init__(self, path: Path) -> None:
        """Remember the path. Raises ModelNotFoundError and BadModelError."""
        self._path = path
        try:
            self.size = regular_size(path)
            self._file = path.open("rb", buffering=0)
        except FileNotFoundError as error:
            raise ModelNotFoundError(
                f"{path} does not exist", hint="is a shard missing?"
            ) from error
        except OSError as error:
            raise BadModelError(f"cannot read {path}: {error.strerror or error}") from error

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes at an offset. Raises BadModelError when the file cannot be read."""
        try:
            self._file.seek(offset)
            return self._file.read(length)
        except OSError as error:
            raise BadModelError(f"cannot read {self._path}: {error.strerror or error}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufModel:
    """All files of one model."""

    metadata: Mapping[str, Any]
    """Of the first file."""
    tensors: tuple[Tensor, ...]
    """Of all files, in order."""

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture, such as "qwen3moe"."""
        return str(self.metadata.get("general.architecture", ""))


def shard_names(name: str) -> list[str]:
    """Return the names of all shards of a split file, or the name alone.

    Raises BadModelError when the name is not the first shard's.
    """
    match = _SPLIT.search(name)
    if match is None:
        return [name]
    number, count = int(match[1]), int(match[2])
    stem = name[: match.start()]
    if number != 1:
        raise BadModelError(
            f"{name} is shard {number} of {count}", hint=f"name {stem}-00001-of-{count:05d}.gguf"
        )
    return [f"{stem}-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1)]


def read_files(sources: Sequence[tuple[str, Source]]) -> GgufModel:
    """Read the headers of one model's files, the first one first.

    Raises BadModelError when one is damaged or a tensor is in two files.
    """
    files = [read_gguf(source, name) for name, source in sources]
    tensors = tuple(tensor for file in files for tensor in file.tensors)
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise BadModelError(f"{sources[0][0]}: the same tensor is there twice")
    if not tensors:
        raise BadModelError(f"{sources[0][0]} has no tensors", hint="download the file again")
    return GgufModel(metadata=files[0].metadata, tensors=tensors)


def read_local(path: Path) -> GgufModel:
    """Read a file on disk, with all its shards. Raises ModelNotFoundError and BadModelError."""
    with contextlib.ExitStack() as stack:
        files: list[tuple[str, Source]] = []
        for name in shard_names(path.name):
            file = LocalFile(path.parent / name)
            stack.callback(file.close)
            files.append((str(path.parent / name), file))
        return read_files(files)


def gguf_spec(
    model: GgufModel, *, name: str, path: str, source: ModelSource, origin: str = ""
) -> ModelSpec:
    """Put a model together.

    Args:
        model: the headers.
        name: for people.
        path: where it was read.
        source: "gguf" or "hub".
        origin: where it was read, in words.

    Raises BadModelError for metadata that makes no sense.
    """
    facts = gguf_facts(model.metadata, model.tensors)
    sizes: Counter[str] = Counter()
    for tensor in model.tensors:
        sizes[tensor.dtype] += tensor.bytes
    kind = sizes.most_common(1)[0][0]
    return ModelSpec(
        name=name,
        architecture=model.architecture or None,
        model_type=model.architecture or None,
        source=source,
        path=path,
        origin=origin,
        tensors=model.tensors,
        layers=facts.layers if facts else (),
        dtype=kind,
        weight_format=f"gguf {kind}",
        exact_modules=False,
        hidden=facts.hidden if facts else 0,
        heads=facts.heads if facts else 0,
        head_dim=facts.head_dim if facts else 0,
        vocab=facts.vocab if facts else 0,
        max_context=facts.max_context if facts else None,
        active_parameters=active_parameters(
            model.tensors,
            experts=facts.experts if facts else None,
            chosen=facts.experts_per_token if facts else None,
        ),
        experts_per_token=facts.experts_per_token if facts else None,
    )
