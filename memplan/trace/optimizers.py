"""The optimizer that a training step takes, as the target's torch would run it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

from memplan.errors import UsageError
from memplan.footprint.optimizer import split_name, takes_muon
from memplan.footprint.optimizer_8bit import (
    PAGED_FROM,
    TABLE_BYTES,
    packed_state,
    plain_state,
    torchao_pieces,
)
from memplan.footprint.optimizer_low_rank import galore_rank
from memplan.trace.stepping import low_rank_optimizer, piece_optimizer
from memplan.types import Tensor

__all__ = [
    "make_optimizer",
    "paged_tensors",
    "state_tensors",
    "step_in_backward",
    "take_step",
    "values_are_one",
]

_RATE = 1e-4


def make_optimizer(name: str, model: Any, *, target: Literal["gpu", "cpu"]) -> Any:
    """Return an optimizer over what a model trains.

    Args:
        name: as `--optimizer` takes it.
        model: an nn.Module, its tensors fake or real.
        target: on a GPU torch's default is `foreach`: all parameters at once, with a temporary
            like all of them; on the host it goes parameter by parameter (torch 2.13,
            optim/optimizer.py, _default_to_fused_or_foreach).

    Raises UsageError for a name that is not known.
    """
    import torch

    name, _ = split_name(name)
    parameters = _parameters(model)
    optim = torch.optim
    every = {"lr": _RATE, "foreach": target == "gpu"}
    makers: dict[str, Callable[[], Any]] = {
        "adamw": lambda: optim.AdamW(parameters, **every),
        "adamw-foreach": lambda: optim.AdamW(parameters, lr=_RATE, foreach=True),
        "adamw-for-loop": lambda: optim.AdamW(parameters, lr=_RATE, foreach=False),
        "adamw-fused": lambda: optim.AdamW(parameters, lr=_RATE, fused=True),
        "adam": lambda: optim.Adam(parameters, **every),
        "adafactor": lambda: optim.Adafactor(parameters, lr=_RATE, foreach=False),
        "adagrad": lambda: optim.Adagrad(parameters, **every),
        "rmsprop": lambda: optim.RMSprop(parameters, **every),
        "sgd": lambda: optim.SGD(parameters, **every),
        "sgd-momentum": lambda: optim.SGD(parameters, momentum=0.9, **every),
    }
    if name in _BYTES:
        return _block_optimizer(model, *_BYTES[name])
    if name in _PIECES:
        return piece_optimizer(model, _parameters(model), _PIECES[name])
    rank = galore_rank(name)
    if rank is not None:
        return low_rank_optimizer(model, _parameters(model), rank)
    if name == "muon":
        return _Both(*_muon(model, foreach=target == "gpu"))
    if name not in makers:
        raise UsageError(
            f"no optimizer {name!r} is traced",
            hint="one of: " + ", ".join((*makers, *_BYTES, *_PIECES, "muon", "galore")),
        )
    return makers[name]()


def _parameters(model: Any) -> list[Any]:
    return [p for p in model.parameters() if p.requires_grad]


_BYTES = {
    "adamw-8bit": (2, True),
    "paged-adamw": (2, False),
    "paged-adamw-8bit": (2, True),
    "ademamix": (3, False),
    "ademamix-8bit": (3, True),
    "lion": (1, False),
    "lion-8bit": (1, True),
}
"""States, and are they in 8 bits, of bitsandbytes' optimizers, which look at values."""

_PIECES: dict[str, Callable[[Tensor], tuple[int, ...]]] = {
    "torchao-adamw-8bit": lambda t: torchao_pieces(t, 8),
    "torchao-adamw-4bit": lambda t: torchao_pieces(t, 4),
    "torchao-adamw-fp8": lambda t: torchao_pieces(t, 8, table=False),
}
"""Tensors of one parameter's state, in bytes, of optimizers whose step is one compiled kernel."""


def _block_optimizer(model: Any, states: int, packed: bool) -> Any:  # noqa: FBT001 - from a table
    """Return an optimizer that keeps what bitsandbytes' keeps, and updates in place as it does."""
    import torch

    class BlockOptimizer(torch.optim.Optimizer):  # type: ignore[misc]
        def __init__(self) -> None:
            wanted = {id(p) for p in _parameters(model)}
            self.names = {p: n for n, p in model.named_parameters() if id(p) in wanted}
            super().__init__(list(self.names), {})
            self.tables: list[Any] = []

        def step(self, closure: Any = None) -> None:
            del closure
            with torch.no_grad():
                self._make()

        def _make(self) -> None:
            if packed and not self.tables:
                self.tables = [torch.empty(TABLE_BYTES // 4) for _ in range(min(states, 2))]
            for parameter, name in self.names.items():
                if parameter.grad is None or self.state[parameter]:
                    continue
                for i in range(states):
                    self.state[parameter] |= self._made(parameter, name, i)

        def _made(self, parameter: Any, name: str, number: int) -> dict[str, Any]:
            count = parameter.numel()
            shape = Tensor(name=name, shape=tuple(parameter.shape), dtype="float32", bytes=0)
            if not packed or packed_state(shape, 1) == plain_state(shape, 1):
                return {f"state{number}": torch.empty(count, dtype=torch.float32)}
            return {
                f"state{number}": torch.empty(count, dtype=torch.uint8),
                f"absmax{number}": torch.empty(-(-count // 256), dtype=torch.float32),
            }

    return BlockOptimizer()


def _muon(model: Any, *, foreach: bool) -> tuple[Any, Any]:
    """Return Muon for the matrices inside a model, and AdamW for the rest."""
    import torch

    found: dict[bool, list[Any]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found[takes_muon(name, parameter.dim())].append(parameter)
    return (
        torch.optim.Muon(found[True], lr=_RATE) if found[True] else None,
        torch.optim.AdamW(found[False], lr=_RATE, foreach=foreach) if found[False] else None,
    )


class _Both:
    """Two optimizers that step one after the other."""

    def __init__(self, *optimizers: Any) -> None:
        self._all = [one for one in optimizers if one is not None]

    @property
    def state(self) -> dict[Any, Any]:
        return {key: value for one in self._all for key, value in one.state.items()}

    def step(self) -> None:
        for one in self._all:
            one.step()

    def zero_grad(self) -> None:
        for one in self._all:
            one.zero_grad()


def take_step(optimizer: Any) -> None:
    """Step, with `values_are_one` around it."""
    with values_are_one():
        optimizer.step()


@contextlib.contextmanager
def values_are_one() -> Iterator[None]:
    """Where a value is asked for, which fakes do not have, it is 1.

    Adafactor asks for the norms of parameters, which decide how far it goes and not what it makes.
    """
    import torch

    own = torch.Tensor.item

    def item(tensor: Any) -> Any:
        fake = hasattr(tensor, "fake_mode")
        return 1.0 if fake else own(tensor)

    torch.Tensor.item = item
    try:
        yield
    finally:
        torch.Tensor.item = own


def state_tensors(optimizer: Any) -> list[Any]:
    """Return every tensor that an optimizer keeps."""
    import torch

    values = [value for state in optimizer.state.values() for value in state.values()]
    values += getattr(optimizer, "tables", [])
    return [value for value in values if isinstance(value, torch.Tensor)]


def paged_tensors(name: str, optimizer: Any) -> list[Any]:
    """Return those of an optimizer's tensors that bitsandbytes puts into unified memory."""
    if not name.startswith("paged-"):
        return []
    items = [item for state in optimizer.state.values() for item in state.items()]
    return [x for key, x in items if key.startswith("state") and x.numel() >= PAGED_FROM]


class step_in_backward:  # noqa: N801 - called like a function, asked for its states
    """One optimizer for each parameter, which steps as soon as the gradient is there.

    The gradient is let go at once (torchtune, OptimizerInBackwardWrapper).
    """

    def __init__(self, name: str, model: Any, *, target: Literal["gpu", "cpu"]) -> None:
        """Hang the steps on a model's parameters; see `make_optimizer`."""
        names = {id(p): n for n, p in model.named_parameters()}
        self._all = {
            p: make_optimizer(name, _One(names[id(p)], p), target=target)
            for p in _parameters(model)
        }
        for parameter in self._all:
            parameter.register_post_accumulate_grad_hook(self._step)

    def _step(self, parameter: Any) -> None:
        take_step(self._all[parameter])
        parameter.grad = None

    @property
    def state(self) -> dict[Any, Any]:
        """States of all parameters."""
        return {key: value for one in self._all.values() for key, value in one.state.items()}

    @property
    def tables(self) -> list[Any]:
        """Tables of all parameters."""
        return [x for one in self._all.values() for x in getattr(one, "tables", [])]

    def step(self) -> None:
        """Do nothing: it is done."""

    def zero_grad(self) -> None:
        """Do nothing: no gradient is left."""


class _One:
    """A model of one parameter."""

    def __init__(self, name: str, parameter: Any) -> None:
        self._item = name, parameter

    def named_parameters(self) -> list[tuple[str, Any]]:
        return [self._item]

    def parameters(self) -> list[Any]:
        return [self._item[1]]
