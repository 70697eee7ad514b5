"""How torch's CUDA allocator is set: PYTORCH_CUDA_ALLOC_CONF as a value."""

from __future__ import annotations

from dataclasses import dataclass

from memplan.errors import UsageError
from memplan.units import MIB

__all__ = ["AllocatorSettings", "parse_settings"]

_IGNORED = frozenset(
    {
        "backend",
        "pinned_use_background_threads",
        "pinned_num_register_threads",
        "pinned_use_cuda_host_register",
        "release_lock_on_cudamalloc",
        "release_lock_on_hipmalloc",
        "graph_capture_record_stream_reuse",
        "per_process_memory_fraction",
    }
)
"""Keys that change speed or the host's side, not what is reserved (or that are set elsewhere)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorSettings:
    """Settings that change what is reserved; defaults are those of torch 2.13."""

    capacity_bytes: int | None = None
    """Memory that segments may take in all; None = without end."""
    expandable_segments: bool = False
    """One growing segment for each pool."""
    max_split_size_bytes: int | None = None
    """Blocks from this size on are not split."""
    roundup_power2_divisions: int = 0
    """Requests are rounded up to one of so many steps between powers of two; 0 = they are not."""
    garbage_collection_threshold: float = 0.0
    """Share of the capacity from which cached segments are given back; 0 = never."""
    large_segment_bytes: int = 20 * MIB
    """Segment for requests between 1 and 10 MiB, and page of large expandable segments."""

    def rounded(self, size: int) -> int:
        """Return a request as `roundup_power2_divisions` rounds it."""
        steps = self.roundup_power2_divisions
        if steps <= 1 or size <= 512 * steps:
            return size
        step = (1 << (size.bit_length() - 1)) // steps
        return -(-size // step) * step


def parse_settings(text: str, *, capacity: int | None = None) -> AllocatorSettings:
    """Return the settings of a text such as "expandable_segments:True,max_split_size_mb:128".

    Args:
        text: value of PYTORCH_CUDA_ALLOC_CONF (or PYTORCH_ALLOC_CONF).
        capacity: bytes that segments may take; None = without end.

    Raises UsageError for an unknown key or a value that makes no sense.
    """
    expandable, split, divisions, share, large = False, None, 0, 0.0, 20 * MIB
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, _, value = (word.strip() for word in item.partition(":"))
        if key == "expandable_segments":
            expandable = _boolean(value)
        elif key == "max_split_size_mb":
            split = MIB * int(_number(key, value, 20, 2**30))
        elif key == "roundup_power2_divisions":
            divisions = int(_number(key, value, 1, 64))
        elif key == "garbage_collection_threshold":
            share = _number(key, value, 0, 1)
        elif key == "large_segment_size_mb":
            large = MIB * int(_number(key, value, 2, 2**20))
        elif key not in _IGNORED:
            raise UsageError(
                f"torch's allocator has no setting {key!r}",
                hint="such as expandable_segments:True or max_split_size_mb:128",
            )
    return AllocatorSettings(
        capacity_bytes=capacity,
        expandable_segments=expandable,
        max_split_size_bytes=split,
        roundup_power2_divisions=divisions,
        garbage_collection_threshold=share,
        large_segment_bytes=large,
    )


def _boolean(value: str) -> bool:
    if value not in ("True", "False"):
        raise UsageError(f"expandable_segments:{value} is neither True nor False")
    return value == "True"


def _number(key: str, value: str, least: float, most: float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise UsageError(f"{key}:{value} is not between {least} and {most}")
    return number
