"""Questions that one process can answer alone, so that several processes can share a search."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memplan.errors import MemplanError
from memplan.types import Part, Plan

__all__ = [
    "Answer",
    "Asker",
    "Grow",
    "Planner",
    "Question",
    "Settings",
    "Tried",
    "answer",
    "free_bytes",
    "largest",
    "resident",
]

Settings = Mapping[str, Any]
"""Options and the values that they are given, beside what the user set."""

Planner = Callable[[Settings], Plan]
"""Plans the user's command line with some settings changed. Raises MemplanError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grow:
    """Find the largest value of an option that still fits."""

    option: str
    """"context", "batch" or "seq"."""
    least: int
    """Value to begin with."""
    most: int
    """Largest value that makes sense."""
    step: int = 1
    """Only multiples of this, beside `most`."""
    probes: int | None = None
    """Plans that may be made for it, where each takes long; None = as many as it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One thing to find out."""

    name: str
    """Says to whom the answer belongs."""
    steps: tuple[Settings, ...]
    """Settings in the order in which they are tried, mildest first."""
    grow: Grow | None = None
    """Then let this option grow."""
    offload: bool = True
    """Also take the first that fits with weights outside the computing devices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """Settings that fit, with their plan."""

    settings: Settings
    """What was changed."""
    plan: Plan
    """The plan with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was found out."""

    name: str
    """The question's."""
    found: tuple[Tried, ...] = ()
    """What fits: without offload first, then with."""
    failed: tuple[Plan, ...] = ()
    """Plans that do not fit."""
    problems: tuple[MemplanError, ...] = ()
    """Why steps could not be planned, each once."""
    plans: int = 0
    """How many plans it took."""


Asker = Callable[[Sequence[Question]], Sequence[Answer]]
"""Answers questions, in their order."""


def resident(plan: Plan) -> bool:
    """Say whether a plan fits with every weight on a device that computes."""
    return plan.verdict.fits and plan.placement.offloaded_bytes == 0


class _Notes:
    """What comes up while one question is answered."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self.failed: list[Plan] = []
        self.problems: dict[str, MemplanError] = {}
        self.first: Plan | None = None
        self.plans = 0

    def plan(self, settings: Settings) -> Plan | None:
        self.plans += 1
        try:
            plan = self._planner(settings)
        except MemplanError as error:
            self.problems.setdefault(str(error), error)
            return None
        self.first = self.first or plan
        if not plan.verdict.fits:
            self.failed.append(plan)
        return plan


def answer(question: Question, planner: Planner) -> Answer:
    """Answer one question: the first step that fits, and how far it can grow.

    Args:
        question: what to find out.
        planner: makes plans.
    """
    notes = _Notes(planner)
    kept, spilled = _first(question, notes)
    found = [tried for tried in (kept, spilled) if tried is not None]
    if question.grow is not None and found:
        found = [_grown(found[0], question.grow, notes)]
    return Answer(
        name=question.name,
        found=tuple(found),
        failed=tuple(notes.failed[:1]),
        problems=tuple(notes.problems.values()),
        plans=notes.plans,
    )


def _first(question: Question, notes: _Notes) -> tuple[Tried | None, Tried | None]:
    """Return the first step that fits resident, and the first that fits with offload."""
    spilled: Tried | None = None
    for settings in question.steps:
        if _hopeless(settings, notes.first):
            continue
        plan = notes.plan(settings)
        if plan is None or not plan.verdict.fits:
            continue
        tried = Tried(settings=settings, plan=plan)
        if resident(plan):
            return tried, spilled
        if question.offload and spilled is None:
            spilled = tried
    return None, spilled


def _hopeless(settings: Settings, first: Plan | None) -> bool:
    """Say whether so many GPUs cannot even hold the weights, by the first plan, on one of them."""
    gpus = settings.get("gpus")
    if first is None or gpus is None or first.workload.gpus > 1 or first.workload.task == "train":
        return False
    room = first.devices[0].capacity_bytes - first.devices[0].reserve_bytes
    return first.footprint.part("weights") > int(gpus) * room


def _grown(tried: Tried, grow: Grow, notes: _Notes) -> Tried:
    """Return the settings with the largest value of one option that fits no worse."""
    best = tried

    def room(value: int) -> int | None:
        nonlocal best
        settings = {**tried.settings, grow.option: value}
        plan = notes.plan(settings)
        if plan is None or not plan.verdict.fits or (resident(tried.plan) and not resident(plan)):
            return None
        if value >= int(best.settings.get(grow.option, 0)):
            best = Tried(settings=settings, plan=plan)
        return free_bytes(plan)

    largest(
        room,
        least=grow.least,
        most=grow.most,
        step=grow.step,
        guess=_guess(tried.plan, getattr(tried.plan.workload, grow.option) or grow.least),
        probes=grow.probes,
    )
    return best


_GROWING: tuple[Part, ...] = ("kv_cache", "state_cache", "activations")


def _guess(plan: Plan, value: int) -> int:
    """Return where the room would end if all that can grow grew in proportion: never too far."""
    growing = sum(plan.footprint.part(part) for part in _GROWING)
    return value + max(free_bytes(plan), 0) * value // max(growing, 1)


def free_bytes(plan: Plan) -> int:
    """Return what the fullest computing device has left."""
    gpus = [ledger for ledger in plan.devices if ledger.kind == "gpu"] or list(plan.devices[:1])
    return min(ledger.free_bytes for ledger in gpus)


def largest(
    room: Callable[[int], int | None],
    *,
    least: int,
    most: int,
    step: int = 1,
    guess: int = 0,
    probes: int | None = None,
) -> int | None:
    """Return the largest value that fits; None when not even the least does.

    The next value is where the room of the two largest that fit would end on a straight line;
    every third is the middle to the smallest that does not fit, should the line mislead.

    Args:
        room: monotone: bytes that a value leaves free, None when it does not fit.
        least: smallest value.
        most: largest value.
        step: between them only multiples of this are tried; the ends themselves always.
        guess: where to look first.
        probes: how often `room` is asked at most; the largest found so far is then returned, and
            sooner where the line says that nothing larger fits.
    """
    first = room(least)
    if first is None:
        return None
    fitting, high = [(least, first)], most + step
    for turn in itertools.count():
        low = fitting[-1][0]
        if low >= most:
            return low
        lowest, highest = low // step + 1, -(-high // step) - 1
        if lowest > highest or (
            probes is not None and _enough(fitting, turn, probes, lowest * step)
        ):
            return low
        bounded = high <= most
        if bounded and turn % 3 == 2:
            aim = (lowest + highest) // 2
        else:
            aim = (_line(fitting) if len(fitting) > 1 else guess or 2 * low) // step
        value = min(max(aim, lowest), highest) * step
        value = value if bounded else min(value, most)
        free = room(value)
        if free is None:
            high = value
        else:
            fitting.append((value, free))
    raise AssertionError("unreachable")


def _enough(fitting: Sequence[tuple[int, int]], turn: int, probes: int, following: int) -> bool:
    return turn + 1 >= probes or (len(fitting) > 1 and _line(fitting) < following)


def _line(fitting: Sequence[tuple[int, int]]) -> int:
    """Return where the room of the last two values would end; twice the last if it does not."""
    (before, more), (last, less) = fitting[-2:]
    if less >= more:
        return 2 * last
    return last + less * (last - before) // (more - less)
