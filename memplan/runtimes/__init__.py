"""One module per engine: its cache layout, compute buffers and fixed overhead.

An engine is a module with `NAME`, `cache_lines`, `layer_cache_bytes`, `activation_line`,
`overhead_line` and, when it can train, `training_line`. To add one, write the module and name it
here.
"""

from __future__ import annotations

from types import ModuleType

from memplan.errors import UsageError
from memplan.runtimes import exllama, llamacpp, transformers, vllm

__all__ = ["RUNTIMES", "runtime", "trainer"]

RUNTIMES: dict[str, ModuleType] = {
    engine.NAME: engine for engine in (transformers, vllm, llamacpp, exllama)
}
"""Name -> module."""


def runtime(name: str) -> ModuleType:
    """Return an engine's module. Raises UsageError for one without rules."""
    if name not in RUNTIMES:
        raise UsageError(f"no rules for runtime {name!r}", hint="one of: " + ", ".join(RUNTIMES))
    return RUNTIMES[name]


def trainer(name: str) -> ModuleType:
    """Return an engine that trains. Raises UsageError for one that does not."""
    engine = runtime(name)
    if not hasattr(engine, "training_line"):
        raise UsageError(f"{name} does not train", hint="use --runtime transformers")
    return engine
