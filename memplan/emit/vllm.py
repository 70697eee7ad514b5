"""Plan -> the argument line of vLLM's server."""

from __future__ import annotations

from memplan.emit.serving import KV_NAMES, Serving, serving
from memplan.emit.text import comment, model_and_revision, refuse, shell_file
from memplan.formats.quantized import parse_scheme
from memplan.runtimes.vllm import BATCHED_TOKENS
from memplan.types import Plan
from memplan.units import GIB, format_bytes

__all__ = ["files", "words"]

_WHILE_LOADING = {"bnb4": "bitsandbytes", "fp8-tensor": "fp8"}
"""Families that vLLM makes of plain weights -> --quantization (0.33)."""


def files(plan: Plan) -> dict[str, str]:
    """Return file name -> content: vllm.sh, which serves the model as planned.

    Raises UsageError for a plan of another engine, and for weights that vLLM cannot make itself.
    """
    told = serving("vllm", plan)
    size = format_bytes(told.kv_bytes)
    remarks = [
        f"KV cache: {told.tokens} tokens in {size} of each GPU, a page of it for vLLM itself"
    ]
    if told.offload_bytes:
        remarks.append(
            "vLLM fills the offload budget parameter by parameter and may exceed it by one; check "
            "what it did: memplan run --engine vllm"
        )
    environment = {}
    if told.stage_layers:
        environment["VLLM_PP_LAYER_PARTITION"] = ",".join(map(str, told.stage_layers))
    head = comment(plan, "vllm", *remarks)
    return {"vllm.sh": shell_file(head, words(plan), environment=environment)}


def words(plan: Plan) -> list[str]:
    """Return the command: "vllm", "serve", the model and its options."""
    work, told = plan.workload, serving("vllm", plan)
    model, revision = model_and_revision(plan)
    found = ["vllm", "serve", model]
    if revision != "main":
        found += ["--revision", revision]
    found += ["--dtype", work.dtype, *_quantization(plan)]
    found += ["--max-model-len", str(work.context), "--max-num-seqs", str(work.batch)]
    chunk = max(work.prefill_chunk or BATCHED_TOKENS, work.batch)
    found += ["--max-num-batched-tokens", str(chunk)]
    found += ["--kv-cache-dtype", _cache_type(plan)]
    found += ["--kv-cache-memory-bytes", str(told.kv_bytes)]
    found += ["--gpu-memory-utilization", str(told.share)]
    if told.tp > 1:
        found += ["--tensor-parallel-size", str(told.tp)]
    if told.pp > 1:
        found += ["--pipeline-parallel-size", str(told.pp)]
    if work.dp > 1:
        found += ["--data-parallel-size", str(work.dp)]
    if work.ep > 1:
        found += ["--enable-expert-parallel"]
    return [*found, *_offload(plan, told), *_adapters(plan)]


def _offload(plan: Plan, told: Serving) -> list[str]:
    """Return what stays in host memory: layers that are fetched ahead, or parameters in order.

    vLLM moves one parameter after another while less than the budget has moved, so the budget is
    the sum of what has to move, rounded down to a KiB.
    """
    chosen = plan.placement.settings
    if "offload_group_size" in chosen:
        return [
            *("--offload-backend", "prefetch"),
            *("--offload-group-size", str(chosen["offload_group_size"])),
            *("--offload-num-in-group", str(chosen["offload_num_in_group"])),
            *("--offload-prefetch-step", str(chosen["offload_prefetch_step"])),
        ]
    size = chosen.get("cpu_offload_bytes", 0) // (told.tp * told.pp) or told.offload_bytes
    if not size:
        return []
    only = ["--cpu-offload-params", "experts"] if chosen.get("cpu_offload_experts") else []
    return ["--cpu-offload-gb", f"{size // 1024 * 1024 / GIB:.6f}", *only]


def _cache_type(plan: Plan) -> str:
    work = plan.workload
    if work.kv_dtype == work.dtype:
        return "auto"
    if str(work.kv_dtype) not in KV_NAMES:
        raise refuse(
            "vllm",
            plan,
            f"vLLM has no {work.kv_dtype} cache beside {work.dtype} weights",
            hint="plan with --kv-dtype fp8, or without --kv-dtype",
        )
    return KV_NAMES[str(work.kv_dtype)]


def _quantization(plan: Plan) -> list[str]:
    scheme = parse_scheme(plan.workload.quant)
    if scheme.family == "none":
        return []
    name = _WHILE_LOADING.get(scheme.family)
    if name is None or scheme.name not in ("nf4", "fp8-tensor"):
        raise refuse(
            "vllm",
            plan,
            f"vLLM makes no {plan.workload.quant} of plain weights",
            hint="quantize it first and plan that folder without --quant; while loading: nf4, "
            "fp8-tensor",
        )
    return ["--quantization", name]


def _adapters(plan: Plan) -> list[str]:
    work = plan.workload
    if not work.lora_slots:
        return []
    slots, rank = str(work.lora_slots), str(work.lora_rank)
    return ["--enable-lora", "--max-loras", slots, "--max-lora-rank", rank]
