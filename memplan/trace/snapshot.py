"""A recording as torch.cuda.memory._snapshot would give it, so that its own viewer opens it.

https://pytorch.org/memory_viz and `python -m torch.cuda._memory_viz trace_plot FILE` read it.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from memplan.errors import UsageError
from memplan.trace.allocator import Entry, Replay, replay
from memplan.trace.record import Recording
from memplan.trace.settings import AllocatorSettings

__all__ = ["snapshot", "write_snapshot"]

_ACTIONS = {"alloc": ("alloc",), "free": ("free_requested", "free_completed")}


def snapshot(recording: Recording, settings: AllocatorSettings | None = None) -> dict[str, Any]:
    """Return the structure: segments at the end, and everything that led to them."""
    settings = settings or AllocatorSettings()
    done = replay(recording, settings, log=True)
    trace = [row for entry in done.log for row in _rows(recording, entry)]
    return {
        "segments": _segments(recording, done),
        "device_traces": [trace],
        "allocator_settings": {
            "expandable_segments": settings.expandable_segments,
            "max_split_size": settings.max_split_size_bytes or -1,
            "garbage_collection_threshold": settings.garbage_collection_threshold,
            "roundup_power2_divisions": {},
        },
        "external_annotations": [],
    }


def write_snapshot(
    path: Path, recording: Recording, settings: AllocatorSettings | None = None
) -> None:
    """Write a snapshot to a .pickle or .json file. Raises UsageError for another suffix."""
    if path.suffix not in (".pickle", ".json"):
        raise UsageError(f"{path.name}: a snapshot is .pickle or .json", hint="name it so")
    value = snapshot(recording, settings)
    try:
        if path.suffix == ".json":
            path.write_text(json.dumps(value), encoding="utf-8")
        else:
            path.write_bytes(pickle.dumps(value, protocol=4))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def _rows(recording: Recording, entry: Entry) -> list[dict[str, Any]]:
    common = {
        "addr": entry.address,
        "size": entry.size,
        "stream": 0,
        "time_us": entry.event,
        "frames": _frames(recording, entry.event),
    }
    names = _ACTIONS.get(entry.action, (entry.action,))
    return [{"action": name, **common} for name in names]


def _frames(recording: Recording, event: int) -> list[dict[str, Any]]:
    number = recording.events[event]
    block = recording.blocks[number if number >= 0 else ~number]
    names = [str(block.operator), block.module, block.phase]
    return [{"name": name, "filename": "", "line": 0} for name in names if name]


def _segments(recording: Recording, done: Replay) -> list[dict[str, Any]]:
    """Return the segments that are there at the end, with their blocks."""
    sizes: dict[int, int] = {}
    live: dict[int, Entry] = {}
    for entry in done.log:
        if entry.action == "segment_alloc":
            sizes[entry.address] = entry.size
        elif entry.action == "segment_free":
            _cut(sizes, entry)
        elif entry.action == "alloc":
            live[entry.address] = entry
        elif entry.action == "free":
            del live[entry.address]
    return [_segment(recording, a, size, live) for a, size in sorted(sizes.items())]


def _cut(sizes: dict[int, int], entry: Entry) -> None:
    """Take a stretch of memory away from the segments it lies in."""
    end = entry.address + entry.size
    for address in [a for a in sizes if a < end and a + sizes[a] > entry.address]:
        whole = sizes.pop(address)
        if address < entry.address:
            sizes[address] = entry.address - address
        if address + whole > end:
            sizes[end] = address + whole - end


def _segment(
    recording: Recording, address: int, size: int, live: dict[int, Entry]
) -> dict[str, Any]:
    own = [live[a] for a in sorted(live) if address <= a < address + size]
    blocks, place = [], address
    for entry in own:
        if entry.address > place:
            blocks.append(_block(place, entry.address - place, "inactive", []))
        frames = _frames(recording, entry.event)
        blocks.append(_block(entry.address, entry.size, "active_allocated", frames))
        place = entry.address + entry.size
    if place < address + size:
        blocks.append(_block(place, address + size - place, "inactive", []))
    taken = sum(entry.size for entry in own)
    return {
        "device": 0,
        "address": address,
        "total_size": size,
        "allocated_size": taken,
        "active_size": taken,
        "requested_size": taken,
        "stream": 0,
        "segment_type": "small" if size <= 2 * 2**20 else "large",
        "segment_pool_id": (0, 0),
        "is_expandable": False,
        "frames": [],
        "blocks": blocks,
    }


def _block(address: int, size: int, state: str, frames: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "address": address,
        "size": size,
        "requested_size": size,
        "state": state,
        "frames": frames,
    }
