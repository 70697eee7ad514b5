"""Callbacks: transformers' Trainer (phases and workload of a step), accelerate (a tracker)."""

from __future__ import annotations

from typing import Any

from memplan.errors import MissingDependencyError
from memplan.measure import agent
from memplan.measure.track import Tracked, track

__all__ = ["accelerate_tracker", "trainer_callback"]

STEPS = 3
"""Steps that are reported: the optimizer's states appear in the first, the rest repeats."""


def tell_shape(tokens: Any) -> None:
    """Tell the daemon how many sequences and tokens a micro-batch has: tokens (batch, seq)."""
    shape = tuple(getattr(tokens, "shape", ()))
    if len(shape) == 2:
        agent.workload(sequences=int(shape[0]), tokens=int(shape[0] * shape[1]))


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
            model.register_forward_pre_hook(self._forward, with_kwargs=True),
            model.register_forward_hook(lambda *_: self.begin("backward")),
        ]

    def _forward(self, model: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        del model
        tell_shape(named.get("input_ids", inputs[0] if inputs else None))
        self.begin("forward")

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


def trainer_callback(steps: int | None = STEPS, *, attach: bool = True) -> Any:
    """Return a transformers.TrainerCallback that reports the phases of a training.

    It also attaches the agent, so that the allocator is sampled all along, and tells what one
    micro-batch really was: sequences, and tokens after padding.

    Phases: "start" before the first step, then "forward", "backward" and "optimizer_step" of each
    step (of each micro-batch, where gradients are accumulated).

    Args:
        steps: how many optimizer steps are reported; None = all.
        attach: also call `measure.attach()`.

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
            if attach:
                agent.attach()
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


def accelerate_tracker(run_name: str = "memplan") -> Any:
    """Return an accelerate tracker that attaches the agent and passes whole numbers on.

    What the program logs by `accelerator.log({"tokens": 4096}, step=17)` is stored beside the
    memory, and so is every whole number of `init_trackers(config=...)`.

    Args:
        run_name: accelerate's name for the run; memplan does not use it.

    Raises MissingDependencyError without accelerate.

    Example: Accelerator(log_with=[measure.accelerate_tracker()])
    """
    try:
        from accelerate.tracking import GeneralTracker
    except ImportError as error:
        raise MissingDependencyError(
            "the tracker needs accelerate", hint="pip install 'memplan[models]'"
        ) from error

    class MemplanTracker(GeneralTracker):  # type: ignore[misc]
        """Every process has memory of its own: not the main process only."""

        name = "memplan"
        requires_logging_directory = False
        main_process_only = False

        def __init__(self) -> None:
            """Attach the agent."""
            super().__init__()
            self.run_name = run_name
            agent.attach()

        @property
        def tracker(self) -> str:
            """The run that this process belongs to."""
            return agent.run_id()

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            """Pass the whole numbers of the configuration on."""
            agent.workload(**_whole(values))

        def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
            """Pass whole numbers on."""
            agent.workload(**_whole({"step": step, **values}))

    return MemplanTracker()


def _whole(values: dict[str, Any]) -> dict[str, int]:
    return {str(key): value for key, value in values.items() if type(value) is int}
