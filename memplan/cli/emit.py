"""`memplan emit`: a plan as files for the engine that carries it out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from memplan.cli import style
from memplan.cli.options import read_plan
from memplan.errors import UsageError

if TYPE_CHECKING:
    from memplan.emit.targets import Gpu
    from memplan.types import ModelSpec, Plan

__all__ = ["emit", "write_files", "written_for"]

_NAMES = (
    *("accelerate", "transformers", "fsdp2", "deepspeed", "torchrun", "peft"),
    *("vllm", "sglang", "llama.cpp", "kubernetes", "ray", "skypilot"),
)


@click.command("emit")
@click.argument("plan")
@click.option("--to", "target", type=click.Choice(_NAMES), required=True, help="Engine.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write to. Default: print everything.",
)
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
@click.option(
    "--model", metavar="FOLDER|HUB ID", help="Where to load from, if not as the plan says."
)
def emit(*, plan: str, target: str, output: Path | None, force: bool, model: str | None) -> None:
    """Write what the chosen engine takes. PLAN is a plan id, "last", or a plan's JSON file.

    \b
    accelerate    accelerate.json (device_map, max_memory, offload_folder) and load.py
    transformers  transformers.json (quantization, from_pretrained, generate) and load.py
    fsdp2         fsdp2.yaml for accelerate launch, and sft_config.json (TRL, Trainer)
    deepspeed     ds_config.json (ZeRO, offload), launch.sh, hostfile, sft_config.json
    torchrun      launch.sh and train.py, which divides the model (DDP, FSDP2, TP)
    peft          adapter_config.json (LoraConfig), adapters.py, sft_config.json
    vllm, sglang  the server's argument line
    llama.cpp     llama.args (its arguments) and llama.sh (runs one of its programs with them)
    kubernetes    a container's resources
    ray           a placement group's bundles
    skypilot      a task, with the files of the plan's engine

    \b
    memplan plan ./llama --device 8GiB --save
    memplan emit last --to accelerate --output deploy
    python deploy/load.py
    """
    found = read_plan(plan)
    files = written_for(target, found, model=model)
    if not found.verdict.fits:
        click.echo(f"{style.red('does not fit: ', err=True)}{found.verdict.reason}", err=True)
    if output is None:
        for name, text in files.items():
            click.echo(text if len(files) == 1 else f"==> {name} <==\n{text}", nl=len(files) > 1)
        return
    write_files(files, output, force=force)
    for name in files:
        click.echo(output / name)


def written_for(target: str, plan: Plan, *, model: str | None = None) -> dict[str, str]:
    """Return file name -> content of one target, reading the model again where it is needed.

    Args:
        target: a key of `TARGETS`.
        plan: the plan.
        model: folder or Hub id that the files are to load; None = the plan's own. The catalogue
            has models without one.

    Raises what `memplan.emit.targets.write` and `memplan.models.load.load_model` raise.
    """
    from memplan.emit.targets import TARGETS, write

    plan = _at_home(plan)
    built = _model(plan) if TARGETS[target].needs_model else None
    if model is not None:
        local = Path(model).expanduser().exists()
        where = str(Path(model).expanduser().absolute()) if local else model
        moved = replace(plan.model, path=where, source="safetensors" if local else "hub")
        plan = replace(plan, model=moved)
    return write(target, plan, built, _gpu(plan))


def _at_home(plan: Plan) -> Plan:
    """Return the plan with its model's whole path: an engine starts in another folder.

    Raises UsageError for a folder or file that is not there.
    """
    path = plan.model.path
    if path is None or plan.model.source in ("hub", "catalog", "module"):
        return plan
    whole = Path(path).expanduser().absolute()
    if not whole.exists():
        raise UsageError(
            f"the plan's model is not there: {path}",
            hint="go to the folder where the plan was made, or plan the model again",
        )
    return replace(plan, model=replace(plan.model, path=str(whole)))


def _model(plan: Plan) -> ModelSpec:
    """Return the plan's model with the names of its modules, and the adapters that it trains."""
    from memplan.models.load import load_model

    where = plan.model.path or (plan.model.name if plan.model.source == "catalog" else None)
    if where is None:
        raise UsageError("this plan does not say where its model is")
    work = plan.workload
    if work.runtime == "llama.cpp":
        return load_model(where, dtype=None, options={})
    adapters = {
        name: getattr(work, name)
        for name in ("task", "method", "lora_rank", "lora_targets", "lora_dtype")
        if work.task == "train"
    }
    return load_model(where, dtype=work.dtype, options=adapters, exact_modules=True)


def _gpu(plan: Plan) -> Gpu | None:
    """Return what the table knows of the plan's first named GPU."""
    from memplan.devices.table import find
    from memplan.emit.targets import Gpu

    for name in plan.workload.device:
        known = find(name)
        if known is not None:
            return Gpu(vendor=known.vendor, label=known.label, name=known.name)
    return None


def write_files(files: dict[str, str], folder: Path, *, force: bool) -> None:
    """Write files into a folder; scripts for the shell can be executed. Raises UsageError."""
    for name in files:
        if (folder / name).exists() and not force:
            raise UsageError(f"{folder / name} exists", hint="use --force or another --output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
            if name.endswith(".sh"):
                (folder / name).chmod(0o755)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}") from error
