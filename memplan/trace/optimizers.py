"""The optimizer that a training step takes, as the target's torch would run it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from memplan.errors import UsageError

__all__ = ["make_optimizer", "state_tensors"]

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

    parameters = [p for p in model.parameters() if p.requires_grad]
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
    if name not in makers:
        raise UsageError(f"no optimizer {name!r} is traced", hint="one of: " + ", ".join(makers))
    return makers[name]()


def state_tensors(optimizer: Any) -> list[Any]:
    """Return every tensor that an optimizer keeps."""
    import torch

    values = (value for state in optimizer.state.values() for value in state.values())
    return [value for value in values if isinstance(value, torch.Tensor)]
