"""Ledgers -> verdict: does it fit, why, and which constraint binds when it does not."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.placement.engines import EngineProfile
from memplan.placement.loads import Assignment
from memplan.types import Ledger, Verdict
from memplan.units import format_bytes

__all__ = ["verdict"]


def verdict(books: Sequence[Ledger], assignment: Assignment, engine: EngineProfile) -> Verdict:
    """Return the verdict of a plan, without changes.

    Args:
        books: what each device holds, computing ones first.
        assignment: what led to it.
        engine: how what is offloaded is used.
    """
    short = [ledger for ledger in books if ledger.free_bytes < 0]
    if short:
        lacks = " and ".join(f"{x.name} lacks {format_bytes(-x.free_bytes)}" for x in short)
        return Verdict(fits=False, reason=lacks, binding=_binding(short[0]))
    computing = [ledger for ledger in books if ledger.kind == "gpu"] or list(books[:1])
    tightest = min(computing, key=lambda ledger: ledger.free_bytes)
    free = format_bytes(tightest.free_bytes)
    share = 100 * tightest.free_bytes / max(tightest.capacity_bytes, 1)
    reason = f"{tightest.name} keeps {free} free ({share:.0f} %)"
    over = tightest.high_bytes + tightest.reserve_bytes - tightest.capacity_bytes
    if over > 0:
        reason += f"; tight: it lacks {format_bytes(over)} at the upper end of the band"
    offloaded = sum(assignment.offloaded.values())
    if offloaded:
        where = " and ".join(name for name, size in assignment.offloaded.items() if size)
        how = "looked up by the host" if assignment.hosted else engine.says
        reason = f"with {format_bytes(offloaded)} of weights on {where}, {how}; {reason}"
    return Verdict(fits=True, reason=reason)


def _binding(ledger: Ledger) -> str:
    """Return the constraint that cannot be met: the device, and its largest items."""
    items = sorted((ledger.items or ledger.parts).items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {format_bytes(size)}" for name, size in items[:3] if size)
    room = format_bytes(ledger.capacity_bytes - ledger.reserve_bytes)
    return f"{ledger.name} offers {room}; {shown} are needed there"
