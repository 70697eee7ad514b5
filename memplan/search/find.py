"""The search: the plan as asked, its alternatives, and what one constraint less would do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from memplan.search import infer, train
from memplan.search.ask import Answer, Asker, Grow, Question, Settings, Tried, free_bytes
from memplan.search.costs import bits_per_weight, costs
from memplan.search.front import best_first, undominated
from memplan.search.quality import cache_quality, weight_quality
from memplan.search.types import Alternative, Binding, Fit, Quality, Room
from memplan.types import FrozenMap, Ledger, Plan

__all__ = ["Request", "find"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is looked for."""

    given: Mapping[str, str]
    """Options that the user set, as text."""
    facts: infer.Facts
    """Of model and devices."""
    command: Callable[[Settings], str]
    """Writes the command that plans the user's command line with some changes."""
    limit: int = 8
    """Alternatives that are returned."""
    traced: bool = False
    """Winners are planned again by the trace."""
    sequences: int | None = None
    """Sequences that one optimizer step must see (train)."""
    devices: tuple[str, ...] = ()
    """Names of GPUs, smallest first, that may be proposed when nothing fits."""

    @property
    def fixed(self) -> frozenset[str]:
        """Names of the options that must not change."""
        return frozenset(self.given)


def find(request: Request, ask: Asker) -> Fit:
    """Return what fits, best first; when nothing does, what stops it and what is nearest.

    Args:
        request: what is looked for.
        ask: answers questions. Raises MemplanError where the plan as asked cannot be made.
    """
    return _Search(request, ask).fit()


class _Search:
    """One search: counts its plans, and remembers the plan as asked."""

    def __init__(self, request: Request, ask: Asker) -> None:
        self._request = request
        self._ask = ask
        self._plans = 0
        self._asked = _planned(self._answers([Question(name="asked", steps=({},))])[0])
        self._train = self._asked.workload.task == "train"

    def fit(self) -> Fit:
        asked, limit = self._asked, self._request.limit
        found = self._alternatives(self._request.fixed, {}, limit)
        shown = self._rooms(found[:limit])
        itself = next((one for one in shown if not one.settings), None)
        if itself is None and asked.verdict.fits:
            itself = self._rooms([self._alternative({}, asked)])[0]
        return Fit(
            model=asked.model,
            task=asked.workload.task,
            asked=asked,
            command=self._request.command({}),
            constraints=FrozenMap(self._request.given),
            rooms=itself.rooms if itself is not None else (),
            binding=None if asked.verdict.fits else _binding(asked),
            alternatives=tuple(shown),
            left_out=len(found) - len(shown),
            nearest=() if found else tuple(self._nearest()),
            plans=self._plans,
        )

    def _answers(self, questions: Sequence[Question]) -> Sequence[Answer]:
        answers = self._ask(questions)
        self._plans += sum(one.plans for one in answers)
        return answers

    def _tried(self, questions: Sequence[Question]) -> list[Tried]:
        return [tried for one in self._answers(questions) for tried in one.found]

    def _alternatives(
        self, fixed: frozenset[str], freed: Settings, limit: int
    ) -> list[Alternative]:
        """Return what fits, best first.

        Args:
            fixed: options that must not change.
            freed: options that the user set and that are let go.
            limit: alternatives that are needed.
        """
        if self._train:
            return self._trainings(fixed, freed, limit)
        facts = self._request.facts
        tried = self._tried(_questions(infer.questions(self._asked, fixed, facts), freed))
        if not any(one.plan.workload.gpus == self._asked.workload.gpus for one in tried):
            less = infer.shorter(self._asked, fixed, facts)
            tried += self._tried(_questions(less, freed))
        found = best_first(undominated([self._alternative(x.settings, x.plan) for x in tried]))
        return self._confirmed(found, limit) if self._request.traced else found

    def _confirmed(self, found: Sequence[Alternative], limit: int) -> list[Alternative]:
        """Return the first alternatives as the trace plans them, without those that do not fit."""
        asked = [
            Question(name="", steps=({**one.changes, "estimator": "trace"},))
            for one in found[:limit]
        ]
        return [self._alternative(one.settings, one.plan) for one in self._tried(asked)]

    def _trainings(self, fixed: frozenset[str], freed: Settings, limit: int) -> list[Alternative]:
        """Return trainings: the closed form says which could fit, the trace which do."""
        could = self._possible(fixed, freed)
        found: list[Alternative] = []
        for start in range(0, min(len(could), _CHUNKS * limit), limit):
            questions = [Question(name="", steps=(one,)) for one in could[start : start + limit]]
            found += [self._alternative(x.settings, x.plan) for x in self._tried(questions)]
            found = undominated(found)
            if len(found) >= limit:
                break
        if not found:
            shorter = [train.shorter(one, self._asked, fixed) for one in could[:limit]]
            tried = self._tried([one for one in shorter if one is not None])
            found = [self._alternative(x.settings, x.plan) for x in tried]
        if self._request.sequences:
            found = self._accumulated(self._rooms(best_first(found)[:limit]))
        return best_first(undominated(found))

    def _possible(self, fixed: frozenset[str], freed: Settings) -> list[Settings]:
        """Return candidates that could fit by the closed form, least given up first."""
        traced = self._request.traced
        quick = {"estimator": "formula"} if traced else {}
        wanted = train.candidates(self._asked, fixed, self._request.facts)
        questions = [Question(name="", steps=({**freed, **one, **quick},)) for one in wanted]
        found = []
        for settings, one in zip(wanted, self._answers(questions), strict=True):
            plans = [tried.plan for tried in one.found] or list(one.failed)
            if plans and (plans[0].verdict.fits or (traced and _could(plans[0]))):
                found.append(self._alternative({**freed, **settings}, plans[0]))
        return [one.changes for one in best_first(_on_fewest(found))]

    def _accumulated(self, found: Sequence[Alternative]) -> list[Alternative]:
        """Return alternatives whose steps see as many sequences as the user wants."""
        wanted = self._request.sequences or 1
        questions = []
        for one in found:
            most = next((r.value for r in one.rooms if r.option == "batch"), 1)
            split = train.accumulated(wanted, _data_parallel(one.plan), most)
            if split is not None:
                questions.append(Question(name="", steps=({**one.changes, **split},)))
        tried = self._tried(questions)
        return [self._alternative(one.settings, one.plan) for one in tried]

    def _rooms(self, found: Sequence[Alternative]) -> list[Alternative]:
        """Return alternatives with how far each can grow, weights staying where they are."""
        rule = train.rooms if self._train else infer.rooms
        growing = [one for one in found if not one.offloaded_bytes and not one.rooms]
        questions = [
            question
            for one in growing
            for question in rule(one.command, one.changes, one.plan, self._request.facts)
        ]
        grown: dict[str, list[Room]] = {one.command: [] for one in growing}
        for question, one in zip(questions, self._answers(questions), strict=True):
            grown[one.name] += [_room(question.grow, tried) for tried in one.found]
        return [
            replace(one, rooms=tuple(grown[one.command])) if one.command in grown else one
            for one in found
        ]

    def _alternative(self, settings: Settings, plan: Plan) -> Alternative:
        work = plan.workload
        fullest = max(_computing(plan), key=lambda ledger: ledger.total_bytes)
        own = {name: value for name, value in settings.items() if name != "estimator"}
        changed = {name: value for name, value in own.items() if value is not None}
        return Alternative(
            settings=FrozenMap({name: str(value) for name, value in changed.items()}),
            changes=FrozenMap(own),
            command=self._request.command(own),
            plan=plan,
            engine=work.runtime,
            total_bytes=fullest.total_bytes,
            high_bytes=fullest.high_bytes,
            free_bytes=free_bytes(plan),
            offloaded_bytes=plan.placement.offloaded_bytes,
            decode_tokens_per_s=plan.placement.decode_tokens_per_s,
            bits_per_weight=round(bits_per_weight(plan), 3),
            quality=_quality(plan),
            costs=costs(own, plan, self._asked),
            basis="trace" if any(x.basis == "trace" for x in plan.footprint.lines) else "formula",
        )

    def _nearest(self) -> list[Alternative]:
        """Return what fits when one constraint is let go, the least given up first."""
        found: list[Alternative] = []
        for name in self._request.given:
            if name in _SEARCHED:
                freed = {name: None}
                fixed = self._request.fixed - {name}
                found += self._alternatives(fixed, freed, 1)[:1]
        found += self._smaller()
        found += self._bigger()
        return best_first(found)[: self._request.limit]

    def _smaller(self) -> list[Alternative]:
        """Return the largest batch, context or sequence below what the user set."""
        found = []
        for name, least in (("batch", 1), ("context", 256), ("seq", 64)):
            now = getattr(self._asked.workload, name)
            if name not in self._request.given or now is None or now <= least:
                continue
            step = 1 if name == "batch" else 64
            grow = Grow(option=name, least=least, most=now - step, step=step)
            question = Question(name="", steps=({name: least},), grow=grow)
            found += [self._alternative(t.settings, t.plan) for t in self._tried([question])]
        return found

    def _bigger(self) -> list[Alternative]:
        """Return the smallest known GPU on which the plan as asked fits."""
        if not self._request.devices or self._asked.devices[0].kind != "gpu":
            return []
        steps = tuple({"device": (name,)} for name in self._request.devices)
        question = Question(name="", steps=steps, offload=False)
        return [self._alternative(one.settings, one.plan) for one in self._tried([question])]


def _room(grow: Grow | None, tried: Tried) -> Room:
    assert grow is not None
    value = getattr(tried.plan.workload, grow.option)
    return Room(option=grow.option, value=value, limit="memory" if value < grow.most else "model")


_CHUNKS = 2
"""How many times as many trainings as lines are traced at most."""


_SEARCHED = (
    *("quant", "kv_dtype", "runtime", "gpus", "cache", "prefill_chunk", "method", "optimizer"),
    *("checkpointing", "loss", "strategy"),
)
"""Options whose constraint may be let go to find what is nearest."""


def _on_fewest(found: Sequence[Alternative]) -> list[Alternative]:
    """Return trainings without those that fit on fewer GPUs by the same method and optimizer."""
    fewest: dict[tuple[str | None, str | None], int] = {}
    for one in found:
        gpus = one.plan.workload.gpus
        if one.plan.verdict.fits:
            fewest[_recipe(one)] = min(fewest.get(_recipe(one), gpus), gpus)
    return [one for one in found if one.plan.workload.gpus <= fewest.get(_recipe(one), _MANY_GPUS)]


_MANY_GPUS = 4096


def _recipe(one: Alternative) -> tuple[str | None, str | None]:
    return one.plan.workload.method, one.plan.workload.optimizer


def _questions(found: Sequence[Question], freed: Settings) -> list[Question]:
    """Return questions whose steps also let go of a constraint."""
    if not freed:
        return list(found)
    return [replace(q, steps=tuple({**freed, **step} for step in q.steps)) for q in found]


def _planned(one: Answer) -> Plan:
    """Return the only plan of an answer. Raises what the planner raised."""
    for tried in one.found:
        return tried.plan
    if one.failed:
        return one.failed[0]
    raise one.problems[0]


def _could(plan: Plan) -> bool:
    """Say whether a plan might fit by the lower end of its band."""
    return all(
        ledger.low_bytes <= ledger.capacity_bytes - ledger.reserve_bytes for ledger in plan.devices
    )


def _computing(plan: Plan) -> Sequence[Ledger]:
    return [ledger for ledger in plan.devices if ledger.kind == "gpu"] or plan.devices[:1]


def _data_parallel(plan: Plan) -> int:
    work = plan.workload
    return max(work.gpus // (work.tp * work.pp * work.cp), 1)


def _binding(plan: Plan) -> Binding:
    short = min(plan.devices, key=lambda ledger: ledger.free_bytes)
    first = _computing(plan)[0]
    parts = dict(short.parts) or dict(first.parts)
    part = max(parts, key=lambda name: parts[name])
    return Binding(
        device=short.name,
        lacks_bytes=-short.free_bytes,
        part=part,
        part_bytes=parts[part],
    )


def _quality(plan: Plan) -> tuple[Quality, ...]:
    work = plan.workload
    found = [weight_quality(work.quant)]
    if work.task == "infer" and work.kv_dtype not in (None, work.dtype, "f16", "float16"):
        found.append(cache_quality(work.runtime, str(work.kv_dtype)))
    return tuple(one for one in found if one is not None)
