"""Plan -> what schedulers take: Kubernetes' resources, Ray's placement group, SkyPilot's task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.emit.text import (
    comment,
    gpu_ledgers,
    json_text,
    kilobytes,
    refuse,
    stamp,
    yaml_text,
)
from memplan.emit.training import layout
from memplan.types import Plan
from memplan.units import GIB, format_bytes

__all__ = ["GPU_RESOURCES", "kubernetes_files", "ray_files", "skypilot_files"]

GPU_RESOURCES: Mapping[str, str] = {
    "NVIDIA": "nvidia.com/gpu",
    "AMD": "amd.com/gpu",
    "Intel": "gpu.intel.com/xe",
}
"""Maker -> the resource that its device plugin offers."""

CPUS_PER_GPU = 4
"""Cores asked for beside each GPU: one to drive it, the rest for data and tokens. An assumption:
no byte depends on it."""

SHM_BYTES = 8 * GIB
"""Of /dev/shm for several processes; NCCL and data loaders use it, and it counts as memory."""


def _host_bytes(plan: Plan) -> int:
    """Return the host memory of one machine at the band's upper end."""
    books = [x for x in plan.devices if x.kind == "cpu"]
    return sum(max(x.high_bytes, x.total_bytes) for x in books)


def _disk_bytes(plan: Plan) -> int:
    return sum(max(x.high_bytes, x.total_bytes) for x in plan.devices if x.kind == "disk")


def kubernetes_files(plan: Plan, vendor: str | None) -> dict[str, str]:
    """Return file name -> content: kubernetes.yaml, the `resources` of one machine's container.

    Requests equal limits (the pod's memory is then guaranteed, and it is killed at what was
    planned and not later). Memory is the host's share at the band's upper end, with /dev/shm
    where several processes share a machine.

    Args:
        plan: of any task and engine.
        vendor: the maker of the plan's GPUs; None = not known, taken for NVIDIA.

    Raises UsageError for a maker without a device plugin.
    """
    ranks = layout(plan, "kubernetes")
    gpus = bool(gpu_ledgers(plan))
    shm = SHM_BYTES if gpus and ranks.per_node > 1 else 0
    amounts: dict[str, Any] = {
        "cpu": str(CPUS_PER_GPU * ranks.per_node),
        "memory": kilobytes(_host_bytes(plan) + shm),
    }
    if _disk_bytes(plan):
        amounts["ephemeral-storage"] = kilobytes(_disk_bytes(plan))
    if gpus:
        amounts[_gpu_resource(plan, vendor)] = ranks.per_node
    remarks = ["one container" + (f" on each of {ranks.nodes} machines" if ranks.nodes > 1 else "")]
    if gpus:
        full = max(max(x.high_bytes, x.total_bytes) for x in gpu_ledgers(plan))
        size = min(x.capacity_bytes for x in gpu_ledgers(plan))
        remarks.append(
            f"each GPU needs up to {format_bytes(full)} of {format_bytes(size)}: choose nodes by "
            "their label, such as nvidia.com/gpu.product"
        )
    if shm:
        remarks.append(
            f"mount an emptyDir with medium: Memory and sizeLimit: {kilobytes(shm)} at /dev/shm"
        )
    block = {"resources": {"requests": amounts, "limits": amounts}}
    return {"kubernetes.yaml": comment(plan, "kubernetes", *remarks) + yaml_text(block)}


def _gpu_resource(plan: Plan, vendor: str | None) -> str:
    name = GPU_RESOURCES.get(vendor or "NVIDIA")
    if name is None:
        raise refuse(
            "kubernetes",
            plan,
            f"no device plugin is known for GPUs of {vendor}",
            hint="plan for a GPU of NVIDIA, AMD or Intel",
        )
    return name


def ray_files(plan: Plan) -> dict[str, str]:
    """Return file name -> content: ray.json, the arguments of ray.util.placement_group.

    One machine: a bundle for each GPU, all on one node (STRICT_PACK). Several: a bundle for each
    machine, each on a node of its own (STRICT_SPREAD). "memory" is host memory in bytes. The plan
    is named in the group's name, the one text that Ray takes and does not read.
    """
    ranks = layout(plan, "ray")
    host = _host_bytes(plan)
    gpus = bool(gpu_ledgers(plan))
    if ranks.nodes > 1:
        count, strategy, per = ranks.nodes, "STRICT_SPREAD", ranks.per_node
    else:
        count, strategy, per = ranks.processes, "STRICT_PACK", 1
        host = -(-host // ranks.processes)
    bundle: dict[str, int] = {"CPU": per, "memory": host}
    if gpus:
        bundle = {"GPU": per, **bundle}
    said = stamp(plan, "ray")
    name = f"memplan {said['version']}, plan {said['plan']}; {said['written_for']}"
    group = {"name": name, "strategy": strategy, "bundles": [bundle] * count}
    return {"ray.json": json_text(group)}


def skypilot_files(plan: Plan, accelerator: str | None, run: str) -> dict[str, str]:
    """Return file name -> content: sky.yaml, a task on the plan's machines.

    Args:
        plan: of any task and engine.
        accelerator: SkyPilot's name of the plan's GPU ("H100"); None = not known.
        run: shell lines that start the engine on each machine.

    Raises UsageError where the plan's GPU is a size without a name.
    """
    ranks = layout(plan, "skypilot")
    gpus = gpu_ledgers(plan)
    if gpus and accelerator is None:
        raise refuse(
            "skypilot",
            plan,
            "it names no product, and clouds rent GPUs by name",
            hint="plan with --device h100 or another name of memplan devices",
        )
    resources: dict[str, Any] = {
        "memory": f"{-(-_host_bytes(plan) // 10**9)}+",
        "disk_size": max(-(-_disk_bytes(plan) // GIB) + _SYSTEM_GIB, 100),
    }
    if gpus:
        resources = {"accelerators": f"{accelerator}:{ranks.per_node}", **resources}
    task = {
        "name": f"memplan-{plan.id or 'plan'}",
        "num_nodes": ranks.nodes,
        "resources": resources,
        "workdir": ".",
        "run": run,
    }
    return {"sky.yaml": comment(plan, "skypilot") + yaml_text(task)}


_SYSTEM_GIB = 50
"""Disk for the system and packages."""
