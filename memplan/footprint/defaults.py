"""Fills in what nobody set, and says so: every default ends up in `Workload.assumed`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from memplan.errors import UsageError
from memplan.footprint.optimizer import IN_BACKWARD, split_name
from memplan.footprint.vision import image_count, parse_size
from memplan.types import ModelSpec, Workload
from memplan.units import dtype_name

__all__ = [
    "ADAPTER_METHODS",
    "DEFAULT_QLORA",
    "DEFAULT_RANK",
    "complete",
    "compute_dtype",
    "default_runtime",
    "weight_dtype",
]

DEFAULT_TOKENS = 4096
"""Context or sequence length when nobody sets one (less where the model allows less)."""

_MASTER = {"bf16": "bfloat16", "fp32": "float32", "bf16-mixed": "float32", "fp16-mixed": "float32"}
"""Training precision -> dtype of the stored weights."""

_TRAIN_ONLY = (
    "method",
    "optimizer",
    "seq",
    "grad_accum",
    "checkpointing",
    "precision",
    "loss",
    "data",
    "eval_batch",
    "compile",
    "lora_dropout",
    "lora_dtype",
    "offload_optimizer",
    "offload_params",
)
_INFER_ONLY = (
    "draft",
    "draft_tokens",
    "lora_slots",
    "images",
    "image_size",
    "context",
    "prefill_chunk",
    "kv_dtype",
    "cache",
    "logits",
    "offload",
    "pin",
)


def weight_dtype(options: Mapping[str, Any]) -> str | None:
    """Return the dtype that the weights will be loaded in, or None for the model's own.

    Training with a mixed precision keeps float32 master weights whatever the file holds.
    Raises UnitError for an unknown dtype and UsageError when dtype and precision contradict.
    """
    stated = dtype_name(options["dtype"]) if options.get("dtype") else None
    precision = options.get("precision")
    if options.get("task") != "train":
        return stated
    if precision is None and options.get("method") == "qlora":
        precision = QLORA_PRECISION
    if precision is None:
        if stated in (None, "bfloat16", "float32"):
            return stated
        raise UsageError(
            f"no training precision keeps {stated} weights",
            hint="use --precision fp16-mixed or bf16-mixed, and leave --dtype out",
        )
    master = _MASTER[precision]
    if stated is not None and stated != master:
        raise UsageError(
            f"--precision {precision} keeps {master} weights, but --dtype says {stated}",
            hint=f"leave --dtype out, or use --dtype {master}",
        )
    return master


def complete(options: Mapping[str, Any], spec: ModelSpec) -> Workload:
    """Return the workload that the options mean for a model.

    Args:
        options: names and values that the user set; None or absent = not set.
        spec: the model, already in the dtype of `weight_dtype(options)`.

    Raises UsageError for an option of the other task.
    """
    given = {name: value for name, value in options.items() if value is not None}
    unknown = sorted(given.keys() - {field.name for field in fields(Workload)})
    if unknown:
        raise UsageError(f"no option is called {unknown[0]!r}", hint="see memplan plan --help")
    task = given.get("task", "infer")
    _refuse_foreign(given, task)
    engine = given.get("runtime") or default_runtime(spec)
    values = {
        "task": task,
        "runtime": engine,
        "dtype": compute_dtype(spec),
        "kv_dtype": None,
        **_defaults(task, spec, engine),
    }
    values |= {name: value for name, value in given.items() if name != "dtype"}
    if values.get("lora_slots") is not None:
        values["lora_targets"] = values.get("lora_targets") or "all-linear"
    values |= _adapters(values, given)
    _check_quant(values)
    _check_accumulation(values)
    if values["kv_dtype"] is not None:
        values["kv_dtype"] = cache_dtype(str(values["kv_dtype"]), engine)
    _check_cache(values)
    values |= _images(values, spec)
    values |= _draft(values)
    known = {field.name for field in fields(Workload)}
    workload = Workload(**{name: value for name, value in values.items() if name in known})
    assumed = tuple(
        field.name
        for field in fields(Workload)
        if field.name not in (*given, "assumed", "extra", "pin")
        and getattr(workload, field.name) is not None
    )
    return Workload(**{**values, "assumed": assumed})


def _adapters(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the adapters of a training are like, after a check that there are any."""
    if values["task"] != "train":
        return {}
    if values["method"] not in ADAPTER_METHODS:
        for name in ("lora_rank", "lora_targets", "lora_dropout", "lora_dtype"):
            if name in given:
                raise UsageError(
                    f"--{name.replace('_', '-')} without adapters", hint="add --method lora"
                )
        return {}
    own = {
        "lora_rank": values.get("lora_rank") or DEFAULT_RANK,
        "lora_targets": values.get("lora_targets") or "all-linear",
        "lora_dropout": values.get("lora_dropout") or 0.0,
        "lora_dtype": dtype_name(values.get("lora_dtype") or "float32"),
    }
    if values["method"] == "qlora" and values.get("quant") in (None, "none"):
        own["quant"] = DEFAULT_QLORA
    if values["method"] == "qlora" and "precision" not in given:
        own["precision"] = QLORA_PRECISION
    return own


def _check_accumulation(values: Mapping[str, Any]) -> None:
    """Refuse micro-batches whose gradients would have to wait, where each is used at once."""
    if (values.get("grad_accum") or 1) > 1 and split_name(str(values.get("optimizer")))[1]:
        raise UsageError(
            f"--optimizer {values['optimizer']} keeps no gradients, so none can be accumulated",
            hint=f"leave --grad-accum or {IN_BACKWARD} out",
        )


def _check_quant(values: Mapping[str, Any]) -> None:
    """Refuse a training whose quantization is not one that trains."""
    quant = str(values.get("quant") or "none").lower()
    if values["task"] != "train" or quant == "none":
        return
    if values["method"] not in ("lora", "rslora", "qlora"):
        raise UsageError(f"{quant} weights cannot be trained themselves", hint="add --method qlora")
    if quant not in TRAINED_OVER:
        raise UsageError(
            f"no rule for adapters over {quant} weights", hint="one of: " + ", ".join(TRAINED_OVER)
        )


ADAPTER_METHODS = ("lora", "rslora", "dora", "qlora")
"""Methods that train adapters beside frozen weights."""
DEFAULT_RANK = 8
"""Rank of adapters when nobody sets one: PEFT's own."""
TRAINED_OVER = ("nf4", "nf4-dq", "fp4", "fp4-dq", "int8")
"""Quantizations (bitsandbytes) whose linears pass gradients on."""
QLORA_PRECISION = "bf16-mixed"
"""Precision of QLoRA when nobody sets one: Trainer's autocast over float32 norms and heads."""
DEFAULT_QLORA = "nf4"
"""Quantization of the frozen weights when nobody sets one (bitsandbytes' for QLoRA)."""


def _images(values: Mapping[str, Any], spec: ModelSpec) -> dict[str, Any]:
    """Return the size of the images, after a check that model and context take them."""
    images, size = values.get("images"), values.get("image_size")
    if not images:
        if size is None:
            return {}
        raise UsageError("--image-size is that of no image", hint="add --images 1")
    if spec.vision is None:
        raise UsageError(
            f"memplan knows no tower of {spec.name} that sees images",
            hint="name the original model (folder, config.json, Hub id), or leave --images out",
        )
    width, height = parse_size(size, spec.vision)
    needed = images * image_count(spec.vision, width, height).tokens
    if needed > values["context"]:
        raise UsageError(
            f"{images} image(s) of {width}x{height} take {needed} tokens, and the context has "
            f"{values['context']}",
            hint=f"--context {needed + _TEXT_TOKENS}, smaller images or fewer",
        )
    return {"image_size": f"{width}x{height}"}


_TEXT_TOKENS = 512
"""Tokens of text that the hint leaves room for."""


def _draft(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tokens that are drafted at once: the engine's own number where it has one."""
    if values.get("draft") is None:
        if values.get("draft_tokens") is None:
            return {}
        raise UsageError("--draft-tokens without what drafts them", hint="add --draft MODEL")
    own = values.get("draft_tokens") or _DRAFTED.get(values["runtime"])
    if own is None:
        raise UsageError(
            f"{values['runtime']} has no number of drafted tokens of its own",
            hint="add --draft-tokens 3",
        )
    return {"draft_tokens": own}


_DRAFTED = {"transformers": 20, "llama.cpp": 16}
"""Tokens drafted at once where nobody says: GenerationConfig.num_assistant_tokens, --draft-max."""


def _check_cache(values: Mapping[str, Any]) -> None:
    """Refuse a cache that the engine does not have, or not in this type."""
    cache, name = values.get("cache"), str(values["kv_dtype"])
    if cache is None:
        return
    if values["runtime"] != "transformers":
        raise UsageError(
            f"--cache belongs to transformers; {values['runtime']} has one kind of cache",
            hint="leave --cache out, or add --runtime transformers",
        )
    if cache != "dynamic" and (name in _QUANTISED_CACHES or name.startswith("float8")):
        raise UsageError(
            f"transformers has no {cache} cache in {name}: a quantized cache is a kind of its own",
            hint="leave out --cache or --kv-dtype",
        )


_CACHE_NAMES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "auto": "bfloat16"}


def cache_dtype(name: str, engine: str) -> str:
    """Return the name of a cache's type as an engine calls it.

    Raises UsageError for one that the engine does not have.
    """
    plain = name.lower()
    if engine == "llama.cpp":
        back = {long: short for short, long in _CACHE_NAMES.items() if short != "auto"}
        return back.get(plain, plain)
    if engine == "exllama":
        return "float16" if plain in ("fp16", "f16", "auto") else plain
    plain = _CACHE_NAMES.get(plain, plain)
    if plain.startswith("fp8"):
        return "float8_e5m2" if "e5m2" in plain else "float8_e4m3fn"
    if plain in _QUANTISED_CACHES and engine == "transformers":
        return plain
    return dtype_name(plain)


_QUANTISED_CACHES = ("int8", "int4", "int2")


def default_runtime(spec: ModelSpec) -> str:
    """Return the engine that runs such a file: llama.cpp for GGUF, else transformers."""
    return "llama.cpp" if spec.weight_format.startswith(("gguf", "ggml")) else "transformers"


def compute_dtype(spec: ModelSpec) -> str:
    """Return the floating dtype that a model computes in.

    Its own; of a quantised one that of most bytes which are not packed, else float16 for GGUF
    and bfloat16 for the rest.
    """
    if spec.dtype in _FLOATS:
        return spec.dtype
    sizes: Counter[str] = Counter()
    for tensor in spec.tensors:
        if tensor.dtype in ("bfloat16", "float16"):
            sizes[tensor.dtype] += tensor.bytes
    if sizes:
        return sizes.most_common(1)[0][0]
    return "float16" if spec.weight_format.startswith(("gguf", "ggml")) else "bfloat16"


_FLOATS = ("float64", "float32", "bfloat16", "float16")


def _refuse_foreign(given: Mapping[str, Any], task: str) -> None:
    foreign = _TRAIN_ONLY if task == "infer" else _INFER_ONLY
    other = "train" if task == "infer" else "infer"
    for name in foreign:
        if name in given:
            raise UsageError(
                f"--{name.replace('_', '-')} belongs to --task {other}",
                hint=f"add --task {other}, or leave it out",
            )


def _defaults(task: str, spec: ModelSpec, engine: str) -> dict[str, Any]:
    tokens = min(DEFAULT_TOKENS, spec.max_context or DEFAULT_TOKENS)
    if task == "infer":
        fixed = {"llama.cpp": "f16", "exllama": "float16"}
        kv_dtype = fixed.get(engine) or compute_dtype(spec)
        own = {"logits": "last", "cache": "dynamic"} if engine == "transformers" else {}
        return {"context": tokens, "kv_dtype": kv_dtype, **own}
    precision = "fp32" if spec.dtype == "float32" else "bf16"
    return {
        # A float16 file is trained in bfloat16 unless a precision is named: the same bytes.
        "dtype": "float32" if precision == "fp32" else "bfloat16",
        "method": "full",
        "optimizer": "adamw",
        "seq": tokens,
        "grad_accum": 1,
        "checkpointing": "none",
        "precision": precision,
        "loss": "full-logits",
        "data": "packed",
        "estimator": "trace",
    }
