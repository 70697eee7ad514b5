"""Our device maps beside those of accelerate and transformers, judged by one independent checker.

    python benchmarks/placement.py            all pairs (minutes; needs torch, accelerate, scipy)
    python benchmarks/placement.py --quick    three models

Every (model, budget) pair is given to three planners: memplan, accelerate's `infer_auto_device_map`
and transformers' fork of it. The others plan weights only, so they are given just the room that is
left beside cache, activations and context; ours is given the devices themselves. The checker below
knows nothing of memplan's planner: it walks the modules of the built model, follows accelerate's
hooks (what is offloaded runs on the first GPU in use and is copied there module by module), and
charges weights, buffers, cache, activations and the reload of each map.

Ends with 1 when one of our maps is invalid or over its budget, keeps fewer bytes than a valid map
of theirs, or is further than 0.2 % of the model from the proven optimum.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from memplan.footprint.defaults import complete
from memplan.models.catalog import find_model
from memplan.models.meta import build_model, quiet
from memplan.models.resolve import resolve
from memplan.placement.beside import optimum_beside
from memplan.placement.engines import PROFILES
from memplan.placement.plan import make_plan
from memplan.placement.several import Block, spread
from memplan.placement.units import Unit
from memplan.runtimes import runtime
from memplan.types import Device, ModelSpec, Plan, Tensor
from memplan.units import GIB, MIB

CONTEXT = 4096
LIMIT = 0.002
"""Most that our maps may keep less than the optimum, as a share of the model."""
HBM, LINK, TABLE_ROWS = 1008e9, 25e9, "embed"
"""Rates of the estimated tokens a second: an RTX 4090's memory, PCIe 4.0 x16."""

GEMMA = {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "hidden_size": 3840,
    "intermediate_size": 15360,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "vocab_size": 262208,
    "sliding_window": 1024,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
T5 = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "d_model": 1024,
    "d_kv": 128,
    "d_ff": 65536,
    "num_heads": 128,
    "num_layers": 24,
    "num_decoder_layers": 24,
    "vocab_size": 32128,
    "tie_word_embeddings": True,
    "is_encoder_decoder": True,
    "dtype": "bfloat16",
}
TOY = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 10,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 64000,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
MODELS: dict[str, str | dict[str, Any]] = {
    "llama-8b": "llama-3.1-8b",
    "llama-70b": "llama-3.1-70b",
    "mixtral-8x7b": "mixtral-8x7b-v0.1",
    "deepseek-v3": "deepseek-v3",
    "gemma3-12b": GEMMA,
    "t5-11b": T5,
    "qwen3-next": "qwen3-next-80b-a3b",
    "toy+buffers": TOY,
}
QUICK = ("llama-8b", "gemma3-12b", "toy+buffers")

ALONE = (0.08, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.9, 0.95, 0.97, 0.99, 1.0, 1.05)
TOGETHER = (0.5, 0.8, 1.0, 1.06, 1.15, 1.3)
SHAPES = ((1, 1), (1, 1, 1, 1), (1,) * 8, (3, 10, 5), (1, 4), (4, 1), (2, 1, 1, 3))
"""Sizes of GPUs relative to each other."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One model: what memplan sees, and the module that the others and the checker see."""

    name: str
    spec: ModelSpec
    model: Any


def subjects(names: Sequence[str]) -> Iterator[Subject]:
    """Build each model on the meta device."""
    import transformers

    for name in names:
        source = MODELS[name]
        with tempfile.TemporaryDirectory() as folder, quiet(transformers):
            path = Path(folder) / "config.json"
            config = source
            if isinstance(source, str):
                listed = find_model(source)
                assert listed is not None
                config = json.loads(listed.config)
                config.pop("quantization_config", None)  # what accelerate sees is plain
            path.write_text(json.dumps(config), "utf-8")
            spec = resolve(str(path), dtype="bfloat16", exact_modules=True)
            model, _ = build_model(path, dtype="bfloat16")
        if name == "toy+buffers":
            spec = _with_buffers(spec, model)
        yield Subject(name, spec, model)


def _with_buffers(spec: ModelSpec, model: Any) -> ModelSpec:
    """Give modules that get split buffers of 24 MiB (accelerate#4014)."""
    import torch

    extra = []
    for i, layer in enumerate(model.model.layers):
        for part in ("self_attn", "mlp"):
            elements = 12 * MIB
            table = torch.empty(elements, dtype=torch.bfloat16, device="meta")
            inner = layer.self_attn.o_proj if part == "self_attn" else layer.mlp.down_proj
            inner.register_buffer("table", table)
            name = f"model.layers.{i}.{part}.{'o' if part == 'self_attn' else 'down'}_proj.table"
            extra.append(
                Tensor(
                    name=name,
                    shape=(elements,),
                    dtype="bfloat16",
                    bytes=2 * elements,
                    kind="buffer",
                )
            )
    return replace(spec, tensors=(*spec.tensors, *extra))


@dataclass(slots=True)
class Verdict:
    """What the checker found out about one map."""

    invalid: str = ""
    over: int = 0
    resident: int = 0
    streamed: int = 0
    seconds: float = math.inf


class Checker:
    """Walks a built model; shares no code with the planner."""

    def __init__(self, subject: Subject, cache: Sequence[int]) -> None:
        model = subject.model
        self.cache = cache
        self.parameters = {
            name: (id(p), p.numel() * p.element_size())
            for name, p in model.named_parameters(remove_duplicate=False)
        }
        self.buffers = {
            name: b.numel() * b.element_size()
            for name, b in model.named_buffers(remove_duplicate=False)
        }
        self.active = _active_share(subject.spec)
        stack = max(
            (n for n, m in model.named_modules() if type(m).__name__ == "ModuleList"),
            key=lambda n: sum(s for k, (_, s) in self.parameters.items() if k.startswith(f"{n}.")),
        )
        self.stack = stack
        no_split = set(_atoms(model))
        self.atoms = [n for n, m in model.named_modules() if type(m).__name__ in no_split]

    def check(
        self,
        mapping: Mapping[str, Any],
        room: Mapping[str, int],
        hosted: Sequence[str] = (),
    ) -> Verdict:
        """Judge one map.

        Args:
            mapping: module -> "cuda:N", "cpu" or "disk".
            room: GPU -> bytes beside activations and context.
            hosted: modules that the host runs itself.
        """
        result = Verdict()
        place: dict[str, str] = {}
        for name in (*self.parameters, *self.buffers):
            keys = [k for k in _above(name) if k in mapping]
            if len(keys) != 1:
                result.invalid = f"{name} is named by {keys or 'no key'}"
                return result
            place[name] = mapping[keys[0]]
        homes: dict[int, str] = {}
        for name, (identity, _) in self.parameters.items():
            if homes.setdefault(identity, place[name]) != place[name]:
                result.invalid = f"the tie of {name} is torn apart"
                return result
        gpus = sorted({d for d in place.values() if d in room}, key=lambda d: int(d[5:]))
        if not gpus:
            result.invalid = "no GPU is used: the host computes"
            return result
        main = gpus[0]
        runs = {n: d if d in room else main for n, d in place.items()}
        for atom in self.atoms:
            inside = {
                d for n, d in runs.items() if n.startswith(f"{atom}.") and n not in self.buffers
            }
            if len(inside) > 1:
                result.invalid = f"{atom} runs on {inside}: its residual cannot be added"
                return result
        return self._charged(result, place, runs, room, main, hosted)

    def _charged(  # noqa: PLR0917 - six views of one map
        self,
        result: Verdict,
        place: Mapping[str, str],
        runs: Mapping[str, str],
        room: Mapping[str, int],
        main: str,
        hosted: Sequence[str],
    ) -> Verdict:
        held = dict.fromkeys(room, 0)
        seen: set[int] = set()
        copied: dict[str, int] = {}
        for name, (identity, size) in self.parameters.items():
            if identity in seen:
                continue
            seen.add(identity)
            table = any(name.startswith(f"{module}.") for module in hosted)
            if place[name] in room:
                held[place[name]] += size
                result.resident += size
            elif table:
                result.resident += size  # no token waits for it
            else:
                module = name.rpartition(".")[0]
                copied[module] = copied.get(module, 0) + size
                result.streamed += size
        for name, size in self.buffers.items():
            held[runs[name]] += size
        for i, size in enumerate(self.cache):
            inside = (
                n for n in runs if n.startswith(f"{self.stack}.{i}.") and n in self.parameters
            )
            held[runs[next(inside)]] += size
        held[main] += max(copied.values(), default=0)
        result.over = max(held[d] - room[d] for d in room)
        read = sum(
            size * (self.active if ".experts." in name else 1.0)
            for name, (_, size) in self.parameters.items()
            if TABLE_ROWS not in name
        )
        result.seconds = read / HBM + result.streamed / LINK
        return result


def _atoms(model: Any) -> list[str]:
    """Return the classes that transformers says must not be split."""
    return list(model._no_split_modules or ())  # noqa: SLF001 - as from_pretrained reads it


def _above(name: str) -> Iterator[str]:
    yield name
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
    yield ""


def _active_share(spec: ModelSpec) -> float:
    routed = sum(math.prod(t.shape) for t in spec.tensors if ".experts." in t.name)
    if not routed or spec.active_parameters is None:
        return 1.0
    return 1 - (spec.parameters - spec.active_parameters) / routed


def devices(capacities: Sequence[int]) -> tuple[Device, ...]:
    """Return GPUs, ample host memory and disk."""
    gpus = [
        Device(name=f"cuda:{i}", kind="gpu", capacity_bytes=size)
        for i, size in enumerate(capacities)
    ]
    host = Device(name="cpu", kind="cpu", capacity_bytes=4096 * GIB)
    return (*gpus, host, Device(name="disk", kind="disk", capacity_bytes=8192 * GIB))


def budgets(weights: int, charge: int) -> Iterator[tuple[int, ...]]:
    """Yield capacities: a share of the model, beside what each GPU needs for all else."""
    for share in ALONE:
        yield (int(share * weights) + charge,)
    for shape in SHAPES:
        for share in TOGETHER:
            whole = share * weights / sum(shape)
            yield tuple(int(part * whole) + charge for part in shape)


def charges(plan: Plan) -> dict[str, int]:
    """Return what each GPU has for weights, buffers, cache and reload.

    By the upper ends of the bands where the plan stays within them, else by best estimates.
    """
    moving = ("weights", "kv_cache", "state_cache", "buffers", "reload_buffer")
    result = {}
    for book in plan.devices:
        if book.kind == "gpu":
            moved = sum(book.items.get(name, 0) for name in moving)
            tight = book.high_bytes + book.reserve_bytes <= book.capacity_bytes
            total = book.high_bytes if tight else book.total_bytes
            result[book.name] = book.capacity_bytes - book.reserve_bytes - (total - moved)
    return result


def others(subject: Subject, room: Mapping[str, int]) -> dict[str, dict[str, str]]:
    """Return the maps of accelerate and of transformers' fork, balanced as `auto` would.

    They are offered the room less an even share of the cache by size of device.
    """
    import accelerate
    from transformers.integrations import accelerate as fork

    memory: dict[Any, int] = {int(k[5:]): max(v, 0) for k, v in room.items()}
    memory |= {"cpu": 4096 * GIB}
    no_split = _atoms(subject.model)
    found = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for name, planner in (
            ("accelerate", accelerate.infer_auto_device_map),
            ("transformers", fork.infer_auto_device_map),
        ):
            mapping = planner(
                subject.model, max_memory=dict(memory), no_split_module_classes=no_split
            )
            found[name] = {k: f"cuda:{v}" if isinstance(v, int) else v for k, v in mapping.items()}
    return found


@dataclass(slots=True)
class Row:
    """One line of the table."""

    pairs: int = 0
    unable: int = 0
    invalid: dict[str, int] = field(default_factory=dict)
    over: dict[str, int] = field(default_factory=dict)
    less: int = 0
    gains: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


def measure(subject: Subject) -> Row:
    """Hold all three planners against each other on one model."""
    row = Row()
    spec = subject.spec
    work = complete({"context": CONTEXT, "runtime": "transformers"}, spec)
    rules = runtime("transformers")
    cache = [rules.layer_cache_bytes(spec, layer, work) for layer in spec.layers]
    checker = Checker(subject, cache)
    ample = make_plan(spec, work, devices([16 * spec.weight_bytes + 64 * GIB]))
    book = ample.devices[0]
    charge = book.high_bytes - book.items["weights"]
    for sizes in budgets(spec.weight_bytes, charge):
        _pair(row, subject, checker, work, sizes, sum(cache))
    return row


def _pair(  # noqa: PLR0917
    row: Row,
    subject: Subject,
    checker: Checker,
    work: Any,
    sizes: Sequence[int],
    cache: int,
) -> None:
    """Hold the planners against each other on one machine."""
    spec = subject.spec
    machine = devices(sizes)
    start = time.process_time()
    plan = make_plan(spec, work, machine)
    row.milliseconds.append(1e3 * (time.process_time() - start))
    row.pairs += 1
    room = charges(plan)
    what = f"{subject.name} on {', '.join(f'{s / GIB:.2f}' for s in sizes)} GiB"
    total = sum(max(r, 1) for r in room.values())
    offered = {
        k: int(r - cache * max(r, 0) / total - spec.buffer_bytes / len(room))
        for k, r in room.items()
    }
    rivals = {k: checker.check(m, room) for k, m in others(subject, offered).items()}
    for name, verdict in rivals.items():
        row.invalid[name] = row.invalid.get(name, 0) + bool(verdict.invalid)
        row.over[name] = row.over.get(name, 0) + (not verdict.invalid and verdict.over > 0)
    valid = [v for v in rivals.values() if not v.invalid and v.over <= 0]
    if not plan.verdict.fits:
        row.unable += 1
        if valid:
            row.complaints.append(f"{what}: ours says no, theirs runs")
        return
    ours = checker.check(dict(plan.placement.device_map), room, plan.placement.host_lookup)
    row.invalid["memplan"] = row.invalid.get("memplan", 0) + bool(ours.invalid)
    row.over["memplan"] = row.over.get("memplan", 0) + (ours.over > 0)
    if ours.invalid or ours.over > 0:
        row.complaints.append(f"{what}: {ours.invalid or f'{ours.over} bytes over'}")
    for verdict in valid:
        row.less += ours.resident < verdict.resident
        if ours.resident < verdict.resident:
            short = (verdict.resident - ours.resident) / spec.weight_bytes
            row.complaints.append(f"{what}: {100 * short:.3f} % of the model less than theirs")
        row.gains.append((ours.resident - verdict.resident) / spec.weight_bytes)
        row.ratios.append(verdict.seconds / ours.seconds)
    if plan.placement.streamed_bytes_per_token:
        best = optimum_beside(spec, plan, machine)
        if best is not None:
            gap = -best.difference_bytes / spec.weight_bytes
            row.gaps.append(gap)
            if gap > LIMIT:
                row.complaints.append(f"{what}: {100 * gap:.3f} % of the model below the optimum")


def thousand() -> float:
    """Return the CPU seconds of 1000 unequal units over 8 unequal GPUs with streaming."""
    units = [
        Unit(
            names=(f"layers.{i // 4}.m{i % 4}",),
            layer=i // 4,
            block=f"layers.{i // 4}",
            position=i,
            weight_bytes=40 * MIB + 7919 * (i * i % 977),
            buffer_bytes=0,
            reload_bytes=40 * MIB + 7919 * (i * i % 977),
            tensors=(),
        )
        for i in range(1000)
    ]
    blocks = [Block(tuple(units[4 * i : 4 * i + 4]), 4 * MIB) for i in range(250)]
    room = [3 * GIB + i * 300 * MIB for i in range(8)]
    start = time.process_time()
    found = spread(
        blocks,
        room,
        tight=room,
        engine=PROFILES["stream"],
        pins={},
        away=True,
        lookups=True,
    )
    assert found is not None
    assert found.fill.reload_bytes
    return time.process_time() - start


def show(rows: Mapping[str, Row]) -> None:
    """Print the table."""
    print(
        f"{'model':14}{'pairs':>6}{'no':>4}  {'invalid (ours/acc/tf)':>22}  {'over budget':>14}"
        f"  {'resident gain %':>20}  {'speed ratio':>13}  {'gap %':>7}  {'ms':>6}"
    )
    for name, row in rows.items():
        three = ("memplan", "accelerate", "transformers")
        invalid = "/".join(str(row.invalid.get(key, 0)) for key in three)
        over = "/".join(str(row.over.get(key, 0)) for key in three)
        gains = [100 * gain for gain in row.gains] or [0.0]
        ratios = row.ratios or [1.0]
        gap = 100 * max(row.gaps, default=0.0)
        print(
            f"{name:14}{row.pairs:6}{row.unable:4}  {invalid:>22}  {over:>14}"
            f"  {min(gains):6.2f} {statistics.mean(gains):6.2f} {max(gains):6.2f}"
            f"  {statistics.geometric_mean(ratios):6.2f} {max(ratios):6.2f}"
            f"  {gap:7.3f}  {statistics.median(row.milliseconds):6.1f}"
        )


def main() -> int:
    """Run all pairs and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("--quick", action="store_true", help="three models")
    parser.add_argument("models", nargs="*", help="some of: " + ", ".join(MODELS))
    given = parser.parse_args()
    names = given.models or (QUICK if given.quick else tuple(MODELS))
    logging.disable(logging.WARNING)
    rows = {}
    for subject in subjects(names):
        rows[subject.name] = measure(subject)
        print(f"{subject.name} done", file=sys.stderr)
    show(rows)
    pairs = sum(row.pairs for row in rows.values())
    complaints = [text for row in rows.values() for text in row.complaints]
    print(f"\n{pairs} pairs; resident gain: least, mean, most; speed ratio: mean, most")
    print(f"1000 units on 8 GPUs: {1e3 * thousand():.0f} ms of CPU time")
    for text in complaints:
        print("FAILS:", text)
    print("all hold" if not complaints else f"{len(complaints)} fail")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
