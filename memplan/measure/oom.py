"""When a GPU's allocator runs out of memory: one bounded description of what it holds.

Recording a history of allocations costs time and memory all along; this looks once, at the moment
of the failure, at the segments that exist then. Only builds of torch with CUDA or ROCm can do it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["MOST_BLOCKS", "describe", "watch_oom"]

MOST_BLOCKS = 2000
"""Blocks that are listed: the largest. The sums are over all."""

MOST_FILES = 10
"""Descriptions that a folder may hold: a job that fails in a loop must not fill the disk."""

_state: dict[str, Any] = {"watching": False, "written": False}


def describe(torch: Any, device: int, wanted: int) -> dict[str, Any]:
    """Return what the allocator of a device holds.

    Args:
        torch: the module.
        device: number of the device.
        wanted: bytes that were asked for.
    """
    segments = [s for s in torch.cuda.memory_snapshot() if s.get("device") == device]
    blocks = [
        {"address": block.get("address"), "size": block["size"], "state": block["state"]}
        for segment in segments
        for block in segment.get("blocks", ())
    ]
    blocks.sort(key=lambda block: -block["size"])
    return {
        "schema": "memplan.oom/1",
        "pid": os.getpid(),
        "t_ns": time.time_ns(),
        "device": device,
        "wanted_bytes": wanted,
        "segments": len(segments),
        "reserved_bytes": sum(segment["total_size"] for segment in segments),
        "allocated_bytes": sum(segment["allocated_size"] for segment in segments),
        "largest_free_bytes": max(
            (block["size"] for block in blocks if block["state"] == "inactive"), default=0
        ),
        "blocks": blocks[:MOST_BLOCKS],
        "blocks_left_out": max(len(blocks) - MOST_BLOCKS, 0),
    }


def watch_oom(tell: Callable[[str, str], None], *, folder: str) -> bool:
    """Write one description per process when an allocation fails; tell whether torch can.

    Args:
        tell: called with a line of text and the file's path, "" where none was written.
        folder: where to write; made when needed, readable by this user only.

    torch must have been imported; otherwise False, and a later call may succeed.
    """
    torch = sys.modules.get("torch")
    attach = getattr(getattr(torch, "_C", None), "_cuda_attachOutOfMemoryObserver", None)
    if attach is None or _state["watching"]:
        return bool(_state["watching"])

    def observe(device: int, wanted: int, limit: int, free: int) -> None:
        del limit, free
        text = f"process {os.getpid()}: cuda:{device} could not allocate {wanted} bytes"
        path = ""
        if not _state["written"]:  # the first failure tells most; later ones only count
            _state["written"] = True
            with contextlib.suppress(Exception):  # torch is about to raise: never in its way
                path = _write(Path(folder), describe(torch, device, wanted))
        with contextlib.suppress(Exception):
            tell(text, path)

    attach(observe)
    _state["watching"] = True
    return True


def _write(folder: Path, description: dict[str, Any]) -> str:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    old = sorted(folder.glob("oom-*.json"))
    for oldest in old[: max(len(old) - MOST_FILES + 1, 0)]:
        oldest.unlink(missing_ok=True)
    path = folder / f"oom-{description['t_ns']}-{description['pid']}.json"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(description, file)
    return str(path)
