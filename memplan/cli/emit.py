"""`memplan emit`: a plan as files for the engine that carries it out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from memplan.cli.options import read_plan
from memplan.errors import UsageError

if TYPE_CHECKING:
    from memplan.types import Plan

__all__ = ["emit"]


@click.command("emit")
@click.argument("plan")
@click.option(
    "--to", "target", type=click.Choice(["accelerate", "llama.cpp"]), required=True, help="Engine."
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Folder to write to. Default: the current one.",
)
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
def emit(*, plan: str, target: str, output: Path, force: bool) -> None:
    """Write what the chosen engine takes. PLAN is a plan id, "last", or a plan's JSON file.

    \b
    accelerate   accelerate.json (device_map, max_memory, offload_folder) and load.py
    llama.cpp    llama.args (its arguments) and llama.sh (runs one of its programs with them)

    \b
    memplan plan ./llama --device 8GiB --save
    memplan emit last --to accelerate --output deploy
    python deploy/load.py
    """
    found = read_plan(plan)
    if found.model.path is None:
        raise UsageError("this plan does not say where its model is")
    written = _llamacpp(found) if target == "llama.cpp" else _accelerate(found)
    output.mkdir(parents=True, exist_ok=True)
    for name in written:
        if (output / name).exists() and not force:
            raise UsageError(f"{output / name} exists", hint="use --force or another --output")
    for name, text in written.items():
        (output / name).write_text(text, encoding="utf-8")
        click.echo(output / name)


def _llamacpp(found: Plan) -> dict[str, str]:
    from memplan.emit.llamacpp import check, files
    from memplan.models.load import load_model

    return files(found, load_model(check(found), dtype=None, options={}))


def _accelerate(found: Plan) -> dict[str, str]:
    from memplan.emit.accelerate import files
    from memplan.models.load import load_model

    work = found.workload
    if work.quant != "none" or work.runtime != "transformers":
        raise UsageError(
            f"accelerate's files carry no --quant {work.quant} for {work.runtime}",
            hint="plan again for --runtime transformers and without --quant",
        )
    spec = load_model(str(found.model.path), dtype=work.dtype, options={}, exact_modules=True)
    return files(found, spec)
