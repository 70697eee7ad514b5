"""`memplan trace`: who eats the memory of a step, seen in the model's own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memplan.cli.build import build_job
from memplan.cli.options import Bytes, chosen_unit, plan_options, unit_option

if TYPE_CHECKING:
    from memplan.trace.allocator import Replay
    from memplan.trace.job import Traced

__all__ = ["trace"]

EXIT_FINDING = 1


@click.command("trace")
@plan_options
@click.option("--top", type=click.IntRange(1, 64), default=12, help="Shares to print.")
@click.option(
    "--snapshot",
    type=click.Path(path_type=Path),
    help="Write every allocation for PyTorch's memory_viz (.pickle or .json).",
)
@click.option(
    "--alloc-conf",
    default="",
    metavar="TEXT",
    help="As PYTORCH_CUDA_ALLOC_CONF, such as expandable_segments:True.",
)
@click.option("--capacity", type=Bytes(), help="Memory of torch's allocator: where it runs out.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, sizes in bytes.")
@unit_option
def trace(
    *,
    top: int,
    snapshot: Path | None,
    alloc_conf: str,
    capacity: int | None,
    as_json: bool,
    unit: str | None,
    **options: Any,
) -> int:
    """Run MODEL's own code on tensors without memory, and tell what is alive when and why.

    Two optimizer steps (or a prompt and two tokens), each allocation followed to its end, and all
    of them once more through a model of torch's caching allocator.

    \\b
    memplan trace llama-3.1-8b --task train --method lora --seq 2048 --device rtx4090
    memplan trace ./llama --task train --device 24GiB --capacity 22GiB
    memplan trace ./llama --task train --snapshot step.pickle

    Exit code: 0, 1 when --capacity does not suffice, 2 could not answer.
    """
    from memplan.trace.allocator import replay
    from memplan.trace.run import record_job, summarise
    from memplan.trace.settings import parse_settings
    from memplan.trace.snapshot import write_snapshot

    settings = parse_settings(alloc_conf, capacity=capacity)
    job = build_job(options)
    recording = record_job(job)
    traced = summarise(recording, gpu=job.target.kind == "gpu")
    done = replay(recording, settings)
    if snapshot is not None:
        write_snapshot(snapshot, recording, settings)
    if as_json:
        click.echo(json.dumps(_json(traced, done), indent=2))
    else:
        click.echo(_text(traced, done, top, chosen_unit(unit)))
    return EXIT_FINDING if done.oom else 0


def _json(traced: Traced, done: Replay) -> dict[str, Any]:
    from dataclasses import asdict

    oom = asdict(done.oom) if done.oom else None
    allocator = {
        "allocated_bytes": done.allocated_bytes,
        "reserved_bytes": done.reserved_bytes,
        "segments": done.segments,
        "retries": done.retries,
        "oom": oom,
    }
    return {"schema": "memplan.trace/1", **traced.to_json(), "allocator": allocator}


def _text(traced: Traced, done: Replay, top: int, unit: str) -> str:
    from memplan.units import format_bytes

    def size(value: int) -> str:
        return format_bytes(value, unit).rjust(12)

    lines = [f"peak {size(traced.peak_bytes).strip()} in {traced.peak_phase}", ""]
    for phase in traced.phases:
        own = sorted(phase.parts.items(), key=lambda item: -item[1])
        parts = ", ".join(f"{name} {format_bytes(value, unit)}" for name, value in own[:4])
        lines.append(f"  {phase.name:<14}{size(phase.peak_bytes)}  {parts}")
    lines += ["", "alive at the peak, largest first"]
    for share in traced.shares[:top]:
        name = share.operator.removeprefix("aten.").removesuffix(".default")
        where = share.module or "-"
        text = f"  {size(share.bytes)}  {share.part:<12}{share.count:>5} x  {name:<28}{where}"
        lines.append(text.rstrip())
    lines += ["", f"torch's allocator: {size(done.allocated_bytes).strip()} allocated, "]
    lines[-1] += f"{size(done.reserved_bytes).strip()} reserved in {done.segments} segments"
    if done.oom:
        lines.append(
            f"OUT OF MEMORY in {done.oom.phase}: {done.oom.operator} in "
            f"{done.oom.module or 'no module'} asked for {format_bytes(done.oom.bytes, unit)}"
        )
    return "\n".join(lines)
