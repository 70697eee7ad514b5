"""Traces that were made once, kept by content.

A damaged or foreign file is a miss, never an error, and a cache that cannot be written is no
reason to fail.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path

from memplan.config import cache_dir
from memplan.trace.job import Job, Traced

__all__ = ["load_trace", "save_trace"]


def _path(job: Job) -> Path:
    return cache_dir() / "traces" / f"{job.key()}.json"


def load_trace(job: Job) -> Traced | None:
    """Return the kept trace of a job, or None."""
    if not job.lasting:
        return None
    try:
        return Traced.from_json(json.loads(_path(job).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def save_trace(job: Job, traced: Traced) -> None:
    """Keep a trace, but not of a model that code of its user builds: that may change."""
    if not job.lasting:
        return
    path = _path(job)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(traced.to_json(), file)
        Path(name).replace(path)
