"""Options that `plan` and `map` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from memplan.errors import UnitError, UsageError
from memplan.units import parse_bytes

if TYPE_CHECKING:
    from memplan.types import Plan

__all__ = [
    "Bytes",
    "Count",
    "chosen_unit",
    "plan_options",
    "read_plan",
    "unit_option",
]

F = TypeVar("F", bound=Callable[..., Any])


class Bytes(click.ParamType[int]):
    """A size on the command line: "24GiB", "80GB", "512MiB" or bare bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return whole bytes."""
        if isinstance(value, int):
            return value
        try:
            return parse_bytes(value)
        except UnitError as error:
            self.fail(f"{error}; {error.hint}", param, ctx)


class Count(click.ParamType[int]):
    """A whole number from 1, or another least, up to what no machine will see."""

    name = "number"
    largest = 2**40

    def __init__(self, *, least: int = 1) -> None:
        """Set the least number that is taken."""
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        try:
            number = int(value)
        except ValueError:
            self.fail(f"{value!r} is not a whole number", param, ctx)
        if not self.least <= number <= self.largest:
            self.fail(f"{number} is not between {self.least} and {self.largest}", param, ctx)
        return number


_COUNT = Count()

_OPTIONS: tuple[Callable[[F], F], ...] = (
    click.argument("model"),
    click.option("--task", type=click.Choice(["infer", "train"]), help="Default: infer."),
    click.option(
        "--runtime",
        type=click.Choice(["transformers", "vllm", "llama.cpp", "exllama"]),
        help="Default: llama.cpp for GGUF, else transformers.",
    ),
    click.option("--dtype", help="Load the weights as bf16, fp16 or fp32. Default: the model's."),
    click.option(
        "--quant",
        metavar="NAME",
        help="nf4, int8, gptq-4bit-g128, awq-4bit-g128, fp8 ...; q4_k_m ... Default: none.",
    ),
    click.option(
        "--context", type=_COUNT, metavar="TOKENS", help="infer: tokens cached per sequence."
    ),
    click.option(
        "--images",
        type=Count(least=0),
        metavar="N",
        help="infer: images per sequence, part of its context. Default: 0.",
    ),
    click.option(
        "--image-size", metavar="WxH", help="infer: of each image, pixels. Default: the family's."
    ),
    click.option("--batch", type=_COUNT, metavar="N", help="Sequences at once. Default: 1."),
    click.option(
        "--prefill-chunk", type=_COUNT, metavar="TOKENS", help="infer: prompt tokens in one pass."
    ),
    click.option(
        "--kv-dtype",
        metavar="TYPE",
        help="infer: of the cache: bf16, fp8, int4 (transformers, vllm), q8_0 ... (llama.cpp), q6, "
        "k8v4 ... (exllama).",
    ),
    click.option(
        "--cache",
        type=click.Choice(["dynamic", "static", "offloaded", "offloaded-static"]),
        help="infer, transformers: how the cache is kept. Default: dynamic.",
    ),
    click.option(
        "--attention", type=click.Choice(["sdpa", "eager", "flash"]), help="Default: sdpa."
    ),
    click.option(
        "--lora-slots", type=_COUNT, metavar="N", help="infer: adapters that are kept loaded."
    ),
    click.option("--lora-rank", type=_COUNT, metavar="R", help="Rank of adapters. train: 8."),
    click.option(
        "--lora-targets",
        metavar="NAMES",
        help="Linears that get them, such as q_proj,v_proj. Default: all-linear.",
    ),
    click.option(
        "--lora-dropout",
        type=click.FloatRange(0, 1, max_open=True),
        metavar="SHARE",
        help="train. Default: 0.",
    ),
    click.option(
        "--lora-dtype",
        type=click.Choice(["fp32", "bf16"]),
        help="train: of the adapters. Default: fp32, as PEFT keeps them.",
    ),
    click.option(
        "--draft", metavar="MODEL|mtp", help="infer: a model, or own layers, that draft tokens."
    ),
    click.option("--draft-tokens", type=_COUNT, metavar="N", help="infer: tokens drafted at once."),
    click.option(
        "--logits",
        type=click.Choice(["last", "full", "full-fp32"]),
        help="infer: of the last token, or of the whole prompt. Default: last.",
    ),
    click.option(
        "--method",
        type=click.Choice(["full", "lora", "rslora", "dora", "qlora"]),
        help="train: what is updated. Default: full.",
    ),
    click.option(
        "--optimizer",
        metavar="NAME",
        help="train: adamw (-foreach, -for-loop, -fused, -8bit), paged-adamw (-8bit), lion "
        "(-8bit), ademamix (-8bit), torchao-adamw-8bit (-4bit, -fp8), galore (-r256), muon, "
        "adafactor, adam, adagrad, rmsprop, sgd, sgd-momentum; each with -in-backward. "
        "Default: adamw.",
    ),
    click.option("--seq", type=_COUNT, metavar="TOKENS", help="train: tokens per sequence."),
    click.option("--grad-accum", type=_COUNT, metavar="N", help="train: micro-batches per step."),
    click.option(
        "--checkpointing",
        type=click.Choice(["none", "selective", "full"]),
        help="train. Default: none.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["bf16", "bf16-mixed", "fp16-mixed", "fp32"]),
        help="train: arithmetic and master weights. Default: bf16, or fp32 for an fp32 model.",
    ),
    click.option(
        "--loss",
        type=click.Choice(["full-logits", "chunked"]),
        help="train: all logits at once (default), or chunk by chunk as Liger's kernel.",
    ),
    click.option(
        "--data",
        type=click.Choice(["packed", "padded"]),
        help="train: padded batches need a mask. Default: packed.",
    ),
    click.option(
        "--eval-batch",
        type=_COUNT,
        metavar="N",
        help="train: sequences at once of an evaluation between steps. Default: no evaluation.",
    ),
    click.option(
        "--compile",
        is_flag=True,
        default=None,
        help="train: the model runs through torch.compile, which widens the band.",
    ),
    click.option(
        "--gpus", type=_COUNT, metavar="N", help="GPUs in all, each as --device says. Default: 1."
    ),
    click.option("--nodes", type=_COUNT, metavar="N", help="train: machines that they are in."),
    click.option(
        "--strategy",
        type=click.Choice(["ddp", "zero1", "zero2", "zero3", "fsdp2", "tp", "pp", "ep", "cp"]),
        help="train on several GPUs. Default: fsdp2.",
    ),
    click.option(
        "--offload-optimizer",
        type=click.Choice(["cpu", "disk"]),
        help="train: where ZeRO (cpu: FSDP2, too) keeps optimizer states. On one GPU: zero3.",
    ),
    click.option(
        "--offload-params",
        type=click.Choice(["cpu", "disk"]),
        help="train: where ZeRO-3 (cpu: FSDP2, too) keeps weights between their uses.",
    ),
    *(
        click.option(f"--{name}", type=_COUNT, metavar="N", help=f"{text}-parallel degree.")
        for name, text in (
            ("tp", "train, and infer on vllm or transformers: tensor"),
            ("pp", "train: pipeline"),
            ("dp", "train: data"),
            ("ep", "train: expert"),
            ("cp", "train: context"),
        )
    ),
    click.option(
        "--device",
        multiple=True,
        metavar="NAME|SIZE|local|cpu",
        help="A GPU by name or memory (repeatable), this machine's, or none. Default: local.",
    ),
    click.option(
        "--offload",
        type=click.Choice(["stream", "cpu-compute", "uva", "prefetch"]),
        help="infer: how the rest is used. Default: as the runtime does (vllm: uva).",
    ),
    click.option(
        "--pin",
        multiple=True,
        metavar="MODULE=DEVICE",
        help="infer: keep a module there, such as lm_head=cpu (repeatable).",
    ),
    click.option("--host-memory", type=Bytes(), help="Host memory. Default: this machine's."),
    click.option("--disk", type=Bytes(), help="Disk for offload; 0 = none. Default: free space."),
    click.option("--reserve", type=Bytes(), help="Left free on each computing device. Default: 0."),
    click.option("--host-bandwidth", type=Bytes(), help="Host to GPU, bytes a second."),
    click.option("--disk-bandwidth", type=Bytes(), help="Disk to memory, bytes a second."),
    click.option(
        "--estimator",
        type=click.Choice(["formula", "trace"]),
        help="Closed form, or the model's own code on tensors without memory (seconds). Default: "
        "trace for train; for infer a kept trace of this prompt, else the formula.",
    ),
    click.option(
        "--trust-remote-code",
        is_flag=True,
        help="Run Python code from the model's folder. Read it first.",
    ),
)


def plan_options(function: F) -> F:
    """Add the model argument and every option of a plan to a command."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def unit_option(function: F) -> F:
    """Add --unit, whose default is the setting."""
    return click.option(
        "--unit", type=click.Choice(["GiB", "MiB", "GB"]), help="Unit of sizes. Default: GiB."
    )(function)


def read_plan(key: str) -> Plan:
    """Return a plan by its id, a unique beginning of it, "last", or its JSON file.

    Raises NotStoredError, StoreMissingError and SchemaError.
    """
    from memplan.types import Plan as PlanType

    if key.endswith(".json") or Path(key).is_file():
        from memplan.serialize import load_file

        return load_file(Path(key), PlanType)
    from memplan import config
    from memplan.store.reader import StoreReader

    with StoreReader(config.setting("database").value) as reader:
        return reader.plan(key)


def chosen_unit(unit: str | None) -> str:
    """Return the unit to print in: the option, else the setting. Raises UsageError."""
    from memplan import config

    value = unit or config.setting("unit").value
    if value not in ("GiB", "MiB", "GB"):
        raise UsageError(f"setting unit is {value!r}", hint="use GiB, MiB or GB")
    return value
