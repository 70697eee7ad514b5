"""`module.path:callable` -> ModelSpec: a model that the user's own code builds."""

from __future__ import annotations

import importlib
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from memplan.errors import BadModelError, MissingDependencyError, ModelNotFoundError
from memplan.models.active import active_parameters
from memplan.models.facts import Facts, read_facts
from memplan.models.meta import module_tensors, plain_config
from memplan.models.numbers import architecture
from memplan.models.vision import read_vision
from memplan.types import ModelSpec

__all__ = ["build_module", "is_callable_name", "module_spec"]

_NAME = re.compile(r"(?!hf:)[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_callable_name(argument: str) -> bool:
    """Say whether an argument has the form "module.path:callable"."""
    return _NAME.fullmatch(argument) is not None


def module_spec(argument: str, *, dtype: str | None = None) -> ModelSpec:
    """List the module that the user's code builds; see `build_module` for arguments and errors.

    A `config` on the model, as transformers' have, gives the shapes of layers and caches.
    """
    return _spec(argument, build_module(argument, dtype=dtype))


def build_module(argument: str, *, dtype: str | None = None) -> Any:
    """Call it under `torch.device("meta")` and return the nn.Module that it builds.

    This runs the user's code, as naming it asks for; modules are also found in the current folder.

    Args:
        argument: "package.module:function", a function without arguments.
        dtype: torch's dtype name to build in; None = torch's default.

    Raises MissingDependencyError without torch or what the code itself imports, ModelNotFoundError
    when there is no such module or attribute, BadModelError when it fails or returns no nn.Module.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            f"building a module needs torch ({error})", hint="pip install 'memplan[models]'"
        ) from error
    function = _attribute(argument)
    default = torch.get_default_dtype()
    try:
        if dtype is not None:
            torch.set_default_dtype(getattr(torch, dtype))
        with torch.device("meta"):
            model = function()
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise BadModelError(f"{argument} failed: {type(error).__name__}: {text}") from error
    finally:
        torch.set_default_dtype(default)
    if not isinstance(model, torch.nn.Module):
        raise BadModelError(
            f"{argument} returned {type(model).__name__}, no nn.Module",
            hint="name a function without arguments that builds the model",
        )
    return model


def _attribute(argument: str) -> Any:
    module, _, path = argument.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        value: Any = importlib.import_module(module)
        for name in path.split("."):
            value = getattr(value, name)
    except ImportError as error:
        if error.name and error.name.partition(".")[0] != module.partition(".")[0]:
            raise MissingDependencyError(
                f"{argument} needs {error.name}, which is not installed",
                hint=f"pip install {error.name.partition('.')[0]}",
            ) from error
        raise ModelNotFoundError(
            f"no {argument}: {error}", hint="name it as package.module:function"
        ) from error
    except AttributeError as error:
        raise ModelNotFoundError(
            f"no {argument}: {error}", hint="name it as package.module:function"
        ) from error
    finally:
        sys.path.remove(here)
    return value


def _spec(argument: str, model: Any) -> ModelSpec:
    tensors = module_tensors(model)
    config = plain_config(getattr(model, "config", None))
    facts: Facts | None = read_facts(config, tensors) if config else None
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.kind == "parameter" and not tensor.tied_to:
            sizes[tensor.dtype] += tensor.bytes
    if not sizes:
        raise BadModelError(f"{argument} built a model without parameters")
    dtype = sizes.most_common(1)[0][0]
    return ModelSpec(
        name=argument,
        architecture=architecture(config) or type(model).__name__,
        model_type=str(config["model_type"]) if config.get("model_type") else None,
        source="module",
        path=argument,
        tensors=tensors,
        layers=facts.layers if facts else (),
        dtype=dtype,
        weight_format=dtype,
        exact_modules=True,
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
        vision=read_vision(config),
    )
