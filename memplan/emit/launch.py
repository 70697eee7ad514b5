"""How an engine is started on the files of its target, and whether it did what the plan says."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memplan.emit.training import offloaded_to
from memplan.types import Comparison, Plan
from memplan.units import MIB, format_bytes

__all__ = ["ENGINES", "Engine", "ignored", "ignored_by_log", "ignored_by_peaks"]

TOLERANCE = 0.03
"""Of each figure, and TOLERANCE_BYTES more: paddings, tables and counters that no plan names."""
TOLERANCE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One engine of `memplan run --engine`."""

    target: str
    """Whose files it starts on."""
    module: str | None
    """Python package that must be there; None = a program."""
    program: str | None
    """Program that must be on PATH; None = a package."""
    install: str
    """Command that installs it."""
    words: Callable[[str, Sequence[str]], list[str]]
    """(folder of the files, arguments of the user) -> the command; "python" is this interpreter."""
    evidence: str
    """What shows where the bytes are: "report" (the emitted script writes it), "log" or "peaks"."""


def _python(script: str) -> Callable[[str, Sequence[str]], list[str]]:
    return lambda folder, given: [
        *("python", f"{folder}/{script}", "--report", f"{folder}/report"),
        *given,
    ]


def _shell(script: str, *more: str) -> Callable[[str, Sequence[str]], list[str]]:
    return lambda folder, given: [
        *("sh", f"{folder}/{script}"),
        *(word.format(folder=folder) for word in more),
        *given,
    ]


_REPORT = ("--report", "{folder}/report")

ENGINES: Mapping[str, Engine] = {
    "accelerate": Engine(
        target="accelerate",
        module="accelerate",
        program=None,
        install="pip install accelerate transformers torch",
        words=_python("load.py"),
        evidence="report",
    ),
    "transformers": Engine(
        target="transformers",
        module="transformers",
        program=None,
        install="pip install transformers accelerate torch",
        words=_python("load.py"),
        evidence="report",
    ),
    "torchrun": Engine(
        target="torchrun",
        module="torch",
        program="torchrun",
        install="pip install torch transformers",
        words=_shell("launch.sh", *_REPORT),
        evidence="report",
    ),
    "deepspeed": Engine(
        target="deepspeed",
        module="deepspeed",
        program="deepspeed",
        install="pip install deepspeed",
        words=_shell("launch.sh", *_REPORT),
        evidence="report",
    ),
    "fsdp2": Engine(
        target="fsdp2",
        module="accelerate",
        program="accelerate",
        install="pip install accelerate",
        words=lambda folder, given: [
            *("accelerate", "launch", "--config_file", f"{folder}/fsdp2.yaml"),
            *given,
        ],
        evidence="peaks",
    ),
    "vllm": Engine(
        target="vllm",
        module=None,
        program="vllm",
        install="pip install vllm",
        words=_shell("vllm.sh"),
        evidence="peaks",
    ),
    "sglang": Engine(
        target="sglang",
        module="sglang",
        program=None,
        install="pip install sglang",
        words=_shell("sglang.sh"),
        evidence="peaks",
    ),
    "llama.cpp": Engine(
        target="llama.cpp",
        module=None,
        program="llama-server",
        install="build llama.cpp and set MEMPLAN_LLAMA_SERVER to its llama-server",
        # Its buffers are in the log from verbosity 4 on (llama.cpp 0c1e570).
        words=_shell(
            "llama.sh", "llama-server", "--log-file", "{folder}/engine.log", "--log-verbosity", "4"
        ),
        evidence="log",
    ),
}
"""Name -> engine."""


def ignored(plan: Plan, reports: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a sentence when the scripts' reports show another placement than the plan's, or None.

    Args:
        plan: what was to be done.
        reports: of each rank, bytes by part and device ("meta": offloaded), after the load or the
            last step.
    """
    if not reports:
        return "no report says where its weights are: did it end before they were loaded?"
    if plan.workload.task == "infer":
        return _wrong_places(plan, reports[0]["weights"])
    gpus = [ledger for ledger in plan.devices if ledger.kind == "gpu"] or [plan.devices[0]]
    if len(reports) != len(gpus):
        return f"{len(reports)} processes reported, and the plan has {len(gpus)}"
    for report in reports:
        for part in ("weights", "gradients", "optimizer"):
            found = _wrong_part(plan, gpus[report["rank"]].parts, report, part)
            if found:
                return f"rank {report['rank']} {found}"
    return None


def _wrong_part(
    plan: Plan, planned: Mapping[str, int], report: Mapping[str, Any], part: str
) -> str | None:
    """Return how one rank's part differs from its ledger, or None.

    What is offloaded stands in the host's ledger, for all ranks of a machine together. A part that
    the script cannot see, or that is freed by its last step, is no evidence.
    """
    places = report.get(part)
    if not places:
        return None
    where = offloaded_to(plan, part)
    held = sum(places.values())
    if where == "none":
        wanted = planned.get(part, 0)
        return _differs(part, held, wanted) if wanted else None
    on_gpu = sum(size for place, size in places.items() if not place.startswith("cpu"))
    if on_gpu > TOLERANCE_BYTES:
        return f"holds {format_bytes(on_gpu)} of {part} on its GPU, planned in {where}"
    return None


def _wrong_places(plan: Plan, places: Mapping[str, int]) -> str | None:
    computing = [x for x in plan.devices if x.kind == "gpu"] or list(plan.devices[:1])
    held = {place: size for place, size in places.items() if place != "meta"}
    for ledger in computing:
        found = _differs("weights", held.get(ledger.name, 0), ledger.parts.get("weights", 0))
        if found:
            return f"{ledger.name} {found}"
    found = _differs("offloaded weights", places.get("meta", 0), plan.placement.offloaded_bytes)
    return f"it {found}" if found else None


def _differs(what: str, held: int, planned: int) -> str | None:
    if abs(held - planned) <= TOLERANCE * planned + TOLERANCE_BYTES:
        return None
    return f"holds {format_bytes(held)} of {what}, planned {format_bytes(planned)}"


_BUFFER = re.compile(r"(\S+) model buffer size *= *([0-9.]+) MiB")


def ignored_by_log(plan: Plan, log: str) -> str | None:
    """Return a sentence when llama.cpp's log shows other model buffers than planned, or None.

    Its lines say "CUDA0 model buffer size = 4403.49 MiB" for each buffer; those of the host are
    called CPU, CPU_Mapped, CPU_REPACK and CUDA_Host.
    """
    sizes: dict[bool, int] = {True: 0, False: 0}
    found = _BUFFER.findall(log)
    if not found:
        return "its log names no model buffer: did it end before the model was loaded?"
    for name, size in found:
        host = name.startswith("CPU") or name.endswith("_Host")
        sizes[host] += int(float(size) * MIB)
    gpus = [x for x in plan.devices if x.kind == "gpu"]
    planned = sum(x.parts.get("weights", 0) for x in gpus)
    wrong = _differs("weights on GPUs", sizes[False], planned)
    return f"it {wrong}" if wrong else None


def ignored_by_peaks(comparison: Comparison) -> str | None:
    """Return a sentence when a GPU was never used or took more than the plan's band, or None."""
    for device in comparison.devices:
        if not device.name.startswith("cuda"):
            continue
        if device.planned_bytes and not device.peak_bytes:
            return f"{device.name} was not used, or cannot be sampled"
        if device.peak_bytes and device.high_bytes and device.peak_bytes > device.high_bytes:
            return (
                f"{device.name} took {format_bytes(device.peak_bytes)}, planned at most "
                f"{format_bytes(device.high_bytes)}"
            )
    return None
