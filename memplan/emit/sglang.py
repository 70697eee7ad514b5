"""Plan -> the argument line of SGLang's server."""

from __future__ import annotations

from memplan.emit.serving import KV_NAMES, serving
from memplan.emit.text import comment, model_and_revision, refuse, shell_file
from memplan.formats.quantized import parse_scheme
from memplan.runtimes.vllm import BATCHED_TOKENS
from memplan.types import Plan
from memplan.units import GIB

__all__ = ["FIELDS", "files", "words"]

FIELDS = frozenset(
    {
        *("model_path", "revision", "dtype", "quantization", "context_length", "kv_cache_dtype"),
        *("max_running_requests", "max_total_tokens", "chunked_prefill_size"),
        *("mem_fraction_static", "tp_size", "pp_size", "dp_size", "ep_size", "cpu_offload_gb"),
        *("offload_group_size", "offload_num_in_group", "offload_prefetch_step"),
        *("max_loras_per_batch", "max_lora_rank", "enable_lora"),
    }
)
"""Fields of ServerArgs that are written (0.5.23); a test reads them in its wheel."""

_WHILE_LOADING = {"fp8-tensor": "fp8"}


def files(plan: Plan) -> dict[str, str]:
    """Return file name -> content: sglang.sh, which serves the model as planned.

    memplan knows vLLM's rules and not SGLang's own: weights and KV tokens are the same, buffers
    and overhead are vLLM's.

    Raises UsageError for a plan of another engine, and for weights that SGLang cannot make itself.
    """
    head = comment(
        plan,
        "sglang",
        "planned by vLLM's rules: weights and KV tokens are the same, buffers are SGLang's own",
    )
    return {"sglang.sh": shell_file(head, words(plan))}


def words(plan: Plan) -> list[str]:
    """Return the command: "python", "-m", "sglang.launch_server" and its options."""
    work, told = plan.workload, serving("sglang", plan)
    model, revision = model_and_revision(plan)
    if told.stage_layers:
        raise refuse(
            "sglang",
            plan,
            f"it has stages of {', '.join(map(str, told.stage_layers))} layers",
            better="vllm",
        )
    found = ["python", "-m", "sglang.launch_server", "--model-path", model]
    if revision != "main":
        found += ["--revision", revision]
    found += ["--dtype", work.dtype, *_quantization(plan)]
    found += ["--context-length", str(work.context), "--max-running-requests", str(work.batch)]
    found += ["--max-total-tokens", str(told.tokens)]
    found += ["--mem-fraction-static", str(told.static_share)]
    found += ["--chunked-prefill-size", str(work.prefill_chunk or BATCHED_TOKENS)]
    found += ["--kv-cache-dtype", _cache_type(plan)]
    degrees = {"tp": told.tp, "pp": told.pp, "dp": work.dp, "ep": work.ep}
    for name, degree in degrees.items():
        found += [f"--{name}-size", str(degree)] if degree > 1 else []
    chosen = plan.placement.settings
    if "offload_group_size" in chosen:
        for name in ("offload_group_size", "offload_num_in_group", "offload_prefetch_step"):
            found += [f"--{name.replace('_', '-')}", str(chosen[name])]
    elif told.offload_bytes:
        # SGLang takes whole GiB: rounded up, so that the GPU holds no more than planned.
        found += ["--cpu-offload-gb", str(-(-told.offload_bytes // GIB))]
    if work.lora_slots:
        found += ["--enable-lora", "--max-loras-per-batch", str(work.lora_slots)]
        found += ["--max-lora-rank", str(work.lora_rank)]
    return found


def _cache_type(plan: Plan) -> str:
    work = plan.workload
    if work.kv_dtype == work.dtype:
        return "auto"
    name = KV_NAMES.get(str(work.kv_dtype))
    if name is None or name == "float16":
        raise refuse(
            "sglang",
            plan,
            f"SGLang has no {work.kv_dtype} cache beside {work.dtype} weights",
            hint="plan with --kv-dtype fp8, or without --kv-dtype",
        )
    return name


def _quantization(plan: Plan) -> list[str]:
    scheme = parse_scheme(plan.workload.quant)
    if scheme.family == "none":
        return []
    if scheme.name not in _WHILE_LOADING:
        raise refuse(
            "sglang",
            plan,
            f"SGLang makes no {plan.workload.quant} of plain weights",
            hint="quantize it first and plan that folder; while loading: --quant fp8-tensor",
        )
    return ["--quantization", _WHILE_LOADING[scheme.name]]
