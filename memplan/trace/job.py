"""What is traced, and what comes out: both plain data, so that a trace can be kept."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from memplan.trace.kernels import Target
from memplan.trace.record import Phase, Share
from memplan.types import Workload
from memplan.versions import installed_version

__all__ = ["Job", "Traced"]

_FORMAT = 4
"""Raised when a trace of the same job would come out otherwise."""

_FIELDS = (
    "task",
    "dtype",
    "quant",
    "context",
    "batch",
    "prefill_chunk",
    "attention",
    "logits",
    "method",
    "optimizer",
    "seq",
    "grad_accum",
    "checkpointing",
    "precision",
    "loss",
    "data",
    "eval_batch",
    "lora_rank",
    "lora_targets",
    "lora_dropout",
    "lora_dtype",
)
"""What of a workload changes a trace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One model, one workload, one kind of device."""

    config: str
    """The model's config.json; "" for a model that code builds."""
    workload: Workload
    """Complete, as `memplan.footprint.defaults.complete` returns it."""
    target: Target
    """Where it would run."""
    folder: str | None = None
    """Folder of the config, where its own Python code is to be run; None = it is not."""

    module: str | None = None
    """"module.path:callable" that builds the model, in place of a config."""

    @property
    def lasting(self) -> bool:
        """The model is what it was: no code that is not a library's builds it."""
        return self.folder is None and self.module is None

    def key(self) -> str:
        """Return a name that only the same job with the same libraries has."""
        work = {name: getattr(self.workload, name) for name in _FIELDS}
        versions = [installed_version(name) for name in ("torch", "transformers", "peft")]
        text = json.dumps([_FORMAT, versions, self.config, work, asdict(self.target)])
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """What a trace says. Sizes are bytes as they were asked for, where nothing else is said."""

    peak_bytes: int
    """Most that was alive at once."""
    peak_phase: str
    """Phase of that instant."""
    parts: dict[str, int]
    """What was alive then, by category."""
    phases: tuple[Phase, ...]
    """The phases with their own peaks."""
    shares: tuple[Share, ...]
    """What was alive at the peak by category, module and operator, largest first."""
    weights_bytes: int
    """Parameters, tied ones once."""
    buffers_bytes: int
    """Buffers."""
    gradients_bytes: int
    """All gradients."""
    optimizer_bytes: int
    """The optimizer's state after its first step."""
    paged_bytes: int = 0
    """Part of the optimizer's state that lies in unified memory, outside torch's allocator."""
    cache_bytes: int = 0
    """Keys, values and states after the last token (infer)."""
    allocated_bytes: int | None = None
    """Peak of what torch's CUDA allocator counts (512 B at least each); None on the host."""
    reserved_bytes: int | None = None
    """Peak of what that allocator takes from the driver; None on the host."""
    expandable_bytes: int | None = None
    """The same with expandable segments."""
    events: int = 0
    """Allocations and releases."""
    seconds: float = 0.0
    """What the trace took."""
    notes: tuple[str, ...] = field(default=())
    """What a reader must know."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Traced:
        """Return what `to_json` wrote. Raises KeyError, TypeError and ValueError for others."""
        phases = tuple(Phase(**row) for row in data["phases"])
        shares = tuple(Share(**row) for row in data["shares"])
        values = {**data, "phases": phases, "shares": shares, "notes": tuple(data["notes"])}
        return cls(**values)
