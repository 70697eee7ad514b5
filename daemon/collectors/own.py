"""What the daemon itself costs, stored beside what it measures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from memplan_daemon.collectors.base import HostOnly, Reading, Watch
from memplan_daemon.proc import ProcFolder, kib_fields

__all__ = ["OwnCollector"]


class OwnCollector(HostOnly):
    """Reads "daemon" rss_bytes, cpu_microseconds and more at the medium pace.

    Its open files are counted at the rare one.
    """

    def __init__(
        self,
        *,
        database: str,
        counts: Callable[[], dict[str, int]],
        probe_cpu_ns: Callable[[], int],
    ) -> None:
        """Remember what to ask.

        Args:
            database: its file, or a URL.
            counts: returns further numbers by metric.
            probe_cpu_ns: returns the CPU time of the probes.
        """
        self._files = [] if "://" in database else [Path(database), Path(f"{database}-wal")]
        self._counts = counts
        self._probe_cpu_ns = probe_cpu_ns
        self._proc = ProcFolder()

    def cpu_ns(self) -> int:
        """Return the CPU time of the daemon and its probes so far, in nanoseconds."""
        return time.process_time_ns() + self._probe_cpu_ns()

    def collect(self, watch: Watch) -> Iterable[Reading]:
        """Return the daemon's own readings; nothing for a run."""
        return [] if watch.run_id is not None or "medium" not in watch.due else self._read(watch)

    def _read(self, watch: Watch) -> Iterator[Reading]:
        status = kib_fields(self._proc.read("self/status") or b"")
        if "VmRSS" in status:
            yield Reading("daemon", "rss_bytes", status["VmRSS"])
        yield Reading("daemon", "cpu_microseconds", self.cpu_ns() // 1000)
        if "rare" in watch.due:  # there are hundreds where hundreds of processes are held
            files = os.listdir("/proc/self/fd")  # noqa: PTH208
            yield Reading("daemon", "open_files_count", len(files))
        for name, file in zip(("database", "wal"), self._files, strict=False):
            try:
                yield Reading("daemon", f"{name}_bytes", file.stat().st_size)
            except OSError:
                continue
        for metric, value in self._counts().items():
            yield Reading("daemon", metric, value)
