"""The machine's memory, from /proc/meminfo."""

from __future__ import annotations

from collections.abc import Iterable

from memplan_daemon.collectors.base import Reading, Watch
from memplan_daemon.proc import ProcFolder, kib_fields

__all__ = ["HostCollector"]


class HostCollector:
    """Reads total, available, free and used memory, and used swap, once per tick.

    Used is total less available: what cannot be had without swapping. Page cache that can be
    dropped does not count as used.
    """

    def __init__(self, proc: ProcFolder) -> None:
        """Remember which /proc to read."""
        self._proc = proc

    def collect(self, watch: Watch) -> Iterable[Reading]:
        """Return the host's readings; nothing for a run."""
        if watch.run_id is not None or (data := self._proc.read("meminfo")) is None:
            return
        fields = kib_fields(data)
        total, available = fields.get("MemTotal"), fields.get("MemAvailable")
        values = {
            "total_bytes": total,
            "available_bytes": available,
            "free_bytes": fields.get("MemFree"),
            "used_bytes": _difference(total, available),
            "swap_bytes": _difference(fields.get("SwapTotal"), fields.get("SwapFree")),
        }
        for metric, value in values.items():
            if value is not None:
                yield Reading("host", metric, value)


def _difference(total: int | None, rest: int | None) -> int | None:
    return None if total is None or rest is None else total - rest
