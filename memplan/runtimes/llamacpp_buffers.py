"""llama.cpp's compute buffers, one on each device that has a part of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memplan.footprint.lines import band_line
from memplan.runtimes.llamacpp import compute_bytes
from memplan.types import Layer, Line, ModelSpec, Workload
from memplan.units import MIB

__all__ = ["Share", "buffer_line", "host_buffer_line"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What of a model one device computes."""

    layers: tuple[Layer, ...]
    """Shapes of its layers, each once."""
    output: bool
    """True when the logits are computed there."""
    copied_bytes: int = 0
    """Largest weight in host memory that is copied there for a prompt."""
    pipelined: bool = False
    """True when several GPUs work on different micro-batches at once."""


def buffer_line(spec: ModelSpec, workload: Workload, share: Share) -> Line:
    size = compute_bytes(spec, workload) + share.copied_bytes
    return band_line("activations", size, low=0, high=size + MIB, source="compute buffer")


def host_buffer_line(spec: ModelSpec, workload: Workload, layers: Sequence[Layer]) -> Line:
    size = compute_bytes(spec, workload)
    return band_line("activations", size, low=0, high=size + MIB, source="compute buffer")
