"""(GGUF, budget) pairs on which plans for llama.cpp are held against its own dry run."""

from __future__ import annotations

from dataclasses import dataclass, field

import gguf_files as files
import llamacpp_oracle as oracle

from memplan.emit.llamacpp import arguments
from memplan.footprint.defaults import complete
from memplan.models.load import load_model
from memplan.placement.llamacpp_parts import parts_of
from memplan.placement.plan import make_plan
from memplan.placement.units import cut
from memplan.types import Device
from memplan.units import GIB, MIB

LLAMA_70B = {"layers": 80, "hidden": 8192, "heads": 64, "inner": 28672}
GEMMA_12B = {"layers": 48, "hidden": 3840, "heads": 16, "kv_heads": 8, "key": 256, "inner": 15360}

MODELS = {
    "llama-8b f16": lambda: files.llama(kind="f16"),
    "llama-8b q8_0": lambda: files.llama(kind="q8_0"),
    "llama-8b q4_k_m": lambda: files.q4_k_m(files.llama()),
    "llama-70b f16": lambda: files.llama(**LLAMA_70B, kind="f16"),
    "llama-70b q8_0": lambda: files.llama(**LLAMA_70B, kind="q8_0"),
    "llama-70b q4_k_m": lambda: files.q4_k_m(files.llama(**LLAMA_70B)),
    "gemma-3-12b f16": lambda: files.gemma3(**GEMMA_12B, kind="f16"),
    "gemma-3-12b q4_k_m": lambda: files.q4_k_m(files.gemma3(**GEMMA_12B)),
    "gemma-3-27b q8_0": lambda: files.gemma3(kind="q8_0"),
    "gemma-3-27b q4_k_m": lambda: files.q4_k_m(files.gemma3()),
    "mixtral-8x7b q8_0": lambda: files.mixtral(kind="q8_0"),
    "mixtral-8x7b q4_k_m": lambda: files.q4_k_m(files.mixtral()),
    "qwen3-30b-a3b q8_0": lambda: files.qwen3moe(kind="q8_0"),
    "qwen3-30b-a3b q4_k_m": lambda: files.q4_k_m(files.qwen3moe()),
    "deepseek-v3 q4_k_m": lambda: files.q4_k_m(files.deepseek3()),
    "qwen3-next-80b q4_k_m": lambda: files.q4_k_m(files.qwen3next()),
    "gpt-oss-20b mxfp4": files.gptoss,
}
"""Name -> metadata and tensors."""


@dataclass(frozen=True)
class Pair:
    """One file, the GPUs that it is planned for, and the workload."""

    model: str
    gpus: tuple[int, ...]
    """GiB of each."""
    options: dict[str, object] = field(default_factory=dict)

    def __str__(self):
        sizes = "+".join(str(size) for size in self.gpus)
        more = " ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.model} {sizes} GiB {more}".strip()


PAIRS = [
    Pair("llama-8b q4_k_m", (4,), {"context": 8192}),
    Pair("llama-8b q4_k_m", (6,), {"context": 65536, "kv_dtype": "q8_0"}),
    Pair("llama-8b q4_k_m", (5,), {"context": 8192, "batch": 4}),
    Pair("llama-8b q8_0", (6,), {"context": 8192, "prefill_chunk": 2048}),
    Pair("llama-8b q8_0", (5, 4), {"context": 16384}),
    Pair("llama-8b f16", (8,), {"context": 8192}),
    Pair("llama-8b f16", (12,), {"context": 16384, "attention": "eager"}),
    Pair("llama-8b f16", (24,), {"context": 8192}),
    Pair("llama-70b q4_k_m", (24,), {"context": 8192}),
    Pair("llama-70b q4_k_m", (24, 12), {"context": 32768, "kv_dtype": "q4_0"}),
    Pair("llama-70b q8_0", (48,), {"context": 32768}),
    Pair("llama-70b f16", (40, 40), {"context": 8192}),
    Pair("llama-70b q4_k_m", (24, 24), {"context": 8192}),
    Pair("gemma-3-12b q4_k_m", (6,), {"context": 8192}),
    Pair("gemma-3-12b f16", (16,), {"context": 32768}),
    Pair("gemma-3-27b q4_k_m", (12,), {"context": 32768, "attention": "eager"}),
    Pair("gemma-3-27b q8_0", (12, 12), {"context": 8192}),
    Pair("mixtral-8x7b q4_k_m", (8,), {"context": 8192}),
    Pair("mixtral-8x7b q4_k_m", (24,), {"context": 32768}),
    Pair("mixtral-8x7b q8_0", (16, 16), {"context": 8192}),
    Pair("qwen3-30b-a3b q4_k_m", (6,), {"context": 8192}),
    Pair("qwen3-30b-a3b q8_0", (16,), {"context": 32768, "kv_dtype": "q8_0"}),
    Pair("qwen3-30b-a3b q4_k_m", (8, 6), {"context": 8192}),
    Pair("deepseek-v3 q4_k_m", (8,), {"context": 8192}),
    Pair("deepseek-v3 q4_k_m", (24,), {"context": 8192}),
    Pair("deepseek-v3 q4_k_m", (80,), {"context": 32768}),
    Pair("deepseek-v3 q4_k_m", (24, 24), {"context": 32768, "attention": "eager"}),
    Pair("qwen3-next-80b q4_k_m", (8,), {"context": 8192}),
    Pair("qwen3-next-80b q4_k_m", (24,), {"context": 131072}),
    Pair("qwen3-next-80b q4_k_m", (16, 12), {"context": 32768}),
    Pair("gpt-oss-20b mxfp4", (8,), {"context": 8192}),
    Pair("gpt-oss-20b mxfp4", (12,), {"context": 65536, "attention": "eager"}),
    Pair("gpt-oss-20b mxfp4", (6, 6), {"context": 131072}),
]


def path_of(pair, folder):
    """Return the pair's file, written sparse once into a folder."""
    path = folder / f"{pair.model.replace(' ', '-')}.gguf"
    if path.exists():
        return path
    metadata, tensors = MODELS[pair.model]()
    plain = {key: item for key, item in metadata.items() if not key.startswith("tokenizer.")}
    plain["tokenizer.ggml.model"] = "no_vocab"  # a vocabulary takes seconds and no device memory
    return files.write_gguf(path, plain, tensors)


def plan_of(pair, path):
    """Return (spec, plan) of a pair."""
    spec = load_model(str(path), dtype=None, options=pair.options)
    devices = [
        Device(name=f"cuda:{i}", kind="gpu", capacity_bytes=size * GIB)
        for i, size in enumerate(pair.gpus)
    ]
    devices.append(Device(name="cpu", kind="cpu", capacity_bytes=2**43))
    return spec, make_plan(spec, complete(pair.options, spec), devices)


@dataclass(frozen=True)
class Judged:
    """What llama.cpp says of our arguments, and of its own."""

    pair: Pair
    budgets: list[int]
    """MiB that each GPU has for weights, caches and buffers: ours to fill."""
    ours: list[tuple[int, int, int]]
    """(weights, cache, buffers) MiB of each GPU by our arguments, on a device like CUDA's."""
    plain: list[tuple[int, int, int]]
    """The same without the copies for large batches."""
    fit: list[tuple[int, int, int]]
    """The same as `ours` by llama.cpp's own --fit with the same budgets and no margin."""
    planned: list[dict[str, int]]
    """Parts of each GPU in the plan, bytes."""
    high: list[int]
    """Upper end of each GPU's total in the plan, without its fixed overhead, MiB."""
    largest: int
    """MiB of the largest layer with its cache."""
    dense: tuple[int, int]
    """MiB that every token reads on the GPUs: ours, and --fit's."""
    arguments: list[str]
    fit_arguments: list[str]
    plan: object

    @property
    def whole(self):
        """True when the host computes nothing."""
        return not self.plan.placement.offloaded_bytes

    @property
    def unused(self):
        """MiB of each GPU that our arguments leave."""
        return [have - sum(row) for have, row in zip(self.budgets, self.ours, strict=True)]


def judge(pair, folder):
    """Plan a pair and have llama.cpp judge it. Raises RuntimeError where it refuses."""
    path = path_of(pair, folder)
    spec, plan = plan_of(pair, path)
    words = arguments(plan, spec)
    gpus = [ledger for ledger in plan.devices if ledger.kind == "gpu"]
    fixed = _overhead(plan)
    budgets = [ledger.capacity_bytes - fixed for ledger in gpus]
    asked = words[: words.index("-fit")]
    with oracle.devices(*budgets) as servers:
        ours = oracle.dry_run(words, servers, like_cuda=True)
        plain = oracle.dry_run(words, servers)
        chosen = oracle.own_fit(asked, servers, like_cuda=True)
        theirs = [*asked, "-fit", "off", *chosen]
        fit = oracle.dry_run(theirs, servers, like_cuda=True)
        dense = [
            sum(row[0] for row in _gpus(oracle.dry_run(["-cmoe", *line], servers)))
            for line in (words, theirs)
        ]
    return Judged(
        pair=pair,
        budgets=[size // MIB for size in budgets],
        ours=_gpus(ours),
        plain=_gpus(plain),
        fit=_gpus(fit),
        planned=[dict(ledger.parts) for ledger in gpus],
        high=[(ledger.high_bytes - _high(plan)) // MIB for ledger in gpus],
        largest=_largest(spec, plan) // MIB,
        dense=(dense[0], dense[1]),
        arguments=words,
        fit_arguments=chosen,
        plan=plan,
    )


def _gpus(rows):
    return [row for name, row in rows.items() if name != "Host"]


def _high(plan):
    return sum(line.high_bytes for line in plan.footprint.lines if line.part == "overhead")


def _overhead(plan):
    """Return what a plan kept for the context: the upper end where something stayed behind."""
    if plan.placement.offloaded_bytes:
        return _high(plan)
    return sum(line.bytes for line in plan.footprint.lines if line.part == "overhead")


def _largest(spec, plan):
    parts = parts_of(spec, plan.workload, cut(spec))
    return max(block.bytes + block.cache_bytes for block in parts.blocks if block.layer)
