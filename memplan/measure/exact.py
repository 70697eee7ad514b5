"""The exact peak of CPU tensors within a phase, by torch's profiler (slow; on request only)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["MemoryTrace", "peak_of"]


def peak_of(changes: Iterable[int]) -> int:
    """Return the highest running sum of changes in bytes, from 0 at the beginning."""
    highest = total = 0
    for change in changes:
        total += change
        highest = max(highest, total)
    return highest


class MemoryTrace:
    """Records every allocation and release of torch's CPU allocator between start and stop.

    Costs about a quarter of the speed, and memory in proportion to the operations: for short
    phases. Profilers do not nest: inside one that runs already there is no answer.
    """

    def __init__(self, torch: Any) -> None:
        """Prepare a profiler.

        Args:
            torch: the module.
        """
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_initialized():
            activities.append(ProfilerActivity.CUDA)
        self._profiler: Any = None
        if not torch.autograd._profiler_enabled():  # noqa: SLF001 - there is no public way to ask
            self._profiler = profile(activities=activities, profile_memory=True)

    def start(self) -> None:
        """Begin to record."""
        if self._profiler is not None:
            self._profiler.start()

    def stop(self) -> dict[str, int]:
        """End, and return cpu.peak_allocated: the peak above what lived at the start, in bytes."""
        if self._profiler is None:
            return {}
        self._profiler.stop()
        results = self._profiler.profiler.kineto_results
        events = [event for event in results.events() if event.name() == "[memory]"]
        events = [event for event in events if str(event.device_type()).endswith("CPU")]
        events.sort(key=lambda event: event.start_ns())
        return {"cpu.peak_allocated": peak_of(event.nbytes() for event in events)}
