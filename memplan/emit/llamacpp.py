"""Plan -> llama.cpp's arguments: which layers go to which GPU, and what of them stays behind.

Names are those of llama.cpp 0c1e570 (2026-10). Held against its own dry run in
tests/emit/test_llamacpp.py.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

import memplan
from memplan.errors import UsageError
from memplan.types import ModelSpec, Plan

__all__ = ["arguments", "check", "files"]

_BLOCK = re.compile(r"^blk\.(\d+)(?:\.(.+))?$")
_EXPERTS = re.compile(r"^ffn_(up|down|gate|gate_up)_(ch|)exps$")
_DENSE = re.compile(r"^ffn_(up|down|gate)$")
_PAD = 256
_BATCH = 2048
"""llama.cpp's own logical batch; a micro-batch is never larger."""

_SCRIPT = """\
#!/bin/sh
# llama.cpp for {name}, as plan {plan_id} says (written by memplan {version} for llama.cpp 0c1e570).
# {policy}
# sh llama.sh [PROGRAM [MORE ARGUMENTS]]; PROGRAM is llama-server unless it is named.
program=${{1:-llama-server}}
[ $# -gt 0 ] && shift
exec "$program" \\
  {arguments} \\
  "$@"
"""


def files(plan: Plan, spec: ModelSpec) -> dict[str, str]:
    """Return file name -> content: the argument line, and a script that runs a program with it.

    Raises UsageError for a plan that llama.cpp cannot carry out.
    """
    words = arguments(plan, spec)
    rows = _rows(words)
    script = _SCRIPT.format(
        name=plan.model.name,
        plan_id=plan.id or "(not saved)",
        version=memplan.__version__,
        policy=plan.placement.policy,
        arguments=" \\\n  ".join(shlex.join(row) for row in rows),
    )
    return {"llama.args": shlex.join(words) + "\n", "llama.sh": script}


def _rows(words: Sequence[str]) -> list[list[str]]:
    """Return the arguments, each option with its value."""
    rows: list[list[str]] = []
    for word in words:
        if word.startswith("-") or not rows:
            rows.append([word])
        else:
            rows[-1].append(word)
    return rows


def arguments(plan: Plan, spec: ModelSpec) -> list[str]:
    """Return the arguments of llama-server, llama-completion and llama-fit-params.

    The file is read, not mapped (-lm none): a mapped one is resident as a whole while it is loaded,
    and llama.cpp itself advises against it where overrides keep weights in host memory.

    Args:
        plan: for --runtime llama.cpp, of a GGUF file.
        spec: the file, read again.

    Raises UsageError for a plan of another kind, one that trains, or one that does not fit.
    """
    path = check(plan)
    work = plan.workload
    assert work.context is not None
    gpus = [ledger.name for ledger in plan.devices if ledger.kind == "gpu"]
    homes, left = _homes(plan.placement.device_map, gpus, _layers(spec))
    cells = -(-work.context // _PAD) * _PAD * work.batch
    micro = work.prefill_chunk or 512
    kind = work.kv_dtype or "f16"
    words = ["-m", path, "-c", str(cells), "-np", str(work.batch)]
    words += ["-b", str(max(_BATCH, micro)), "-ub", str(micro)]
    words += ["-ctk", kind, "-ctv", kind, "-fa", "off" if work.attention == "eager" else "on"]
    words += [
        "-lm",
        "none",
        "-fit",
        "off",
        *_placed(homes, gpus),
        *_overrides(left, _experts(spec)),
    ]
    copies = plan.placement.settings.get("op_offload", 1)
    return words if copies else [*words, "--no-op-offload"]


def check(plan: Plan) -> str:
    """Return the file that a plan is for. Raises UsageError where llama.cpp cannot carry it out."""
    if plan.workload.runtime != "llama.cpp" or plan.workload.task != "infer":
        raise UsageError(
            f"this plan is for {plan.workload.runtime}, not for llama.cpp",
            hint="plan again with --runtime llama.cpp",
        )
    if plan.model.source != "gguf" or plan.model.path is None:
        raise UsageError(
            "llama.cpp loads GGUF files, and this plan is of another",
            hint="convert the model (convert_hf_to_gguf.py, llama-quantize) and plan the .gguf",
        )
    if not plan.verdict.fits:
        raise UsageError(
            f"this plan does not fit: {plan.verdict.reason}",
            hint="memplan plan ... names changes that fit",
        )
    return plan.model.path


def _layers(spec: ModelSpec) -> int:
    """Return llama.cpp's count of layers: all blocks of the file, those that only draft too."""
    found = (match for tensor in spec.tensors if (match := _BLOCK.match(tensor.name)))
    return max((int(match[1]) + 1 for match in found), default=0)


def _experts(spec: ModelSpec) -> dict[int, frozenset[str]]:
    found: dict[int, set[str]] = {}
    for tensor in spec.tensors:
        match = _BLOCK.match(tensor.name.rpartition(".")[0])
        if match and match[2] and _EXPERTS.match(match[2]):
            found.setdefault(int(match[1]), set()).add(match[2])
    return {index: frozenset(names) for index, names in found.items()}


def _homes(
    where: Mapping[str, str], gpus: Sequence[str], layers: int
) -> tuple[list[str | None], dict[int, frozenset[str]]]:
    """Return the GPU of each layer and of the output, and what of them stays in host memory.

    A layer's home is where its attention lies, which no override moves. Blocks of the file that
    only draft are not loaded; they count as layers, and go with the one before.
    """
    homes: list[str | None] = [None] * (layers + 1)
    left: dict[int, set[str]] = {}
    planned: set[int] = set()
    for key, device in where.items():
        gpu = device if device in gpus else None
        match = _BLOCK.match(key)
        if match is None:
            homes[layers] = homes[layers] or gpu
        elif match[2] and (_EXPERTS.match(match[2]) or _DENSE.match(match[2])):
            if gpu is None:
                left.setdefault(int(match[1]), set()).add(match[2])
        else:
            homes[int(match[1])] = gpu
            planned.add(int(match[1]))
    for index in sorted(set(range(1, layers)) - planned):
        homes[index] = homes[index - 1]
    return homes, {i: frozenset(names) for i, names in left.items() if homes[i]}


def _placed(homes: Sequence[str | None], gpus: Sequence[str]) -> list[str]:
    """Return -ngl and, over several GPUs, -ts: layers are counted, the output as one."""
    counts = [homes.count(gpu) for gpu in gpus]
    words = ["-ngl", str(sum(counts))]
    if len(gpus) > 1 and sum(counts):
        words += ["-ts", ",".join(str(count) for count in counts)]
    return words


def _overrides(
    left: Mapping[int, frozenset[str]], experts: Mapping[int, frozenset[str]]
) -> list[str]:
    """Return -ncmoe where the first layers keep all their experts behind, -ot for the rest.

    Args:
        left: layer on a GPU -> modules that stay in host memory.
        experts: layer -> its modules of experts.
    """
    words: list[str] = []
    whole = [i for i in left if left[i] == experts.get(i)]
    first = max(whole, default=-1) + 1
    if whole and all(i in whole for i in experts if min(left) <= i < first):
        words += ["-ncmoe", str(first)]
        left = {i: names for i, names in left.items() if i not in whole}
    layers: dict[frozenset[str], list[str]] = {}
    for index in sorted(left):
        layers.setdefault(left[index], []).append(str(index))
    for names, found in layers.items():
        words += ["-ot", f"blk\\.{_any(found)}\\.{_any(sorted(names))}\\.=CPU"]
    return words


def _any(choices: Sequence[str]) -> str:
    return choices[0] if len(choices) == 1 else f"({'|'.join(choices)})"
