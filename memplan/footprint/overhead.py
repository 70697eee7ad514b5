"""What a process takes beside tensors: never zero, always an interval with its sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from memplan.types import Line
from memplan.units import GIB, MIB

__all__ = ["Cost", "context_line", "cost_line", "host_line", "overhead_line"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One thing that a process takes on a GPU beside tensors, as an interval."""

    name: str
    """"context", "cublas workspace", "nccl" ..."""
    bytes: int
    """What to count on."""
    low_bytes: int
    """Lower end."""
    high_bytes: int
    """Upper end."""
    source: str
    """Where it was published."""


def cost_line(costs: Sequence[Cost]) -> Line:
    """Return all costs as one line; its ends are the sums of theirs, so they are bounds."""
    names = ", ".join(f"{cost.name} {cost.bytes / MIB:.0f} MiB" for cost in costs)
    return Line(
        part="overhead",
        bytes=sum(cost.bytes for cost in costs),
        low_bytes=sum(cost.low_bytes for cost in costs),
        high_bytes=sum(cost.high_bytes for cost in costs),
        basis="assumed",
        source=f"{names}: published",
    )


_CUBLAS_BYTES = 8_519_680
"""cuBLAS workspace of PyTorch: 2 x 4096 KiB + 8 x 16 KiB (32 MiB on sm_90); source:
aten/src/ATen/cuda/CublasHandlePool.cpp. It lives in the caching allocator."""


def overhead_line(
    kind: Literal["gpu", "cpu"], baseline: int | None = None, costs: Sequence[Cost] = ()
) -> Line:
    """Return the fixed cost of a process on the device that computes.

    Args:
        kind: "gpu": context and workspaces; "cpu": the interpreter and its libraries.
        baseline: measured RSS of the interpreter in bytes (`memplan.devices.baseline`), if known.
        costs: what is known of this GPU (`memplan.devices.overhead`); none = of any GPU.
    """
    if kind == "gpu":
        return cost_line(costs) if costs else context_line()
    if baseline is None:
        return Line(
            part="overhead",
            bytes=450 * MIB,
            low_bytes=250 * MIB,
            high_bytes=GIB,
            basis="assumed",
            source="Python, torch and transformers, once imported",
        )
    return Line(
        part="overhead",
        bytes=baseline,
        low_bytes=int(0.9 * baseline),
        high_bytes=int(1.1 * baseline) + 48 * MIB,
        basis="measured",
        source="Python, torch and transformers, measured here",
    )


def context_line() -> Line:
    """Return a GPU's context and workspaces: 0.13 to 1.31 GiB by GPU and driver.

    Sources: published measurements between 133 MiB and 1.28 GiB (ollama, Unsloth, gpu_poor and
    others), and cuBLAS's workspace.
    """
    return Line(
        part="overhead",
        bytes=GIB // 2 + _CUBLAS_BYTES,
        low_bytes=133 * MIB,
        high_bytes=int(1.31 * GIB),
        basis="assumed",
        source="CUDA context and cuBLAS workspace, published range",
    )


def host_line() -> Line:
    """Return what the host side of a process takes while a GPU computes: libraries and driver.

    A band from a CPU-only interpreter (0.33 GiB, measured with torch 2.13) up to CUDA's libraries
    and pinned buffers all resident.
    """
    return Line(
        part="overhead",
        bytes=GIB,
        low_bytes=int(0.33 * GIB),
        high_bytes=3 * GIB,
        basis="assumed",
        source="Python with CUDA libraries on the host",
    )
