"""What a search returns: the plan as asked, and what could be changed, best first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from memplan.types import FrozenMap, ModelSummary, Plan, Range

__all__ = ["Alternative", "Binding", "Cost", "Fit", "Quality", "Room"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What was published about the loss that a number format brings."""

    option: str
    """"quant" or "kv_dtype"."""
    value: str
    """The format."""
    note: str
    """What was measured, in words; "" = no published figure is kept here."""
    source: str
    """Where it was published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one change gives up."""

    option: str
    """The option that changes; "offload" where weights leave the GPU."""
    weight: float
    """How much that is held to be: the order of the alternatives follows the sum."""
    words: str
    """The same for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How far one option could still grow, everything else left as it is."""

    option: str
    """"context", "batch" or "seq"."""
    value: int
    """Largest value that fits."""
    limit: str
    """What stops it: "memory", or "model" (its longest context) or "search"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """One set of changes that fits."""

    settings: FrozenMap[str]
    """Option -> value as typed, beside what the user set; {} = nothing changes."""
    changes: FrozenMap[Any]
    """The same as values of the program; None = an option that is let go."""
    command: str
    """The command that plans it."""
    plan: Plan
    """Its plan."""
    engine: str
    """Runtime."""
    total_bytes: int
    """Peak on the fullest computing device."""
    high_bytes: int
    """Upper end of its band."""
    free_bytes: int
    """What that device keeps free."""
    offloaded_bytes: int
    """Weights outside the computing devices."""
    decode_tokens_per_s: Range
    """Estimated speed of one sequence (infer), where known."""
    bits_per_weight: float
    """Bits of one weight as stored, mean over the model."""
    quality: tuple[Quality, ...]
    """What is known about the formats."""
    costs: tuple[Cost, ...]
    """What is given up."""
    rooms: tuple[Room, ...] = ()
    """How far batch and lengths could grow."""
    basis: Literal["formula", "trace"] = "formula"
    """Where the peak comes from."""

    @property
    def weight(self) -> float:
        """How much is given up in all."""
        return sum(cost.weight for cost in self.costs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What keeps the plan as asked from fitting."""

    device: str
    """The device that lacks most."""
    lacks_bytes: int
    """How much."""
    part: str
    """The part that takes most there."""
    part_bytes: int
    """How much that is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The answer of a search."""

    model: ModelSummary
    """What is loaded."""
    task: Literal["infer", "train"]
    """What is done with it."""
    asked: Plan
    """The plan as asked."""
    command: str
    """The command that plans it."""
    constraints: FrozenMap[str]
    """What the user set: never changed in `alternatives`."""
    rooms: tuple[Room, ...]
    """How far the plan as asked could grow; () when it does not fit."""
    binding: Binding | None
    """Why it does not fit; None when it does."""
    alternatives: tuple[Alternative, ...]
    """What fits, best first."""
    left_out: int
    """Alternatives that fit and are not listed."""
    nearest: tuple[Alternative, ...] = ()
    """When none fits: what fits if one constraint is let go."""
    plans: int = 0
    """How many plans were made."""
    notes: tuple[str, ...] = ()
    """What a reader must know."""
