"""Optimizers that cannot step on tensors without memory: what they keep and make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from memplan.footprint.optimizer_low_rank import takes_galore
from memplan.types import Tensor

__all__ = ["low_rank_optimizer", "piece_optimizer"]


def _names(model: Any, parameters: Sequence[Any]) -> dict[Any, str]:
    wanted = {id(p) for p in parameters}
    return {p: name for name, p in model.named_parameters() if id(p) in wanted}


def piece_optimizer(
    model: Any, parameters: Sequence[Any], pieces: Callable[[Tensor], tuple[int, ...]]
) -> Any:
    """Return an optimizer that keeps so many bytes in so many tensors, and updates in place.

    Args:
        model: gives the names.
        parameters: what is trained.
        pieces: (parameter) -> bytes of each of its state's tensors.
    """
    import torch

    class PieceOptimizer(torch.optim.Optimizer):  # type: ignore[misc]
        def __init__(self) -> None:
            self.names = _names(model, parameters)
            super().__init__(list(self.names), {})

        def step(self, closure: Any = None) -> None:
            del closure
            for parameter, name in self.names.items():
                if parameter.grad is not None and not self.state[parameter]:
                    sizes = enumerate(pieces(_tensor(name, parameter)))
                    made = {str(i): torch.empty(size, dtype=torch.uint8) for i, size in sizes}
                    self.state[parameter] |= made

    return PieceOptimizer()


def _tensor(name: str, parameter: Any) -> Tensor:
    return Tensor(
        name=name,
        shape=tuple(parameter.shape),
        dtype=str(parameter.dtype).removeprefix("torch."),
        bytes=parameter.numel() * parameter.element_size(),
    )


def low_rank_optimizer(model: Any, parameters: Sequence[Any], rank: int) -> Any:
    """Return an optimizer that makes and keeps what GaLore's AdamW does (galore_torch 1.0).

    Parameter by parameter. The decomposition, in float32, is made in every step of a trace, as in
    the steps of a run in which the projection is made anew: they have the peak.

    Args:
        model: gives the names.
        parameters: what is trained.
        rank: of the projections.
    """
    import torch

    class LowRank(torch.optim.Optimizer):  # type: ignore[misc]
        def __init__(self) -> None:
            self.names = _names(model, parameters)
            super().__init__(list(self.names), {})

        @torch.no_grad()  # type: ignore[untyped-decorator]
        def step(self, closure: Any = None) -> None:
            del closure
            for parameter, name in self.names.items():
                if parameter.grad is not None:
                    self._update(parameter, low=takes_galore(name, parameter.dim()))

        def _update(self, parameter: Any, *, low: bool) -> None:
            state, gradient = self.state[parameter], parameter.grad
            if low:
                state["projection"] = _projection(torch, gradient, rank)
                gradient = _lowered(gradient, state["projection"])
            if "exp_avg" not in state:
                state["exp_avg"] = torch.zeros_like(gradient)
                state["exp_avg_sq"] = torch.zeros_like(gradient)
            mean, square = state["exp_avg"], state["exp_avg_sq"]
            mean.mul_(0.9).add_(gradient, alpha=0.1)
            square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            denominator = square.sqrt().add_(1e-6)
            change = mean / denominator
            if low:
                change = _raised(change, state["projection"]) * 0.25
            parameter.add_(change, alpha=-1e-3)

    return LowRank()


def _projection(torch: Any, gradient: Any, rank: int) -> Any:
    """Return the first directions on the shorter side: (r, n) where m >= n, else (m, r)."""
    rows, columns = gradient.shape
    left, values, right = torch.linalg.svd(gradient.float(), full_matrices=False)
    if rows >= columns:
        other = left[:, :rank] @ torch.diag(values[:rank])
        kept = right[:rank]
    else:
        other = torch.diag(values[:rank]) @ right[:rank]
        kept = left[:, :rank]
    del other
    return kept if gradient.dtype == torch.float32 else kept.to(gradient.dtype)


def _lowered(gradient: Any, projection: Any) -> Any:
    tall = gradient.shape[0] >= gradient.shape[1]
    return gradient @ projection.t() if tall else projection.t() @ gradient


def _raised(change: Any, projection: Any) -> Any:
    wide = projection.shape[0] <= projection.shape[1] and change.shape[1] == projection.shape[0]
    return change @ projection if wide else projection @ change
