"""One module per engine: its cache layout, compute buffers and fixed overhead.

An engine is a module with `cache_line`, `activation_line` and, when it can train,
`training_line`. To add one, write the module and name it here.
"""

from __future__ import annotations

from types import ModuleType

from memplan.errors import UsageError
from memplan.runtimes import transformers

__all__ = ["RUNTIMES", "runtime"]

RUNTIMES: dict[str, ModuleType] = {transformers.NAME: transformers}
"""Name -> module."""


def runtime(name: str) -> ModuleType:
    """Return an engine's module. Raises UsageError for one without rules."""
    if name not in RUNTIMES:
        raise UsageError(f"no rules for runtime {name!r}", hint="one of: " + ", ".join(RUNTIMES))
    return RUNTIMES[name]
