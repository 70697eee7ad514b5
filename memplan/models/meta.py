"""The tensors of a model from its config alone: built by transformers on the meta device.

No weight is allocated and nothing is downloaded. Every architecture that transformers can build
is exact by construction, ties included (a plain `torch.device("meta")` context keeps them, where
accelerate's `init_empty_weights` breaks them). Imports torch: seconds the first time, so the
result is kept by `memplan.models.inventory`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from memplan.errors import (
    BadModelError,
    MemplanError,
    MissingDependencyError,
    UnsupportedModelError,
)
from memplan.models.numbers import architecture
from memplan.types import Tensor
from memplan.versions import installed_version

__all__ = [
    "Inventory",
    "build_inventory",
    "build_model",
    "module_tensors",
    "plain_config",
    "quiet",
]

Inventory = tuple[tuple[Tensor, ...], dict[str, Any]]
"""Tensors in definition order, and the config with transformers' defaults filled in."""


def build_inventory(
    config_path: Path, *, dtype: str | None = None, trust_remote_code: bool = False
) -> Inventory:
    """Build the model of a config file on the meta device and list its tensors.

    Args and errors: see `build_model`.
    """
    model, filled = build_model(config_path, dtype=dtype, trust_remote_code=trust_remote_code)
    return module_tensors(model), filled


def build_model(
    config_path: Path,
    *,
    dtype: str | None = None,
    attention: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """Build the model of a config file on the meta device.

    Args:
        config_path: a config.json (only with trust_remote_code is code beside it run).
        dtype: torch's dtype name to build in; None = what the config says, else float32.
        attention: transformers' name of an implementation; None = the model's default.
        trust_remote_code: run the Python files of the folder. Never set by memplan itself.

    Returns the nn.Module, and the config with transformers' defaults filled in.

    Raises MissingDependencyError without torch and transformers, UnsupportedModelError for an
    architecture that this transformers does not know, BadModelError for a config that it refuses.
    """
    _refuse_unknown(config_path, trust_remote_code=trust_remote_code)
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            f"reading a model from its config alone needs torch and transformers ({error})",
            hint="pip install 'memplan[models]'",
        ) from error
    with quiet(transformers):
        config = _load_config(transformers, config_path, trust_remote_code=trust_remote_code)
        if dtype is not None:
            config.dtype = getattr(torch, dtype)
        if attention is not None:
            config._attn_implementation = attention  # noqa: SLF001 - as from_pretrained sets it
        model = _build(torch, transformers, config, trust_remote_code=trust_remote_code)
        filled = _plain(config.to_dict())
        built = getattr(model, "config", config)
        # A decoder taken out of an encoder-decoder caches no encoder.
        filled["is_encoder_decoder"] = bool(getattr(built, "is_encoder_decoder", False))
        return model, filled


def _refuse_unknown(config_path: Path, *, trust_remote_code: bool) -> None:
    """Refuse a model type that transformers does not name, without importing it (seconds)."""
    from memplan.models.files import read_json

    raw = read_json(config_path)
    model_type = raw.get("model_type")
    found = importlib.util.find_spec("transformers")
    if found is None or not found.origin or (trust_remote_code and raw.get("auto_map")):
        return
    folder = Path(found.origin).parent / "models" / "auto"
    wanted = f'"{_SAME.get(str(model_type), model_type)}"'
    texts = [file.read_text("utf-8") for file in folder.glob("*.py")]
    if not texts or any(wanted in text for text in texts):
        return
    if raw.get("auto_map"):
        raise UnsupportedModelError(
            f"{config_path}: model type {model_type!r} needs Python code from the model's folder",
            hint="read that code, then repeat with --trust-remote-code",
        )
    raise UnsupportedModelError(
        f"{config_path}: transformers {installed_version('transformers')} does not know "
        f"model type {str(model_type)[:60]!r}",
        hint="upgrade transformers, or name a folder with safetensors files (headers suffice)",
    )


def _load_config(transformers: Any, config_path: Path, *, trust_remote_code: bool) -> Any:
    from memplan.models.files import read_json

    raw = read_json(config_path)
    model_type = raw.get("model_type")
    known = model_type in transformers.CONFIG_MAPPING
    if not known and model_type in _SAME:
        return _as_type(transformers.CONFIG_MAPPING[_SAME[model_type]], raw, config_path)
    if not known and raw.get("auto_map") and not trust_remote_code:
        raise UnsupportedModelError(
            f"{config_path}: model type {model_type!r} needs Python code from the model's folder",
            hint="read that code, then repeat with --trust-remote-code",
        )
    if not known and not raw.get("auto_map"):
        raise UnsupportedModelError(
            f"{config_path}: transformers {transformers.__version__} does not know model type "
            f"{model_type!r}",
            hint="upgrade transformers, or name a folder with safetensors files (headers suffice)",
        )
    try:
        return transformers.AutoConfig.from_pretrained(
            str(config_path), trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:
        raise _refused(config_path, error) from error


_SAME = {"kimi_k2": "deepseek_v3"}
"""Published names of model types that are another's classes, by their own config.json."""


def _as_type(config_class: Any, raw: Mapping[str, Any], config_path: Path) -> Any:
    own = {k: v for k, v in raw.items() if k not in ("auto_map", "model_type", "rope_scaling")}
    try:
        return config_class.from_dict(own)
    except Exception as error:
        raise _refused(config_path, error) from error


def _build(torch: Any, transformers: Any, config: Any, *, trust_remote_code: bool) -> Any:
    name = architecture({"architectures": config.architectures})
    cls = getattr(transformers, name, None) if name else None
    try:
        with torch.device("meta"):
            if cls is not None and hasattr(cls, "_from_config"):
                return cls._from_config(config)
            # A composite config's decoder has a config, and a dtype, of its own.
            wanted = {"dtype": config.dtype} if getattr(config, "dtype", None) else {}
            return transformers.AutoModelForCausalLM.from_config(
                config, trust_remote_code=trust_remote_code, **wanted
            )
    except MemplanError:
        raise
    except Exception as error:
        raise _refused("the config", error) from error


def _refused(what: Path | str, error: Exception) -> BadModelError:
    text = " ".join(str(error).split())
    return BadModelError(
        f"transformers cannot build the model of {what}: {type(error).__name__}: {text[:300]}",
        hint="check the config file (memplan --debug shows the traceback)",
    )


def module_tensors(model: Any) -> tuple[Tensor, ...]:
    """List the parameters and buffers of an nn.Module in definition order.

    A tensor that is reached by a second name is listed again with `tied_to` = its first name.
    """
    first: dict[int, str] = {}
    result = []
    for kind in ("parameter", "buffer"):
        for name, tensor in getattr(model, f"named_{kind}s")(remove_duplicate=False):
            owner = first.setdefault(id(tensor), name)
            result.append(
                Tensor(
                    name=name,
                    shape=tuple(tensor.shape),
                    dtype=str(tensor.dtype).removeprefix("torch."),
                    bytes=tensor.numel() * tensor.element_size(),
                    kind="parameter" if kind == "parameter" else "buffer",
                    tied_to=None if owner == name else owner,
                )
            )
    return tuple(result)


def plain_config(config: Any) -> dict[str, Any]:
    """Return a transformers config as plain JSON values; {} for anything else."""
    to_dict = getattr(config, "to_dict", None)
    value = _plain(to_dict()) if callable(to_dict) else {}
    return value if isinstance(value, dict) else {}


def _plain(value: Any) -> Any:
    """Return a config's dict with only what JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return str(value).removeprefix("torch.")


@contextlib.contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Keep the library's chatter off the terminal: a plan's answer is all that is printed."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    offline = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        transformers.logging.set_verbosity(level)
        if offline is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = offline
