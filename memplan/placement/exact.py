"""The same questions by integer programming (HiGHS, in scipy): how far from the best a plan is.

scipy is optional: `pip install 'memplan[exact]'`. Nothing else of memplan needs it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memplan.errors import MissingDependencyError
from memplan.placement.engines import PROFILES, EngineProfile
from memplan.placement.solve import grouped
from memplan.placement.units import Unit
from memplan.units import MIB

__all__ = ["Exact", "exact_fill", "exact_spread"]

TIME_LIMIT_S = 2.0
"""Seconds after which HiGHS returns the best that it has, with its gap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact:
    """What the integer program found."""

    gain_bytes: int
    """Most bytes that a token need not read elsewhere, as found."""
    bound_bytes: int
    """What no placement can exceed."""
    gap: float
    """Relative distance of the two; 0 = proven."""


def exact_fill(
    units: Sequence[Unit],
    budget: int,
    *,
    engine: EngineProfile = PROFILES["stream"],
    pins: Mapping[int, bool] | None = None,
    time_limit_s: float = TIME_LIMIT_S,
) -> Exact | None:
    """Return the best filling of one device; None when there is none.

    max sum(gain x) with sum(size x) + R <= budget, R >= reload of each group of which one is away.
    Integer counts per group of equal units, one binary for each group ("one is away"), and R.

    Args:
        units: the model's pieces.
        budget: bytes for weights and the reload buffer.
        engine: what is read of a piece that is away, and whether there is a buffer.
        pins: position -> resident or not, as a constraint.
        time_limit_s: when to stop.

    Raises MissingDependencyError without scipy.
    """
    wishes = pins or {}
    free = [unit for unit in units if unit.position not in wishes]
    goes = [unit for unit in units if wishes.get(unit.position) is False]
    buffered = engine.buffer == "largest"
    program = _Program(engine.buffer_bytes(goes) if buffered else 0)
    room = {_BUFFER: float(MIB)}
    for group in grouped(free, engine):
        count = len(group.positions)
        taken = program.column(group.gain, count)
        room[taken] = float(group.size)
        if group.reload:
            program.buffered({taken: 1.0}, count, group.reload)
    fixed = sum(unit.weight_bytes for unit in units if wishes.get(unit.position))
    program.row(room, float(budget - fixed))
    return program.solve(time_limit_s)


def exact_spread(
    blocks: Sequence[Sequence[Unit]],
    loads: Sequence[int],
    budgets: Sequence[int],
    *,
    engine: EngineProfile = PROFILES["stream"],
    time_limit_s: float = TIME_LIMIT_S,
) -> Exact | None:
    """Return the most that several devices can hold; the first one streams the rest.

    Blocks are whole layers (or single units): on every device but the first they live whole; what
    runs on the first may live there in part, with its load beside weights charged there. Order
    does not matter here, so the answer bounds every plan that keeps layers in order.

    Args:
        blocks: the units of each block.
        loads: bytes of each block beside weights (cache, buffers), charged where it runs.
        budgets: bytes of each device, the first one's with the reload buffer.
        engine: what is read of a piece that is away.
        time_limit_s: when to stop.

    Raises MissingDependencyError without scipy.
    """
    program = _Program()
    rooms: list[dict[int, float]] = [{_BUFFER: float(MIB)}, *({} for _ in budgets[1:])]
    for (pieces, load), count in _alike(blocks, loads, engine).items():
        gain = sum(piece[2] for piece in pieces)
        others = [program.column(gain, count) for _ in budgets[1:]]
        for room, column in zip(rooms[1:], others, strict=True):
            room[column] = float(sum(piece[0] for piece in pieces) + load)
        rooms[0] |= dict.fromkeys(others, -float(load))
        program.row(dict.fromkeys(others, 1.0), float(count))
        for piece, times in Counter(pieces).items():
            taken = program.column(piece[2], count * times)
            rooms[0][taken] = float(piece[0])
            terms = {taken: 1.0, **dict.fromkeys(others, float(times))}
            program.row(terms, float(count * times))
            if engine.buffer == "largest" and piece[1]:
                program.buffered(terms, count * times, piece[1])
    for room, budget in zip(rooms, budgets, strict=True):
        program.row(room, float(budget - (sum(loads) if room is rooms[0] else 0)))
    return program.solve(time_limit_s)


class _Program:
    """max gain x with row x <= high, 0 <= x <= most; columns are whole numbers but the first.

    The first column is the reload buffer, in MiB, without gain. Each row is scaled by its largest
    coefficient: HiGHS takes coefficients below 1e-9 for zeros.
    """

    def __init__(self, least: int = 0) -> None:
        self.gains, self.most, self.least = [0.0], [math.inf], least / MIB
        self.rows: list[tuple[dict[int, float], float]] = []

    def column(self, gain: float, most: int) -> int:
        """Add a variable and return its number."""
        self.gains.append(float(gain))
        self.most.append(float(most))
        return len(self.gains) - 1

    def row(self, terms: Mapping[int, float], high: float) -> None:
        """Add a constraint: the sum of the terms is at most `high`."""
        self.rows.append((dict(terms), high))

    def buffered(self, terms: Mapping[int, float], count: int, reload: int) -> None:
        """Make the buffer hold `reload` when less than `count` of the terms is resident."""
        flag = self.column(0, 1)
        away = {column: -value for column, value in terms.items()}
        self.row({**away, flag: -float(count)}, -float(count))
        self.row({flag: reload / MIB, _BUFFER: -1.0}, 0.0)

    def solve(self, limit: float) -> Exact | None:
        """Return the optimum, None when nothing satisfies the constraints."""
        np, optimize = _scipy()
        scale = max(self.gains) or 1.0
        matrix = np.zeros((len(self.rows), len(self.gains)))
        highs = np.zeros(len(self.rows))
        for i, (row, high) in enumerate(self.rows):
            norm = max((abs(value) for value in row.values()), default=1.0) or 1.0
            for j, value in row.items():
                matrix[i, j] = value / norm
            highs[i] = high / norm
        found = optimize.milp(
            c=[-gain / scale for gain in self.gains],
            constraints=optimize.LinearConstraint(matrix, -np.inf, highs),
            integrality=[0] + [1] * (len(self.gains) - 1),
            bounds=optimize.Bounds([self.least, *([0.0] * (len(self.gains) - 1))], self.most),
            options={"time_limit": limit, "mip_rel_gap": _GAP},
        )
        if found.x is None:
            return None
        gain = round(-found.fun * scale)
        bound = max(gain, int(-found.mip_dual_bound * scale))
        return Exact(
            gain_bytes=gain, bound_bytes=bound, gap=(bound - gain) / bound if bound else 0.0
        )


_BUFFER = 0
"""Column of the reload buffer."""

_GAP = 1e-6
"""Relative gap at which HiGHS stops."""


_Piece = tuple[int, int, int]
"""Weight, reload and gain of a unit, in bytes."""


def _alike(
    blocks: Sequence[Sequence[Unit]], loads: Sequence[int], engine: EngineProfile
) -> dict[tuple[tuple[_Piece, ...], int], int]:
    """Return the kinds of blocks with how many there are of each."""
    kinds: dict[tuple[tuple[_Piece, ...], int], int] = {}
    for block, load in zip(blocks, loads, strict=True):
        pieces = tuple(
            sorted((u.weight_bytes, u.reload_bytes, engine.decode_bytes(u)) for u in block)
        )
        kinds[pieces, load] = kinds.get((pieces, load), 0) + 1
    return kinds


def _scipy() -> tuple[Any, Any]:
    try:
        import numpy as np
        from scipy import optimize
    except ImportError as error:
        raise MissingDependencyError(
            "an exact check needs scipy", hint="pip install 'memplan[exact]'"
        ) from error
    return np, optimize
