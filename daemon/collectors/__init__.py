"""What the sampler reads: host memory, process trees, control groups, GPUs."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from memplan_daemon.clock import Clock
from memplan_daemon.collectors.base import Collector, Event, Gap, Reading, Watch
from memplan_daemon.collectors.cgroup import CgroupCollector
from memplan_daemon.collectors.gpu import GpuCollector, amd_problem
from memplan_daemon.collectors.host import HostCollector
from memplan_daemon.collectors.process import PSS_INTERVAL_S, ProcessCollector
from memplan_daemon.proc import ProcFolder

__all__ = ["Collector", "Collectors", "Event", "Gap", "Reading", "Watch", "default_collectors"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collectors:
    """Every collector, and those of them that are asked for more than readings."""

    process: ProcessCollector
    """The process trees."""
    gpus: tuple[GpuCollector, ...]
    """One for each vendor."""
    all: tuple[Collector, ...]
    """In the order in which they are asked."""

    def close(self) -> None:
        """End the probes."""
        for gpu in self.gpus:
            gpu.close()

    def gpu_pids(self, uuid: str | None) -> AbstractSet[int]:
        """Return the processes on a GPU, or (None) on any."""
        first, *others = (gpu.pids(uuid) for gpu in self.gpus)
        return first.union(*others) if others else first

    def cpu_ns(self) -> int:
        """Return the CPU time of the running probes, in nanoseconds."""
        return sum(gpu.cpu_ns() for gpu in self.gpus)


def default_collectors(clock: Clock, *, pss_interval_s: float = PSS_INTERVAL_S) -> Collectors:
    """Return every collector, reading this machine.

    Args:
        clock: paces them.
        pss_interval_s: seconds between two readings of a process's PSS.
    """
    proc = ProcFolder()
    process = ProcessCollector(clock, pss_interval_s)
    gpus = [GpuCollector(clock)]
    if not amd_problem():  # nothing to tell where nobody expects it
        gpus.append(GpuCollector(clock, "amd", problem=amd_problem))
    every: tuple[Collector, ...] = (HostCollector(proc), process, CgroupCollector(proc), *gpus)
    return Collectors(process=process, gpus=tuple(gpus), all=every)
