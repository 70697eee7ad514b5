"""A job's model on fake tensors: built from its config, adapted, quantised, made trainable."""

from __future__ import annotations

import inspect
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from memplan.errors import BadModelError, UnsupportedModelError, UsageError
from memplan.footprint.defaults import ADAPTER_METHODS
from memplan.models.meta import build_model
from memplan.models.module import build_module
from memplan.trace.fake import materialise
from memplan.trace.job import Job
from memplan.trace.patches import FLASH
from memplan.trace.quantised import adapt_packed, pack_linears, prepare_kbit
from memplan.types import Workload

__all__ = ["build"]


def _compute(work: Workload) -> str:
    return "float16" if (work.precision or "").startswith("fp16") else "bfloat16"


def build(job: Job, mode: Any) -> Any:
    """Return the nn.Module of a job, every tensor fake.

    Args:
        job: what is traced.
        mode: of `memplan.trace.fake.fake_mode`.

    Raises what `memplan.models.meta.build_model` raises, and UsageError for adapters that fit no
    module.
    """
    work = job.workload
    model = _on_meta(job)
    if work.task == "train":
        model.train()
        if work.quant != "none":
            pack_linears(model, work.quant, compute=_compute(work))
        if work.method == "qlora":
            prepare_kbit(model)
        if work.method in ADAPTER_METHODS:
            model = _adapted(model, work)
            adapt_packed(model, target=job.target.kind)
        if work.checkpointing in ("full", "selective"):
            _checkpoint(model, work.checkpointing)
    else:
        model.eval()
        model.requires_grad_(False)  # noqa: FBT003 - torch's signature
    materialise(model, mode)
    return model


def _on_meta(job: Job) -> Any:
    if job.module is not None:
        return build_module(job.module, dtype=job.workload.dtype)
    attention = "eager" if job.workload.attention == "eager" else None
    with tempfile.TemporaryDirectory(prefix="memplan-") as place:
        path = Path(job.folder or place) / "config.json"
        if job.folder is None:
            path.write_text(job.config, encoding="utf-8")
        model, _ = build_model(
            path,
            dtype=job.workload.dtype,
            attention=attention,
            trust_remote_code=job.folder is not None,
        )
    if job.workload.attention == "flash":
        model.config._attn_implementation_internal = FLASH  # noqa: SLF001 - no check for a package
    return model


def _adapted(model: Any, work: Workload) -> Any:
    """Return a model with PEFT's adapters, in float32 unless said otherwise (PEFT's default)."""
    import peft
    import torch

    assert work.lora_rank is not None
    targets: Any = work.lora_targets or "all-linear"
    if targets != "all-linear":
        targets = [name.strip() for name in targets.split(",")]
    settings = peft.LoraConfig(
        r=work.lora_rank,
        target_modules=targets,
        lora_dropout=work.lora_dropout or 0.0,
        use_dora=work.method == "dora",
        use_rslora=work.method == "rslora",
    )
    try:
        with torch.device("meta"):
            adapted = peft.get_peft_model(model, settings)
    except ValueError as error:
        raise UsageError(
            f"PEFT finds no place for adapters: {' '.join(str(error).split())[:200]}",
            hint="--lora-targets all-linear, or names of this model's linears",
        ) from error
    dtype = getattr(torch, work.lora_dtype or "float32")
    for parameter in adapted.parameters():
        if parameter.requires_grad and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
    return adapted


def _checkpoint(model: Any, kind: str) -> None:
    """Switch activation checkpointing on, as Trainer does.

    "selective" keeps what matrices and attention give, every second matrix product of a layer
    left out, and computes the rest again (torchtitan's "op" policy).
    """
    new = getattr(model, "activation_checkpointing_enable", None)
    enable = new or getattr(model, "gradient_checkpointing_enable", None)
    if enable is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} is no model of transformers: nothing says what its layers are",
            hint="--checkpointing none, and checkpoint inside the module",
        )
    name = ("activation" if new else "gradient") + "_checkpointing_kwargs"
    settings: dict[str, Any] = {"use_reentrant": False}
    if kind == "selective":
        settings["context_fn"] = partial(_contexts)
    if name not in inspect.signature(enable).parameters:
        name = next(iter(inspect.signature(enable).parameters))
    try:
        enable(**{name: settings})
    except ValueError as error:
        raise BadModelError(
            f"{type(model).__name__} has no activation checkpointing",
            hint="--checkpointing none",
        ) from error


def _contexts() -> Any:
    import torch
    from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

    aten = torch.ops.aten
    kept = {
        aten._scaled_dot_product_flash_attention.default,  # noqa: SLF001 - torch's names
        aten._scaled_dot_product_efficient_attention.default,  # noqa: SLF001
        aten._scaled_dot_product_flash_attention_for_cpu.default,  # noqa: SLF001
    }
    count = [0]

    def policy(_: Any, operator: Any, *__: Any, **___: Any) -> Any:
        if operator in kept:
            return CheckpointPolicy.MUST_SAVE
        if operator in (aten.mm.default, aten.addmm.default):
            count[0] += 1
            if count[0] % 2:
                return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
