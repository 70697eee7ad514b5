"""A callback for transformers' Trainer: forward, backward and optimizer step as phases."""

from __future__ import annotations

from typing import Any

from memplan.errors import MissingDependencyError
from memplan.measure.track import Tracked, track

__all__ = ["trainer_callback"]

STEPS = 3
"""Steps that are reported: the optimizer's states appear in the first, the rest repeats."""


class _Marks:
    """Ends one phase where the next begins."""

    def __init__(self, steps: int | None) -> None:
        self.left = steps
        self.model: Any = None
        self.optimizer: Any = None
        self._open: Tracked | None = None
        self._handles: list[Any] = []

    def hook(self, model: Any) -> None:
        """Follow the model's forward passes; while it trains, each is followed by a backward."""
        self.model = model
        self._handles = [
            model.register_forward_pre_hook(lambda *_: self.begin("forward")),
            model.register_forward_hook(lambda *_: self.begin("backward")),
        ]

    def unhook(self) -> None:
        """Take the hooks back."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def begin(self, name: str) -> None:
        """End the open phase and begin another one."""
        self.end()
        if self.model is not None and self.model.training and (self.left is None or self.left > 0):
            self._open = track(name, model=self.model, optimizer=self.optimizer)
            self._open.__enter__()

    def end(self) -> None:
        """End the open phase, if one is."""
        if self._open is not None:
            phase, self._open = self._open, None
            phase.__exit__(None, None, None)

    def step_done(self) -> None:
        """Count a step."""
        self.end()
        if self.left is not None:
            self.left -= 1


def trainer_callback(steps: int | None = STEPS) -> Any:
    """Return a transformers.TrainerCallback that reports the phases of a training.

    Phases: "start" before the first step, then "forward", "backward" and "optimizer_step" of each
    step (of each micro-batch, where gradients are accumulated).

    Args:
        steps: how many optimizer steps are reported; None = all.

    Raises MissingDependencyError without transformers.

    Example: Trainer(..., callbacks=[measure.trainer_callback()])
    """
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise MissingDependencyError(
            "the callback needs transformers", hint="pip install 'memplan[models]'"
        ) from error

    marks = _Marks(steps)

    class MemplanCallback(TrainerCallback):  # type: ignore[misc]
        """Marks phases by the Trainer's events and the model's forward hooks."""

        def on_train_begin(self, *_: Any, model: Any = None, **__: Any) -> None:
            """Follow the model."""
            with track("train_begin", model=model):
                marks.hook(model)

        def on_step_begin(self, *_: Any, optimizer: Any = None, **__: Any) -> None:
            """Remember the optimizer, whose states are counted from now on."""
            marks.optimizer = optimizer

        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            """End the backward pass."""
            marks.begin("optimizer_step")

        def on_optimizer_step(self, *_: Any, **__: Any) -> None:
            """Count the step, while its gradients are still there."""
            marks.step_done()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            """Let go of the model."""
            marks.end()
            marks.unhook()

    return MemplanCallback()
