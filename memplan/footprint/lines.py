"""Building footprint lines."""

from __future__ import annotations

from memplan.types import Basis, Line, Part

__all__ = ["band_line", "exact_line"]


def exact_line(part: Part, size: int, source: str) -> Line:
    """Return a line without a band, in bytes."""
    return Line(
        part=part, bytes=size, low_bytes=size, high_bytes=size, basis="exact", source=source
    )


def band_line(
    part: Part, size: int, *, low: int, high: int, source: str, basis: Basis = "formula"
) -> Line:
    """Return a line with a band, in bytes; the band is stretched to hold the estimate."""
    return Line(
        part=part,
        bytes=size,
        low_bytes=min(low, size),
        high_bytes=max(high, size),
        basis=basis,
        source=source,
    )
