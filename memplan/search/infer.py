"""What may be changed so that a model answers on given devices: engines, formats, caches, GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memplan.search.ask import Grow, Question, Settings
from memplan.types import Plan

__all__ = ["GPU_COUNTS", "LEAST_CONTEXT", "Facts", "questions", "rooms", "shorter"]

PLAIN = ("bfloat16", "float16", "float32")
"""Formats of weights that a search may quantize."""

GPU_COUNTS = (1, 2, 4, 8)
"""How many GPUs of the named kind are tried."""

LEAST_CONTEXT = 1024
"""Shortest context that a search offers, tokens."""

_MOST_CONTEXT = 1_048_576
_MOST_BATCH = 1024
_STEP = 256

_WEIGHTS: Mapping[str, tuple[str, ...]] = {
    "transformers": ("none", "fp8", "int8", "nf4", "nf4-dq", "awq-4bit-g128", "gptq-4bit-g128"),
    "vllm": ("none", "fp8", "awq-4bit-g128", "gptq-4bit-g128"),
    "llama.cpp": (
        *("none", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_xs", "q3_k_m", "iq3_xxs"),
        *("iq2_m", "iq2_xxs"),
    ),
    "exllama": ("exl3-6bpw", "exl3-5bpw", "exl3-4bpw", "exl3-3bpw", "exl3-2.5bpw"),
}
"""Engine -> formats that are tried, best first."""

_LADDERS: Mapping[str, tuple[Settings, ...]] = {
    "transformers": (
        {},
        {"prefill_chunk": 512},
        {"prefill_chunk": 512, "kv_dtype": "int4"},
        {"prefill_chunk": 512, "cache": "offloaded"},
    ),
    "vllm": ({}, {"kv_dtype": "fp8"}),
    "llama.cpp": ({}, {"kv_dtype": "q8_0"}, {"kv_dtype": "q4_0"}),
    "exllama": ({}, {"kv_dtype": "q8"}, {"kv_dtype": "q4"}),
}
"""Engine -> its own knobs, mildest first."""

_OFFLOADS = ("transformers", "vllm", "llama.cpp")
"""Engines that can leave weights outside the GPU."""
_NVIDIA = ("vllm", "exllama")
"""Engines that are not tried on a GPU that another maker than these is known to have made."""
_HOST = ("transformers", "llama.cpp")
"""Engines whose rules hold where the host computes."""
_ON_HOST = ("none", "int8", *_WEIGHTS["llama.cpp"])
_FP8_CAPABILITY = 89
"""Compute capability times ten from which tensor cores take FP8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What of model and devices decides which choices there are."""

    most_context: int | None
    """Longest context that the model names, tokens."""
    vendor: str | None
    """Who makes the first GPU, if known."""
    compute: str | None
    """Its compute capability, if known."""
    named: int
    """How many devices the user named."""
    repeatable: bool
    """The only device is a product or a size, so that there may be several."""


def questions(asked: Plan, given: frozenset[str], facts: Facts) -> list[Question]:
    """Return what to find out: one question for each engine and format of the weights.

    Args:
        asked: the plan as asked.
        given: options that the user set.
        facts: of model and devices.
    """
    found = []
    for engine in _engines(asked, given, facts):
        for quant in _formats(engine, asked, given, facts):
            base = _changes({"runtime": engine, "quant": quant}, asked)
            steps = tuple(
                {**base, **knobs, **several}
                for several in _counts(asked, given, facts, engine)
                for knobs in _LADDERS[engine]
                if not given & knobs.keys()
            )
            offload = engine in _OFFLOADS
            found.append(Question(name=f"{engine} {quant}", steps=steps, offload=offload))
    return found


def shorter(asked: Plan, given: frozenset[str], facts: Facts) -> list[Question]:
    """Return the same questions for the longest context that fits, each with its last knobs."""
    now = asked.workload.context or 0
    if "context" in given or now <= LEAST_CONTEXT:
        return []
    grow = Grow(option="context", least=LEAST_CONTEXT, most=now - _STEP, step=_STEP)
    one = frozenset(given | {"gpus"})
    return [
        Question(
            name=question.name,
            steps=({**question.steps[-1], "context": LEAST_CONTEXT},),
            grow=grow,
            offload=False,
        )
        for question in questions(asked, one, facts)
    ]


def rooms(name: str, settings: Settings, plan: Plan, facts: Facts) -> list[Question]:
    """Return how far context and batch of a plan that fits can grow."""
    context, batch = plan.workload.context or 0, plan.workload.batch
    longest = max(facts.most_context or _MOST_CONTEXT, context)
    limits = (
        Grow(option="context", least=context, most=longest, step=_STEP),
        Grow(option="batch", least=batch, most=max(_MOST_BATCH, batch)),
    )
    return [Question(name=name, steps=(settings,), grow=grow) for grow in limits]


def _engines(asked: Plan, given: frozenset[str], facts: Facts) -> Sequence[str]:
    own = asked.workload.runtime
    if "runtime" in given or asked.model.source == "gguf":
        return (own,)
    rest = [name for name in _WEIGHTS if name != own]
    if asked.devices[0].kind == "cpu":
        rest = [name for name in rest if name in _HOST]
    elif facts.vendor not in (None, "NVIDIA"):
        rest = [name for name in rest if name not in _NVIDIA]
    needs = {name for name in given if name in ("cache", "logits", "draft", "images", "lora_slots")}
    return (own,) if needs else (own, *rest)


def _formats(engine: str, asked: Plan, given: frozenset[str], facts: Facts) -> Sequence[str]:
    own = asked.workload.quant
    if "quant" in given or asked.model.weight_format not in PLAIN:
        if engine == "llama.cpp" and engine != asked.workload.runtime and "quant" not in given:
            return _WEIGHTS[engine][1:] if asked.model.weight_format.startswith("fp8") else ()
        same = engine == asked.workload.runtime or engine in ("transformers", "vllm")
        return (own,) if same else ()
    names = _WEIGHTS[engine]
    if asked.devices[0].kind == "cpu":
        names = tuple(name for name in names if name in _ON_HOST)
    if not _takes_fp8(facts):
        names = tuple(name for name in names if name != "fp8")
    return names


def _takes_fp8(facts: Facts) -> bool:
    digits = (facts.compute or "").replace(".", "")
    return facts.vendor in (None, "NVIDIA") and (
        not digits.isdigit() or int(digits) >= _FP8_CAPABILITY
    )


def _changes(values: Mapping[str, str], asked: Plan) -> dict[str, str]:
    """Return the values that are not those of the plan as asked."""
    return {name: value for name, value in values.items() if value != getattr(asked.workload, name)}


def _counts(asked: Plan, given: frozenset[str], facts: Facts, engine: str) -> Sequence[Settings]:
    if given & {"gpus", "tp"} or not facts.repeatable or asked.devices[0].kind != "gpu":
        return ({},)
    names = ("gpus", "tp") if engine == "vllm" else ("gpus",)
    return tuple({} if count == 1 else dict.fromkeys(names, count) for count in GPU_COUNTS)
