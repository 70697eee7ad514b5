"""MODEL argument -> ModelSpec.

folder with *.safetensors     headers (no torch); module names from a kept inventory if any
folder with config.json only  meta build by transformers, kept by content
config.json                   the same
*.safetensors, *.index.json   headers; config.json beside them is used when there
*.gguf                        header; all shards of a split file
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memplan.errors import BadModelError, ModelNotFoundError, UnsupportedModelError
from memplan.models.active import active_parameters
from memplan.models.annotations import check_values
from memplan.models.facts import read_facts, text_config
from memplan.models.files import read_json, read_safetensors, read_sharded
from memplan.models.gguf import gguf_spec, read_local
from memplan.models.inventory import load_inventory, save_inventory
from memplan.models.mtp import mtp_layers, split_mtp
from memplan.models.numbers import architecture
from memplan.models.packed import has_companions, logical
from memplan.models.quantize import quantize
from memplan.models.stored import stored_scheme
from memplan.models.vision import read_vision
from memplan.types import ModelSource, ModelSpec, Tensor
from memplan.units import DTYPE_BITS, dtype_name

__all__ = ["Loader", "resolve", "weight_file"]

_SINGLE = "model.safetensors"
_PREPROCESSOR = "preprocessor_config.json"
_INDEX = "model.safetensors.index.json"


def resolve(
    argument: str,
    *,
    dtype: str | None = None,
    exact_modules: bool = False,
    trust_remote_code: bool = False,
) -> ModelSpec:
    """Read the model that a command line names.

    Args:
        argument: folder, config.json, *.safetensors or *.safetensors.index.json.
        dtype: torch's name of the dtype that the weights will be loaded in; None = the model's.
        exact_modules: build the model when the headers alone do not show its modules (imports
            torch); without it, that is done only for a bare config.
        trust_remote_code: run Python code from the model's folder.

    Raises ModelNotFoundError, BadModelError, UnsupportedModelError, MissingDependencyError.
    """
    path = Path(argument).expanduser()
    file = _gguf_file(path)
    if file is not None:
        return gguf_spec(read_local(file), name=file.stem, path=str(path), source="gguf")
    config_path, tensors = _read(path, argument)
    config = read_json(config_path) if config_path else None
    if tensors is None and config is None:
        raise _not_found(argument)
    folder = path if path.is_dir() or path.name != "config.json" else path.parent
    loader = Loader(
        name=folder.resolve().name,
        path=str(path),
        config_path=(lambda: config_path) if config_path else None,
        trust_remote_code=trust_remote_code,
        preprocessor=_beside(config_path, _PREPROCESSOR),
    )
    return loader.load(config, tensors, dtype=dtype, exact_modules=exact_modules)


def _beside(config_path: Path | None, name: str) -> dict[str, Any] | None:
    """Return a JSON file that lies beside the config, or None."""
    path = config_path.parent / name if config_path else None
    return read_json(path) if path and path.is_file() else None


def _as_stored(spec: ModelSpec, config: Mapping[str, Any]) -> ModelSpec:
    """Return a model that was built from its config in the layout of its checkpoint."""
    stored = stored_scheme(config)
    if stored is None:
        return spec
    scheme, skip = stored
    return quantize(spec, config, scheme, skip=skip)


def _unpacked(tensors: tuple[Tensor, ...], config: Mapping[str, Any] | None) -> tuple[Tensor, ...]:
    """Fold scales and packed integers of a quantized file into one tensor for each weight."""
    if not has_companions(tensors):
        return tensors
    try:
        stored = stored_scheme(config or {})
    except UnsupportedModelError:
        stored = None  # sizes are in the files, which are here
    return logical(tensors, stored[0] if stored else None)


def _gguf_file(path: Path) -> Path | None:
    """Return the GGUF file that a path names: itself, or the only one of a folder without more."""
    if path.suffix == ".gguf":
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    files = sorted(path.glob("*.gguf"))
    firsts = [file for file in files if "-of-" not in file.name or "-00001-of-" in file.name]
    return firsts[0] if len(firsts) == 1 else None


def _with_tied_head(config: Mapping[str, Any], tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Add the output matrix that a file leaves out because it is the input embedding.

    The name is that of every *ForCausalLM with `embed_tokens` in transformers 5.
    """
    embeddings = [t for t in tensors if t.name.endswith("embed_tokens.weight")]
    name = architecture(config) or ""
    stored = any("lm_head" in tensor.name for tensor in tensors)
    if stored or len(embeddings) != 1 or not name.endswith("ForCausalLM"):
        return tensors
    return (*tensors, replace(embeddings[0], name="lm_head.weight", tied_to=embeddings[0].name))


def _read(path: Path, argument: str) -> tuple[Path | None, tuple[Tensor, ...] | None]:
    """Return the config's place (or None) and the tensors from headers (or None)."""
    if path.is_dir():
        config = path / "config.json"
        return (config if config.exists() else None), _read_folder(path)
    if not path.exists():
        raise _not_found(argument)
    beside = path.parent / "config.json"
    config_path = beside if beside.exists() else None
    if path.name.endswith(".safetensors.index.json"):
        return config_path, read_sharded(path)
    if path.suffix == ".safetensors":
        return config_path, read_safetensors(path)
    if path.suffix == ".json":
        return path, None
    raise UnsupportedModelError(
        f"{argument} is no kind of model file that memplan reads",
        hint="name a folder, a config.json, a .gguf or .safetensors file, or an .index.json",
    )


def _read_folder(folder: Path) -> tuple[Tensor, ...] | None:
    name = weight_file([file.name for file in folder.glob("*.safetensors*")], str(folder))
    if name is None:
        return None
    return (
        read_sharded(folder / name) if name.endswith(".json") else read_safetensors(folder / name)
    )


def weight_file(names: Iterable[str], where: str) -> str | None:
    """Return which safetensors file or index of a folder is its model, None when it has none.

    Raises BadModelError when there are several files and no index.
    """
    known = sorted(names)
    singles = [name for name in known if name.endswith(".safetensors")]
    indices = [name for name in known if name.endswith(".safetensors.index.json")]
    for name in (_INDEX, _SINGLE, *indices):
        if name in known:
            return name
    if len(singles) == 1:
        return singles[0]
    if singles:
        raise BadModelError(
            f"{where} has {len(singles)} safetensors files and no index",
            hint=f"download {_INDEX} too, or name one file",
        )
    return None


def _not_found(argument: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"no model at {argument!r}",
        hint="name a folder, a config.json, a .gguf or .safetensors file, a model of the "
        "catalogue, or a Hub id org/name",
    )


def _config_dtype(config: Mapping[str, Any]) -> str | None:
    for part in (config, text_config(config)):
        value = part.get("dtype") or part.get("torch_dtype")
        if isinstance(value, str) and value != "auto":
            return dtype_name(value)
    return None


_ORIGINS = {
    "safetensors": "safetensors headers",
    "config": "config.json, built on the meta device",
}
_FLOATS = ("float64", "float32", "bfloat16", "float16")


def _convert(tensor: Tensor, dtype: str) -> Tensor:
    """Return the tensor as loaded in a dtype: plain floats are cast, packed ones are kept."""
    if tensor.dtype not in _FLOATS or tensor.dtype == dtype:
        return tensor
    size = tensor.bytes * DTYPE_BITS[dtype] // DTYPE_BITS[tensor.dtype]
    return replace(tensor, dtype=dtype, bytes=size)


def _same_weights(built: tuple[Tensor, ...], read: tuple[Tensor, ...]) -> bool:
    want = sum(t.bytes for t in built if t.kind == "parameter" and not t.tied_to)
    return want == sum(t.bytes for t in read)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """Turns a config and the tensors of a checkpoint into a ModelSpec."""

    name: str
    """For people."""
    path: str
    """Where it was read."""
    config_path: Callable[[], Path] | None
    """Gives the config on this disk, for transformers to build from, when that is needed."""
    trust_remote_code: bool
    """Run Python code from the config's folder."""
    source: ModelSource | None = None
    """Where it was read, when that is not told by what was read."""
    origin: str = ""
    """The same in words."""
    preprocessor: Mapping[str, Any] | None = None
    """The parsed preprocessor_config.json, if there is one."""

    def load(
        self,
        config: dict[str, Any] | None,
        tensors: tuple[Tensor, ...] | None,
        *,
        dtype: str | None,
        exact_modules: bool,
    ) -> ModelSpec:
        """Return the model; without tensors it is built from its config.

        Args:
            config: the parsed config.json, if there is one.
            tensors: from the headers of the weights, if there are any.
            dtype: torch's name of the dtype that the weights will be loaded in; None = the model's.
            exact_modules: see `resolve`.

        Raises what `resolve` raises.
        """
        spec = self._load(config, tensors, dtype=dtype, exact_modules=exact_modules)
        return replace(spec, config=json.dumps(config)) if config is not None else spec

    def _load(
        self,
        config: dict[str, Any] | None,
        tensors: tuple[Tensor, ...] | None,
        *,
        dtype: str | None,
        exact_modules: bool,
    ) -> ModelSpec:
        if tensors is None:
            assert config is not None
            packed = "bfloat16" if stored_scheme(config) else None
            wanted = dtype or _config_dtype(config) or packed
            built, filled = self.inventory(config, wanted)
            return _as_stored(self.spec(filled, built, "config", exact=True), config)
        tensors, ahead = split_mtp(config, _unpacked(tensors, config))
        spec = self._stored(config, tensors, dtype=dtype, exact_modules=exact_modules)
        wanted = dtype or (_config_dtype(config) if config else None)
        ahead = tuple(_convert(tensor, wanted) for tensor in ahead) if wanted else ahead
        return replace(spec, mtp=ahead, mtp_layers=mtp_layers(ahead)) if ahead else spec

    def _stored(
        self,
        config: dict[str, Any] | None,
        tensors: tuple[Tensor, ...],
        *,
        dtype: str | None,
        exact_modules: bool,
    ) -> ModelSpec:
        """Return the model of a checkpoint's tensors."""
        wanted = dtype or (_config_dtype(config) if config else None)
        converted = tuple(_convert(tensor, wanted) for tensor in tensors) if wanted else tensors
        if config is None:
            return self.spec(None, converted, "safetensors", exact=False)
        found = load_inventory(config, wanted)
        if found is None and exact_modules:
            found = self.inventory(config, wanted)
        if found is not None and _same_weights(found[0], converted):
            return self.spec(found[1], found[0], "safetensors", exact=True)
        return self.spec(config, _with_tied_head(config, converted), "safetensors", exact=False)

    def inventory(
        self, config: dict[str, Any], dtype: str | None
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Return the meta build of the config, kept or made now."""
        found = load_inventory(config, dtype)
        if found is not None and not self.trust_remote_code:
            return found
        from memplan.models.meta import build_inventory

        read_facts(config)
        if not self.trust_remote_code:
            check_values(config)
        assert self.config_path is not None
        tensors, filled = build_inventory(
            self.config_path(), dtype=dtype, trust_remote_code=self.trust_remote_code
        )
        if not self.trust_remote_code:
            save_inventory(config, dtype, tensors, filled)
        return tensors, filled

    def spec(
        self,
        config: Mapping[str, Any] | None,
        tensors: tuple[Tensor, ...],
        source: ModelSource,
        *,
        exact: bool,
    ) -> ModelSpec:
        """Put the parts together."""
        facts = read_facts(config, tensors) if config is not None else None
        dtype = _main_dtype(tensors)
        return ModelSpec(
            name=self.name,
            architecture=architecture(config or {}),
            model_type=_model_type(config),
            source=self.source or source,
            path=self.path,
            origin=self.origin or _ORIGINS[source],
            tensors=tensors,
            layers=facts.layers if facts else (),
            dtype=dtype,
            weight_format=_weight_format(config, dtype),
            exact_modules=exact,
            hidden=facts.hidden if facts else 0,
            heads=facts.heads if facts else 0,
            head_dim=facts.head_dim if facts else 0,
            vocab=facts.vocab if facts else 0,
            rotary_dim=facts.rotary_dim if facts else 0,
            max_context=facts.max_context if facts else None,
            active_parameters=active_parameters(
                tensors,
                experts=facts.experts if facts else None,
                chosen=facts.experts_per_token if facts else None,
            ),
            experts_per_token=facts.experts_per_token if facts else None,
            vision=read_vision(config, self.preprocessor) if config is not None else None,
        )


def _model_type(config: Mapping[str, Any] | None) -> str | None:
    value = (config or {}).get("model_type")
    return value if isinstance(value, str) else None


def _main_dtype(tensors: tuple[Tensor, ...]) -> str:
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.kind == "parameter" and not tensor.tied_to:
            sizes[tensor.dtype] += tensor.bytes
    if not sizes:
        raise BadModelError("the model has no tensors", hint="check the file")
    return sizes.most_common(1)[0][0]


def _weight_format(config: Mapping[str, Any] | None, dtype: str) -> str:
    quantization = (config or {}).get("quantization_config")
    if isinstance(quantization, Mapping) and quantization.get("quant_method"):
        return str(quantization["quant_method"])
    return dtype
