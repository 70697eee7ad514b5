"""What an engine does with weights that the computing device does not hold.

One profile per way of offloading, as data: who computes, in which pieces weights move, where the
cache of an offloaded layer lives, which buffers are needed, and what one token reads. The solver
(`memplan.placement.solve`) and the costs (`memplan.placement.cost`) know no engine's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from memplan.errors import UsageError
from memplan.placement.units import Unit
from memplan.types import DeviceKind, Workload

__all__ = ["PROFILES", "EngineProfile", "profile", "profile_of"]

LAST_RESORT: tuple[DeviceKind, ...] = ("cpu", "disk")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    """One way of running with weights elsewhere."""

    name: str
    """"stream", "cpu-compute", "uva", "prefetch", "shard", "resident"."""
    says: str
    """What happens for each token, in words: ends the sentence "the rest is ..."."""
    runs: tuple[str, ...]
    """Engines that work so, for people: what to use when this profile is the better one."""
    computes: Literal["device", "host"] = "device"
    """Where an offloaded piece is computed."""
    grain: Literal["module", "parameter", "layer", "none"] = "module"
    """The piece that can lie elsewhere: a module with own tensors, one parameter after another in
    the model's order, whole layers, or nothing."""
    cache: Literal["device", "layer"] = "device"
    """Where the cache of an offloaded layer is: on the computing device, or beside the layer."""
    buffer: Literal["largest", "layers", "none"] = "none"
    """What the device sets aside: the largest piece that is away, whole layers, or nothing."""
    buffered_layers: int = 0
    """Layers that are copied ahead into buffers of their own (`buffer` = "layers")."""
    reads: Literal["whole", "active"] = "whole"
    """What one token reads of an offloaded piece: all of it, or the experts that it chose."""
    lookup: Literal["whole", "rows"] = "whole"
    """What one token reads of an offloaded embedding."""
    host_lookup: bool = False
    """True when a loader can have the host look tokens up although it computes nothing else."""
    overlaps: bool = False
    """True when copies run beside the computation, so that the longer of the two counts."""
    tiers: tuple[DeviceKind, ...] = LAST_RESORT
    """Kinds of devices that may hold the rest."""
    source: str = ""
    """Where this was read or measured."""

    def buffer_bytes(self, away: Sequence[Unit]) -> int:
        """Return what the computing device sets aside for the pieces that lie elsewhere."""
        if self.buffer == "largest":
            return max((unit.reload_bytes for unit in away), default=0)
        if self.buffer == "layers" and away:
            layers: dict[object, int] = {}
            for unit in away:
                key = unit.block if unit.block is not None else unit.position
                layers[key] = layers.get(key, 0) + unit.away_bytes
            return self.buffered_layers * max(layers.values())
        return 0

    def decode_bytes(self, unit: Unit) -> int:
        """Return what one token of one sequence reads of an offloaded piece, in bytes."""
        if unit.lookup and self.lookup == "rows":
            return 0
        return (
            int(unit.away_bytes * unit.active_share) if self.reads == "active" else unit.away_bytes
        )

    def prefill_bytes(self, unit: Unit) -> int:
        """Return what one pass over many tokens reads of an offloaded piece, in bytes.

        Many tokens choose every expert between them, so all of it is read once a pass.
        """
        return 0 if unit.lookup and self.lookup == "rows" else unit.away_bytes


PROFILES: dict[str, EngineProfile] = {
    one.name: one
    for one in (
        EngineProfile(
            name="stream",
            says="streamed for every token",
            runs=("transformers",),
            buffer="largest",
            host_lookup=True,
            source="accelerate 1.15 AlignDevicesHook: each module with own tensors is copied "
            "before it runs and dropped after it, without overlap",
        ),
        EngineProfile(
            name="cpu-compute",
            says="computed where it lies, by the host",
            runs=("llama.cpp", "ktransformers"),
            computes="host",
            cache="layer",
            reads="active",
            lookup="rows",
            tiers=("cpu",),
            source="llama.cpp 0c1e570 (-ngl, --n-cpu-moe), ktransformers",
        ),
        EngineProfile(
            name="uva",
            says="read over the bus by the kernels that use it",
            runs=("vllm", "sglang"),
            grain="parameter",
            reads="active",
            lookup="rows",
            tiers=("cpu",),
            source="vLLM 0.33 --cpu-offload-gb: parameters in the model's order lie in pinned "
            "host memory",
        ),
        EngineProfile(
            name="prefetch",
            says="copied ahead of its turn, layer by layer",
            runs=("vllm", "sglang"),
            grain="layer",
            buffer="layers",
            buffered_layers=1,
            overlaps=True,
            tiers=("cpu",),
            source="vLLM 0.33 --offload-backend prefetch, --offload-prefetch-step 1",
        ),
        EngineProfile(
            name="shard",
            says="on other ranks",
            runs=("fsdp2", "deepspeed"),
            grain="none",
            tiers=(),
            source="FSDP2, ZeRO and parallel degrees: memplan.parallel",
        ),
        EngineProfile(
            name="resident",
            says="nowhere: this engine keeps everything on its devices",
            runs=("exllama",),
            grain="none",
            tiers=(),
            source="exllamav3 1.6 autosplit: layers over GPUs, nothing in host memory",
        ),
    )
}
"""Name -> profile."""

_DEFAULT = {
    "transformers": "stream",
    "llama.cpp": "cpu-compute",
    "vllm": "uva",
    "exllama": "resident",
}
"""Runtime -> what it does when nobody chooses."""


def profile(name: str) -> EngineProfile:
    """Return a profile by its name. Raises UsageError for one that does not exist."""
    if name not in PROFILES:
        raise UsageError(f"no way to offload is called {name!r}", hint=", ".join(PROFILES))
    return PROFILES[name]


def profile_of(workload: Workload) -> EngineProfile:
    """Return the profile that a workload runs by.

    Raises UsageError for a way of offloading that its runtime does not have.
    """
    if workload.task == "train":
        return PROFILES["shard"]
    if workload.offload is None:
        return PROFILES[_DEFAULT[workload.runtime]]
    found = profile(workload.offload)
    if workload.runtime not in found.runs:
        ways = (one.name for one in PROFILES.values() if workload.runtime in one.runs)
        raise UsageError(
            f"{workload.runtime} does not offload by {found.name}",
            hint=f"--offload {' or '.join(ways)}, or --runtime {found.runs[0]}",
        )
    return found
