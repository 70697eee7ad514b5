"""The device maps that accelerate makes, for comparison."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from memplan.errors import MissingDependencyError, UnsupportedModelError
from memplan.models.meta import build_model
from memplan.types import ModelSpec

__all__ = ["accelerate_map"]


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Drop what accelerate says about GPUs that are planned for and not here."""
    logger = logging.getLogger("accelerate.utils.modeling")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def accelerate_map(spec: ModelSpec, room: Mapping[str, int]) -> dict[str, str]:
    """Return accelerate's device_map ("auto" without balancing) for the room that a plan leaves.

    Args:
        spec: a model with its config.
        room: device name -> bytes for weights; "cpu" and "cuda:N".

    Raises MissingDependencyError without accelerate, and UnsupportedModelError for a model whose
    config is not known.
    """
    try:
        from accelerate import infer_auto_device_map
    except ImportError as error:
        raise MissingDependencyError(
            "accelerate is not installed", hint="pip install 'memplan[models]'"
        ) from error
    if not spec.config:
        raise UnsupportedModelError(
            f"{spec.name} has no config.json to build for accelerate", hint="leave --beside out"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(spec.config, encoding="utf-8")
        model, _ = build_model(path, dtype=spec.dtype)
    sizes = {
        int(name.removeprefix("cuda:")) if name != "cpu" else name: max(size, 0)
        for name, size in room.items()
    }
    with _silenced():
        found = infer_auto_device_map(
            model,
            max_memory=sizes,
            no_split_module_classes=list(model._no_split_modules or ()),  # noqa: SLF001
        )
    return {
        module: place if place in ("cpu", "disk") else f"cuda:{place}"
        for module, place in found.items()
    }
