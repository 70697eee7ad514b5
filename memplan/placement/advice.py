"""What would mend a plan that does not fit, and what a little more memory would change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from memplan.errors import MemplanError
from memplan.footprint.tower import image_tokens
from memplan.types import Change, Device, ModelSpec, Placement, Plan, Workload
from memplan.units import GIB, format_bytes

__all__ = ["find_changes", "sensitivity"]

Replan = Callable[..., Plan]
"""(workload, on=devices, model=spec) -> Plan."""

Quants = Mapping[str, Callable[[], ModelSpec]]
"""Quantization's name -> the model in it."""


def find_changes(
    spec: ModelSpec,
    plan: Plan,
    devices: Sequence[Device],
    *,
    replan: Replan,
    quick: Replan,
    quants: Quants | None = None,
) -> Iterable[Change]:
    """Yield single changes that make the plan fit, each at the smallest step that does.

    What was pinned or fixed otherwise stays as it is in all of them.

    Args:
        spec: the model.
        plan: does not fit.
        devices: of the plan.
        replan: plans another workload, other devices or another model.
        quick: the same by a quicker estimate.
        quants: other forms of the model to try.
    """
    work = plan.workload

    def smaller(option: str, value: int, *, sure: bool = False) -> Plan:
        fields: dict[str, Any] = {option: value}
        return (replan if sure else quick)(replace(work, **fields))

    if work.task == "infer":
        assert work.context is not None
        least = 256 + (image_tokens(spec.vision, work) if spec.vision else 0)
        yield from _largest("context", work.context, least, smaller, "a shorter context")
        chunk = work.prefill_chunk or work.context
        yield from _largest("prefill_chunk", chunk, 256, smaller, "slower prefill, same answer")
        yield from _kv_types(work, quick)
    else:
        assert work.seq is not None
        if work.checkpointing == "none":
            other = replan(replace(work, checkpointing="full"))
            yield from _if_fits(other, "checkpointing", "full", "about a third more compute")
        yield from _largest("seq", work.seq, 64, smaller, "shorter sequences")
        if work.optimizer in ("adam", "adamw"):
            other = replan(replace(work, optimizer="adafactor"))
            yield from _if_fits(other, "optimizer", "adafactor", "another optimizer: tune it anew")
    yield from _largest("batch", work.batch, 1, smaller, "fewer sequences at once")
    yield from _quantised(work, quick, quants or {})
    yield from _larger(plan, devices, quick)


_CACHE_TYPES = {
    "transformers": ("int8", "int4"),
    "vllm": ("float8_e4m3fn",),
    "llama.cpp": ("q8_0", "q4_0"),
    "exllama": ("q8", "q4"),
}
"""Runtime -> types of the cache, largest first."""


def _kv_types(work: Workload, quick: Replan) -> Iterable[Change]:
    """Yield the first smaller type of the cache that suffices."""
    if work.kv_dtype in _CACHE_TYPES[work.runtime]:
        return
    for name in _CACHE_TYPES[work.runtime]:
        found = _tried(quick, replace(work, kv_dtype=name))
        if found is not None and found.verdict.fits:
            yield from _if_fits(found, "kv-dtype", name, "a coarser cache")
            return


def _tried(quick: Replan, work: Workload, **more: Any) -> Plan | None:
    """Return a plan, None where an engine or a model has no such thing."""
    try:
        return quick(work, **more)
    except MemplanError:
        return None


def _quantised(work: Workload, quick: Replan, quants: Quants) -> Iterable[Change]:
    """Yield the first quantization that suffices, the mildest being asked first."""
    for name, make in quants.items():
        try:
            found = quick(replace(work, quant=name), model=make())
        except MemplanError:
            continue
        if found.verdict.fits:
            yield from _if_fits(found, "quant", name, "packed weights: check the quality")
            return


def _larger(plan: Plan, devices: Sequence[Device], quick: Replan) -> Iterable[Change]:
    """Yield the smallest memory that suffices: of each GPU, and of the host."""
    for kind, option in (("gpu", "device"), ("cpu", "host-memory")):
        if not any(device.kind == kind for device in devices):
            continue

        def fits(size: int, kind: str = kind) -> bool:
            return quick(plan.workload, on=_resized(devices, kind, size)).verdict.fits

        now = max(device.capacity_bytes for device in devices if device.kind == kind)
        size = _least(now, fits)
        if size is not None:
            found = quick(plan.workload, on=_resized(devices, kind, size))
            what = "each GPU of at least this size" if kind == "gpu" else "more host memory"
            yield from _if_fits(found, option, f"{size / GIB:.2f}GiB", what)


def _resized(devices: Sequence[Device], kind: str, size: int) -> tuple[Device, ...]:
    return tuple(
        replace(x, capacity_bytes=max(size, x.capacity_bytes)) if x.kind == kind else x
        for x in devices
    )


_STEP = GIB // 100
"""What sizes are rounded up to: a hundredth of a GiB, as they are printed."""

_DOUBLINGS = 12


def _least(now: int, fits: Callable[[int], bool]) -> int | None:
    """Return the least size above `now` that fits, rounded up to a hundredth of a GiB."""
    low, high = now, max(2 * now, GIB)
    for _ in range(_DOUBLINGS):
        if fits(high):
            break
        low, high = high, 2 * high
    else:
        return None
    while high - low > max(_STEP, high // 256):
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    hundredths = -(-high * 100 // GIB)
    return -(-hundredths * GIB // 100)


def sensitivity(placement: Placement, short_bytes: int, gpus: Sequence[Device]) -> tuple[str, ...]:
    """Return what more memory on the first GPU would change, in words.

    Args:
        placement: of a plan that fits.
        short_bytes: what the first GPU lacks to hold all of its share.
        gpus: devices that compute.
    """
    if not placement.offloaded_bytes or not gpus or not short_bytes:
        return ()
    text = "removes all streaming" if placement.engine == "stream" else "needs no offload"
    if placement.host_lookup:
        text = "holds the embedding, too"
    return (f"+{format_bytes(short_bytes)} on {gpus[0].name} {text}",)


def _largest(
    option: str, now: int, least: int, replan: Callable[..., Plan], note: str
) -> Iterable[Change]:
    """Yield the largest smaller value of an option that fits, halving and then bisecting.

    The search may be by a quicker estimate than the plan: what it finds is planned anew, and where
    that does not fit, the search begins again, as the quicker estimate has learned from it.
    """
    for _ in range(_TRIES):
        value = _bisect(now, least, lambda value: replan(option, value).verdict.fits)
        if value is None:
            return
        found = replan(option, value, sure=True)
        if found.verdict.fits:
            yield from _if_fits(found, option.replace("_", "-"), str(value), note)
            return
        now = value


def _bisect(now: int, least: int, fits: Callable[[int], bool]) -> int | None:
    """Return a value from `least` to below `now` that fits, within a sixteenth of the largest."""
    low, high = least, now
    if least >= now or not fits(least):
        return None
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


_TRIES = 3


def _if_fits(plan: Plan, option: str, value: str, note: str) -> Iterable[Change]:
    if plan.verdict.fits:
        total = plan.footprint.total_bytes
        yield Change(option=option, value=value, total_bytes=total, note=note)
