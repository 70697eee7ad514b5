"""How the ranks of a job are laid out: degrees, and each rank's place in them."""

from __future__ import annotations

from dataclasses import dataclass

from memplan.errors import UsageError
from memplan.types import Workload

__all__ = ["DATA_STRATEGIES", "STRATEGIES", "Grid", "Place", "data_strategy", "grid_of"]

DATA_STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
"""Strategies that say how data-parallel ranks share weights and states."""
STRATEGIES = (*DATA_STRATEGIES, "tp", "pp", "ep", "cp")
"""Every strategy; the last four leave data-parallel ranks, if any, to DDP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One rank's coordinates."""

    tp: int
    """Place among the ranks that divide each layer."""
    cp: int
    """Place among the ranks that divide each sequence."""
    dp: int
    """Place among the ranks that divide the batch."""
    pp: int
    """Pipeline stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Degrees of parallelism; tp x cp x dp x pp is the number of ranks."""

    tp: int
    """Tensor-parallel degree."""
    cp: int
    """Context-parallel degree."""
    dp: int
    """Data-parallel degree."""
    pp: int
    """Pipeline stages."""
    ep: int
    """Expert-parallel degree, taken out of tp x cp x dp."""
    nodes: int
    """Machines."""

    @property
    def world(self) -> int:
        """Ranks in all."""
        return self.tp * self.cp * self.dp * self.pp

    @property
    def sharers(self) -> int:
        """Ranks that hold the same dense weights and reduce their gradients: dp x cp."""
        return self.dp * self.cp

    @property
    def ranks_per_node(self) -> int:
        """Ranks on the fullest machine."""
        return -(-self.world // self.nodes)

    def place(self, rank: int) -> Place:
        """Return a rank's coordinates: tp counts fastest, then cp, dp and pp (Megatron's order)."""
        rest, tp = divmod(rank, self.tp)
        rest, cp = divmod(rest, self.cp)
        pp, dp = divmod(rest, self.dp)
        return Place(tp=tp, cp=cp, dp=dp, pp=pp)

    def first_of_stage(self, stage: int) -> int:
        """Return the first rank of a pipeline stage."""
        return stage * self.tp * self.cp * self.dp


def data_strategy(workload: Workload) -> str:
    """Return how data-parallel ranks share: one of `DATA_STRATEGIES`.

    Raises UsageError for a strategy without a rule.
    """
    name = workload.strategy or "ddp"
    if name not in STRATEGIES:
        raise UsageError(f"no rule for strategy {name!r}", hint="one of: " + ", ".join(STRATEGIES))
    return name if name in DATA_STRATEGIES else "ddp"


def grid_of(workload: Workload, *, expert_tensor_parallel: bool = False) -> Grid:
    """Return the degrees of a workload; `gpus` counts the devices of all machines together.

    Where no dp is named, data parallelism takes what the other degrees leave; a strategy that is
    itself a degree ("tp") takes all devices when that degree is not named. Experts are divided
    among ranks that dense weights give to tensor and data parallelism: transformers asks that tp
    divides ep and ep divides tp x dp; Megatron, which divides experts by tp too, that ep divides
    dp x cp.

    Raises UsageError when the degrees do not multiply to the devices.
    """
    degrees = {name: int(getattr(workload, name)) for name in ("tp", "pp", "cp", "ep")}
    if workload.strategy in ("tp", "pp", "cp") and degrees[workload.strategy] == 1:
        others = degrees["tp"] * degrees["pp"] * degrees["cp"] * workload.dp
        degrees[workload.strategy] = max(1, workload.gpus // others)
    model = degrees["tp"] * degrees["pp"] * degrees["cp"]
    dp = workload.dp if workload.dp > 1 else max(1, workload.gpus // model)
    if workload.strategy == "ep" and degrees["ep"] == 1:
        degrees["ep"] = dp * degrees["cp"] * degrees["tp"]
    if min(model, dp, degrees["ep"]) < 1 or model * dp != workload.gpus:
        raise UsageError(
            f"tp {degrees['tp']} x pp {degrees['pp']} x cp {degrees['cp']} x dp {dp} is "
            f"{model * dp}, not {workload.gpus} GPUs",
            hint="--gpus counts the GPUs of all machines; leave --dp out to let it follow",
        )
    grid = Grid(dp=dp, nodes=workload.nodes, **degrees)
    _check_experts(grid, megatron=expert_tensor_parallel)
    return grid


def _check_experts(grid: Grid, *, megatron: bool) -> None:
    if grid.ep == 1:
        return
    whole = grid.sharers * (1 if megatron else grid.tp)
    if whole % grid.ep or (not megatron and grid.ep % grid.tp):
        rule = "dp x cp" if megatron else "tp x dp x cp, and be a multiple of tp"
        raise UsageError(
            f"ep {grid.ep} must divide {rule} (here {whole}, tp {grid.tp})",
            hint="choose --ep among the divisors of the ranks of one pipeline stage",
        )
