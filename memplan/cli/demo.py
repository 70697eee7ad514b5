"""`memplan demo`: the whole loop on a small real model, made on the spot, without a network."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from memplan.cli import style
from memplan.errors import MemplanError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from memplan.types import Comparison, Device, Ledger, ModelSpec, Plan, Workload

__all__ = ["demo"]

EXIT_FINDING = 1

PROMPT, NEW = 256, 64
"""Tokens of the prompt and tokens that are generated."""

LENGTH, BATCH, STEPS = 128, 2, 3
"""Training: tokens of a sequence, sequences in a step, AdamW steps."""

_SHARE = 0.4
"""Part of the weights for which the pretended device has room."""


@click.command("demo")
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    help="Work in this folder and leave it; default: a temporary one.",
)
def demo(*, keep: Path | None) -> int:
    """Plan a small real model, run it, sample it, and print the plan beside the measurement.

    Makes a Llama of 100 million parameters with random weights, plans it for a device pretended
    smaller than the model, loads it with accelerate by the plan's device_map, generates 64 tokens,
    then trains three AdamW steps. Both programs run under the sampler; plans and runs are stored
    in the database, so that `memplan tui` shows them. Without a GPU the host's memory stands for
    the fast device and the disk for the slow one. Takes about half a minute.

    Exit code: 0 when every peak lies inside its planned band, 1 when one does not.
    """
    started = time.monotonic()
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        code = _loop(keep)
    else:
        with tempfile.TemporaryDirectory(prefix="memplan-demo-") as folder:
            code = _loop(Path(folder))
    click.echo(f"took {time.monotonic() - started:.0f} s; see it: memplan tui")
    return code


def _loop(folder: Path) -> int:
    model = folder / "demo-llama"
    _say("make", "a Llama of 100 M parameters, float32, random weights, in two shards")
    making = subprocess.Popen(
        [sys.executable, "-m", "memplan.demo.model", str(model)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    _say("measure", "what Python with torch and transformers takes before any weight")
    from memplan.devices.baseline import measure_baseline

    try:
        measure_baseline()
    finally:
        _, complaint = making.communicate()
    if making.returncode != 0:
        reason = (complaint.strip().splitlines() or [f"exit code {making.returncode}"])[-1]
        raise MemplanError(f"could not make the model: {reason}", hint="memplan doctor")
    generating = _plan_generation(model)
    _emit(generating, folder / "deploy")
    _say("run", f"load it by that map, {PROMPT} tokens of prompt, {NEW} generated")
    _run(generating, "memplan.demo.generate", str(folder / "deploy"), str(PROMPT), str(NEW))
    training = _plan_training(model)
    _say("run", f"{STEPS} AdamW steps on {BATCH} sequences of {LENGTH} tokens")
    _run(training, "memplan.demo.train", str(model), str(LENGTH), str(BATCH), str(STEPS))
    return _summary((("generate", generating), ("train", training)))


def _say(word: str, text: str) -> None:
    style.echo(f"\n{style.bold(f'{word}:')} {text}")


def _plan_generation(model: Path) -> Plan:
    from memplan.devices.baseline import known_baseline
    from memplan.footprint.defaults import complete
    from memplan.models.resolve import resolve
    from memplan.placement.plan import make_plan

    spec = resolve(str(model), exact_modules=True)
    workload = complete({"context": PROMPT + NEW, "prefill_chunk": PROMPT}, spec)
    baseline = known_baseline()
    devices = _pretended(spec, workload, baseline)
    _say("plan", f"on {_sizes(devices)}, pretended smaller than the model")
    plan = make_plan(spec, workload, devices, baseline=baseline, created_ns=time.time_ns())
    return _saved(plan)


def _pretended(spec: ModelSpec, workload: Workload, baseline: int | None) -> list[Device]:
    """Return devices of which the first holds less than half of the weights."""
    from dataclasses import replace

    from memplan.placement.plan import make_plan
    from memplan.types import Device

    fast = _usable_gpu()
    roomy = Device(name="cpu", kind="cpu", capacity_bytes=1 << 50)
    disk = Device(name="disk", kind="disk", capacity_bytes=10 << 30)
    plan = make_plan(spec, workload, [*fast, roomy], baseline=baseline)
    sizes = [_too_small(ledger) for ledger in plan.devices]
    small = [replace(d, capacity_bytes=s) for d, s in zip([*fast, roomy], sizes, strict=True)]
    return [*small, disk]


def _too_small(ledger: Ledger) -> int:
    """Return a capacity at which a part of the weights must go elsewhere.

    Room for the upper end of all else, the buffer through which weights come and some of them, but
    less than everything needs.
    """
    weights = ledger.parts.get("weights", 0)
    rest = ledger.high_bytes - weights
    return rest + min(int(_SHARE * weights), max((ledger.total_bytes - rest) * 15 // 16, 0))


def _usable_gpu() -> list[Device]:
    """Return the first GPU, if torch can use it; asked in another process, as torch is large."""
    from memplan.devices.detect import detect_gpus

    gpus = detect_gpus()
    program = "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 1)"
    command = [sys.executable, "-c", program]
    if not gpus or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        return []
    return [gpus[0]]


def _sizes(devices: Sequence[Device]) -> str:
    from memplan.units import format_bytes

    named = [d for d in devices if d.kind != "disk"]
    return ", ".join(f"{d.name} with {format_bytes(d.capacity_bytes, 'MiB', 0)}" for d in named)


def _plan_training(model: Path) -> Plan:
    from memplan.devices.baseline import known_baseline
    from memplan.devices.detect import detect_host
    from memplan.footprint.defaults import complete
    from memplan.models.resolve import resolve
    from memplan.placement.plan import make_plan
    from memplan.trace.estimate import TraceEstimator

    spec = resolve(str(model), dtype="float32")
    options = {"task": "train", "seq": LENGTH, "batch": BATCH, "precision": "fp32"}
    workload = complete(options, spec)
    gpus = _usable_gpu()
    _say("plan", "training of all its weights on the whole machine")
    plan = make_plan(
        spec,
        workload,
        [*gpus, detect_host()],
        baseline=known_baseline(),
        created_ns=time.time_ns(),
        estimator=TraceEstimator(),
    )
    return _saved(plan)


def _saved(plan: Plan) -> Plan:
    from memplan import config
    from memplan.report import plan_text
    from memplan.store.open import open_writer

    with open_writer(config.setting("database").value) as writer:
        stored = writer.save_plan(plan)
    click.echo("\n" + plan_text(stored, unit="MiB"), nl=False)
    return stored


def _emit(plan: Plan, folder: Path) -> None:
    from memplan.emit.accelerate import files
    from memplan.models.resolve import resolve

    assert plan.model.path is not None
    spec = resolve(plan.model.path, exact_modules=True)
    folder.mkdir(exist_ok=True)
    for name, text in files(plan, spec).items():
        (folder / name).write_text(text, encoding="utf-8")


def _run(plan: Plan, module: str, *arguments: str) -> None:
    """Run a program the way a user does: memplan run --plan ID -- COMMAND."""
    assert plan.id is not None
    sys.stdout.flush()
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(
        [sys.executable, "-m", "memplan", "run", "--plan", plan.id, "--", *command],
        check=False,
        stderr=subprocess.DEVNULL if not os.environ.get("MEMPLAN_DEBUG") else None,
    )
    if done.returncode != 0:
        raise MemplanError(
            f"{module} ended with exit code {done.returncode}", hint="memplan show last"
        )


def _summary(plans: Sequence[tuple[str, Plan]]) -> int:
    """Print the last table: plan beside measurement, and return the exit code."""
    from memplan.report import summary_text

    named = [(name, _comparison(plan)) for name, plan in plans]
    _say("plan beside measurement", "weights, states and caches counted from inside, peaks sampled")
    click.echo("\n" + summary_text(named, unit="MiB"))
    if all(comparison.verdict == "within" for _, comparison in named):
        style.echo(style.green("WITHIN: every measured peak lies inside its planned band"))
        return 0
    style.echo(style.red("a measured peak left its planned band: memplan compare last"))
    return EXIT_FINDING


def _comparison(plan: Plan) -> Comparison:
    from memplan import config
    from memplan.compare import compare
    from memplan.store.reader import StoreReader

    with StoreReader(config.setting("database").value) as reader:
        run = next(run for run in reader.runs(50) if run.plan_id == plan.id)
        return compare(
            plan,
            run,
            peaks=reader.peaks(run.id),
            phases=reader.phases(run.id),
            devices=reader.devices(),
        )
