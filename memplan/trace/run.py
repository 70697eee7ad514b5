"""Job -> Traced: runs the model's code on fake tensors, or takes what was kept."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable
from pathlib import Path

from memplan.errors import MemplanError, MissingDependencyError, UnsupportedModelError
from memplan.trace.allocator import replay
from memplan.trace.job import Job, Traced
from memplan.trace.keep import load_trace, save_trace
from memplan.trace.record import PAGED, Recording
from memplan.trace.settings import AllocatorSettings

__all__ = ["NotTracedError", "record_job", "summarise", "trace"]

SHARES = 64
"""How many of the largest shares are kept."""


class NotTracedError(UnsupportedModelError):
    """The model's code cannot run on fake tensors; the message names the operator and the line."""


def trace(job: Job, *, kept: bool = True) -> Traced:
    """Return what a job takes.

    Args:
        job: what runs.
        kept: take the answer from the cache where it is there, and put it there.

    Raises NotTracedError, MissingDependencyError without torch, and what building the model
    raises.
    """
    found = load_trace(job) if kept else None
    if found is not None:
        return found
    begin = time.monotonic()
    recording = record_job(job)
    gpu = job.target.kind == "gpu"
    traced = summarise(recording, gpu=gpu, seconds=time.monotonic() - begin)
    if kept:
        save_trace(job, traced)
    return traced


def record_job(job: Job) -> Recording:
    """Run a job on fake tensors and return every allocation. Errors: see `trace`."""
    try:
        import torch  # noqa: F401 - is it there?
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            f"a trace runs the model's own code, which needs torch and transformers ({error})",
            hint="pip install 'memplan[models]', or --estimator formula",
        ) from error
    from memplan.models.meta import quiet
    from memplan.trace.step import record

    try:
        with quiet(transformers):
            return record(job).recording
    except (MemplanError, KeyboardInterrupt):
        raise
    except ImportError as error:
        raise MissingDependencyError(
            f"this model needs a package that is not installed: {error}",
            hint="install it, or --estimator formula",
        ) from error
    except Exception as error:
        raise NotTracedError(_reason(error), hint="--estimator formula") from error


def _reason(error: Exception) -> str:
    """Return what failed and where: the innermost line outside torch."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_foreign(frame.filename)]
    place = ""
    if own:
        last = own[-1]
        place = f" at {Path(last.filename).name}:{last.lineno} ({(last.line or '').strip()[:80]})"
    operator = getattr(error, "func", None)
    what = str(operator) if operator is not None else " ".join(str(error).split())[:120]
    return f"{type(error).__name__}: {what}{place}"


def _is_foreign(path: str) -> bool:
    parts = Path(path).parts
    return "torch" in parts or "memplan" in parts[-3:]


def summarise(recording: Recording, *, gpu: bool = True, seconds: float = 0.0) -> Traced:
    """Return the figures of a recording.

    Args:
        recording: of a job.
        gpu: run it through the CUDA caching allocator, too.
        seconds: what it took.
    """
    peak, event = recording.peak()
    phases = recording.phases()
    phase = next(x.name for x in phases if x.begin <= event < x.end)
    labels = _labels(recording)
    usual = replay(recording) if gpu else None
    growing = replay(recording, AllocatorSettings(expandable_segments=True)) if gpu else None
    return Traced(
        peak_bytes=peak,
        peak_phase=phase,
        parts=recording.parts(event),
        phases=phases,
        shares=tuple(recording.shares(event)[:SHARES]),
        weights_bytes=labels.get("weights", 0),
        buffers_bytes=labels.get("buffers", 0),
        gradients_bytes=_highest(recording, "gradients"),
        optimizer_bytes=labels.get("optimizer", 0) + labels.get(PAGED, 0),
        paged_bytes=labels.get(PAGED, 0),
        cache_bytes=_at_end(recording, "kv_cache"),
        allocated_bytes=usual.allocated_bytes if usual else None,
        reserved_bytes=usual.reserved_bytes if usual else None,
        expandable_bytes=growing.reserved_bytes if growing else None,
        events=len(recording.events),
        seconds=seconds,
    )


def _labels(recording: Recording) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for block in recording.blocks:
        if block.label:
            sizes[block.label] = sizes.get(block.label, 0) + block.size
    return sizes


def _at_end(recording: Recording, label: str) -> int:
    """Return the bytes of one label that are alive where the last phase begins."""
    event = recording.marks[-1][1] - 1
    return sum(block.size for block in recording.alive(event) if block.label == label)


def _highest(recording: Recording, label: str) -> int:
    """Return the most bytes of one label that were alive at once."""
    best = total = 0
    for size in _changes(recording, label):
        total += size
        best = max(best, total)
    return best


def _changes(recording: Recording, label: str) -> Iterable[int]:
    for event in recording.events:
        block = recording.blocks[event if event >= 0 else ~event]
        if block.label == label:
            yield block.size if event >= 0 else -block.size
