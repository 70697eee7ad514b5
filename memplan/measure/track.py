"""`track`: one phase of a program, with what was in memory at its end."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any, Self

from memplan.errors import MissingDependencyError
from memplan.measure import agent
from memplan.measure.counters import process_counters, tensor_counters, torch_counters
from memplan.measure.exact import MemoryTrace
from memplan.types import FrozenMap, Phase

__all__ = ["Tracked", "track"]


class Tracked(contextlib.ContextDecorator):
    """A phase: `with` it, or decorate a function. Nested and repeated use is fine."""

    def __init__(
        self,
        name: str,
        *,
        model: Any = None,
        optimizer: Any = None,
        cache: Any = None,
        exact: bool = False,
    ) -> None:
        """See `track`."""
        self.name = name
        self.phase: Phase | None = None
        """The result, once the phase has ended."""
        self._watched: dict[str, Any] = {"model": model, "optimizer": optimizer, "cache": cache}
        self._exact = exact
        self._started: list[tuple[int, MemoryTrace | None]] = []

    def watch(self, *, model: Any = None, optimizer: Any = None, cache: Any = None) -> None:
        """Name what is to be counted at the end; for what is made inside the phase."""
        found = {"model": model, "optimizer": optimizer, "cache": cache}
        self._watched |= {name: value for name, value in found.items() if value is not None}

    def __enter__(self) -> Self:
        """Begin; the sampler is told at once, so that a phase that is cut off is known, too."""
        trace = _trace() if self._exact else None
        started = time.time_ns()
        self._started.append((started, trace))
        agent.report(self._phase(started))
        return self

    def __exit__(self, *details: object) -> None:
        """Count, and report the phase to the sampler if there is one."""
        started, trace = self._started.pop()
        counters = {**process_counters(), **torch_counters(), **tensor_counters(**self._watched)}
        if trace is not None:
            counters |= trace.stop()
        self.phase = self._phase(started, max(time.time_ns(), started), counters)
        agent.report(self.phase)

    def _phase(
        self, started: int, ended: int | None = None, counters: dict[str, int] | None = None
    ) -> Phase:
        return Phase(
            run_id=agent.run_id(),
            name=self.name,
            pid=os.getpid(),
            started_ns=started,
            ended_ns=ended,
            counters=FrozenMap(counters),
        )


def track(
    name: str,
    *,
    model: Any = None,
    optimizer: Any = None,
    cache: Any = None,
    exact: bool = False,
) -> Tracked:
    """Mark a phase of the program.

    At its end are read: this process's RSS and its peak; each used GPU's allocated and reserved
    bytes and their peaks since the program began; and the sums over the tensors of what is
    watched, by device.

    Args:
        name: "start", "load", "prefill", "decode", "forward", "backward", "optimizer_step" or a
            word of your own. "start", after the imports and before the first weight, tells the
            comparison what the interpreter itself takes.
        model: an nn.Module whose weights, buffers and gradients are counted.
        optimizer: a torch optimizer whose states are counted.
        cache: a transformers cache.
        exact: also follow every allocation by torch.profiler: "cpu.peak_allocated" is then the
            highest sum of what was allocated since the phase began. For short phases; inside a
            profiler that runs already there is no such counter.

    Raises MissingDependencyError for exact without torch.
    """
    return Tracked(name, model=model, optimizer=optimizer, cache=cache, exact=exact)


def _trace() -> MemoryTrace:
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            "exact phases need torch", hint="pip install 'memplan[models]'"
        ) from error
    trace = MemoryTrace(torch)
    trace.start()
    return trace
