"""A model on the Hub -> ModelSpec, by the headers of its files; no weight is ever read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from memplan.errors import ModelNotFoundError, UnsupportedModelError
from memplan.formats.safetensors import PREFIX_BYTES, header_length
from memplan.hub.names import HubName
from memplan.hub.repo import Repo, open_repo
from memplan.models.files import MAX_JSON_BYTES, join_shards, parse_json, read_head
from memplan.models.gguf import gguf_spec, read_files, shard_names
from memplan.models.resolve import Loader, weight_file
from memplan.types import ModelSpec, Tensor

__all__ = ["hub_spec"]

CONNECTIONS = 8
"""Shards whose headers are read at once."""

_LABEL = re.compile(r"(?:^|[-._])((?:IQ|Q|TQ|F|BF|MXFP|NVFP)\d\w*)$", re.IGNORECASE)
_SPLIT = re.compile(r"-(\d{5})-of-\d{5}$")
_BESIDE = ("mmproj", "imatrix", "mtp-")
"""GGUF files that are no language model."""


def hub_spec(
    name: HubName, *, dtype: str | None, exact_modules: bool, trust_remote_code: bool
) -> ModelSpec:
    """Read a model's headers from the Hub or from a cache.

    Args:
        name: repository, revision and, where there are several models, which file.
        dtype: torch's name of the dtype that the weights will be loaded in; None = the model's.
        exact_modules: build the model where the headers alone do not show its modules.
        trust_remote_code: download the repository's Python code and run it.

    Raises ModelError, MissingDependencyError.
    """
    repo = open_repo(name)
    path = f"{repo.id}@{repo.commit}"
    file = _gguf_file(repo, name.file)
    if file is not None:
        return _gguf(repo, file, path)
    config, tensors = _read(repo, name.file)

    def config_path() -> Path:
        if trust_remote_code and config and config.get("auto_map"):
            return repo.code_folder() / "config.json"
        return repo.plain_file("config.json", MAX_JSON_BYTES)

    loader = Loader(
        name=PurePosixPath(repo.id).name,
        path=path,
        config_path=config_path,
        trust_remote_code=trust_remote_code,
        source="hub",
        preprocessor=_preprocessor(repo),
        origin=f"{'headers' if tensors else 'config.json'} of {repo.origin()}",
    )
    return loader.load(config, tensors, dtype=dtype, exact_modules=exact_modules)


def _preprocessor(repo: Repo) -> dict[str, Any] | None:
    """Return how images are cut, where the repository says so."""
    name = "preprocessor_config.json"
    if name not in repo.names:
        return None
    return parse_json(repo.read(name, MAX_JSON_BYTES), f"{repo.id}/{name}")


def _read(
    repo: Repo, wanted: str | None
) -> tuple[dict[str, Any] | None, tuple[Tensor, ...] | None]:
    """Return the config and the tensors, as far as the repository has them."""
    config = None
    if "config.json" in repo.names:
        config = parse_json(repo.read("config.json", MAX_JSON_BYTES), f"{repo.id}/config.json")
    top = [file for file in repo.names if "/" not in file]
    file = wanted if wanted in repo.names else weight_file(top, repo.id)
    if wanted is not None and file != wanted:
        raise _no_file(repo, wanted)
    if file is not None and file.endswith(".safetensors"):
        return config, _shard(repo, file)
    if file is not None and file.endswith(".safetensors.index.json"):
        where = f"{repo.id}/{file}"
        index = parse_json(repo.read(file, MAX_JSON_BYTES), where)
        return config, join_shards(index, where, lambda names: _shards(repo, file, names))
    if config is None or wanted not in (None, "config.json"):
        raise _no_model(repo)
    return config, None


def _shards(repo: Repo, index: str, names: list[str]) -> Iterable[tuple[Tensor, ...]]:
    folder = PurePosixPath(index).parent
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return list(pool.map(lambda name: _shard(repo, str(folder / name)), names))


def _shard(repo: Repo, name: str) -> tuple[Tensor, ...]:
    file = repo.open(name)
    where = f"{repo.id}/{name}"
    tensors = read_head(file, where)
    length = header_length(file.read(0, PREFIX_BYTES), file.size, where)
    repo.keep(name, file, PREFIX_BYTES + length)
    return tensors


def _gguf(repo: Repo, first: str, path: str) -> ModelSpec:
    folder = PurePosixPath(first).parent
    names = [str(folder / name) for name in shard_names(PurePosixPath(first).name)]
    files = [(name, repo.open(name)) for name in names]
    model = read_files([(f"{repo.id}/{name}", file) for name, file in files])
    for name, file in files:
        repo.keep(name, file)
    origin = f"header of {first} of {repo.origin()}"
    stem = _SPLIT.sub("", PurePosixPath(first).stem)
    return gguf_spec(model, name=stem, path=f"{path}:{first}", source="hub", origin=origin)


def _gguf_file(repo: Repo, wanted: str | None) -> str | None:
    """Return the GGUF file that is asked for, or None when the model is not one.

    Raises ModelNotFoundError when several could be meant, or none.
    """
    if wanted in repo.names:
        return wanted if wanted.endswith(".gguf") else None
    labels: dict[str, list[str]] = {}
    for file in repo.names:
        stem = PurePosixPath(file).stem
        split = _SPLIT.search(stem)
        aside = PurePosixPath(file).name.lower().startswith(_BESIDE)
        if not file.endswith(".gguf") or aside or (split and split[1] != "00001"):
            continue
        label = _LABEL.search(_SPLIT.sub("", stem))
        labels.setdefault((label[1] if label else stem).upper(), []).append(file)
    found = labels.get((wanted or "").upper(), [])
    if wanted is None and len(labels) == 1 and not _has_plain_weights(repo):
        found = next(iter(labels.values()))
    if len(found) == 1:
        return found[0]
    if wanted is None and (not labels or _has_plain_weights(repo)):
        return None
    if found:
        raise ModelNotFoundError(
            f"{repo.id} has several files of {wanted}: {', '.join(sorted(found)[:4])}",
            hint=f"name one: {repo.id}:{min(found)}",
        )
    if wanted is not None and not labels:
        return None
    listed = ", ".join(sorted(labels)[:40])
    what = f"no file {wanted!r}" if wanted else f"{len(labels)} GGUF models"
    raise ModelNotFoundError(
        f"{repo.id} has {what}: {listed}",
        hint=f"name one: {repo.id}:{'Q4_K_M' if 'Q4_K_M' in labels else min(labels)}",
    )


def _has_plain_weights(repo: Repo) -> bool:
    return any("/" not in name and name.endswith(".safetensors") for name in repo.names)


def _no_file(repo: Repo, wanted: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"{repo.id} has no file {wanted!r}",
        hint=f"leave it out: {repo.id}, or name one of its files",
    )


def _no_model(repo: Repo) -> UnsupportedModelError:
    if "adapter_config.json" in repo.names:
        return UnsupportedModelError(
            f"{repo.id} is an adapter, not a model", hint="name the model that it belongs to"
        )
    if "model_index.json" in repo.names:
        return UnsupportedModelError(
            f"{repo.id} is a pipeline of several models (diffusers)",
            hint=f"name one file: {repo.id}:unet/diffusion_pytorch_model.safetensors",
        )
    kinds = ", ".join(sorted({Path(name).suffix or name for name in repo.names})[:8])
    return UnsupportedModelError(
        f"{repo.id} has neither config.json nor safetensors nor GGUF files ({kinds})",
        hint="name a repository with one of them",
    )
