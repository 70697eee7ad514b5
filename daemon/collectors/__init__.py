"""What the sampler reads: host memory, process trees, control groups, NVIDIA GPUs."""

from __future__ import annotations

from memplan_daemon.clock import Clock
from memplan_daemon.collectors.base import Collector, Reading, Watch
from memplan_daemon.collectors.cgroup import CgroupCollector
from memplan_daemon.collectors.host import HostCollector
from memplan_daemon.collectors.nvml import NvmlCollector
from memplan_daemon.collectors.process import ProcessCollector
from memplan_daemon.proc import ProcFolder

__all__ = ["Collector", "Reading", "Watch", "default_collectors"]


def default_collectors(clock: Clock) -> tuple[Collector, ...]:
    """Return every collector, reading this machine."""
    proc = ProcFolder()
    return (
        HostCollector(proc),
        ProcessCollector(clock),
        CgroupCollector(proc),
        NvmlCollector(clock),
    )
