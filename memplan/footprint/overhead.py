"""What a process takes beside tensors: never zero, always an interval with its sources."""

from __future__ import annotations

from typing import Literal

from memplan.types import Line
from memplan.units import GIB, MIB

__all__ = ["overhead_line"]

_CUBLAS_BYTES = 8_519_680
"""cuBLAS workspace of PyTorch: 2 x 4096 KiB + 8 x 16 KiB (32 MiB on sm_90); source:
aten/src/ATen/cuda/CublasHandlePool.cpp. It lives in the caching allocator."""

_GPU = Line(
    part="overhead",
    bytes=GIB // 2 + _CUBLAS_BYTES,
    low_bytes=133 * MIB,
    high_bytes=int(1.31 * GIB),
    basis="assumed",
    source="CUDA context and cuBLAS workspace, published range",
)

_HOST = Line(
    part="overhead",
    bytes=450 * MIB,
    low_bytes=200 * MIB,
    high_bytes=int(1.5 * GIB),
    basis="assumed",
    source="Python, torch and transformers, once imported",
)


def overhead_line(kind: Literal["gpu", "cpu"]) -> Line:
    """Return the fixed cost of a process on the device that computes.

    gpu: context and workspaces, by published figures between 133 MiB and 1.31 GiB.
    cpu: the interpreter and its libraries: 400 to 500 MiB with the CPU wheels of torch 2.13 and
    transformers 5.23 (measured), up to 1.5 GiB where CUDA libraries are loaded too.
    """
    return _GPU if kind == "gpu" else _HOST
