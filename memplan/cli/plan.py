"""`memplan plan` and `memplan map`."""

from __future__ import annotations

import json
from typing import Any

import click

from memplan.cli import style
from memplan.cli.build import build_plan
from memplan.cli.options import chosen_unit, plan_options, unit_option

__all__ = ["device_map", "plan"]

EXIT_FINDING = 1


@click.command("plan")
@plan_options
@click.option("--save", is_flag=True, help="Keep the plan in the database and print its id.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON, sizes in bytes.")
@click.option("--plain", is_flag=True, help="No bars: for grep and screen readers.")
@click.option("--quiet", is_flag=True, help="Print the total in bytes, nothing else.")
@click.option("--proof", is_flag=True, help="Print each device's sum in bytes, nothing else.")
@click.option(
    "--beside",
    type=click.Choice(["accelerate", "optimum"]),
    multiple=True,
    help="Show what accelerate would do, or the proven optimum (needs scipy), with the difference.",
)
@unit_option
def plan(
    *,
    save: bool,
    as_json: bool,
    plain: bool,
    quiet: bool,
    proof: bool,
    beside: tuple[str, ...],
    unit: str | None,
    **options: Any,
) -> int:
    """Tell what MODEL needs on given devices, whether it fits, and where every byte goes.

    MODEL is a folder with config.json or safetensors files, a config.json, a .safetensors, .gguf
    or .safetensors.index.json file, a name of the catalogue (llama-3.1-8b), a Hub id
    (org/name[@revision][:Q4_K_M]), or package.module:function. Weights are never read: headers
    suffice, and those of the Hub are kept for offline use.

    \b
    memplan plan llama-3.1-8b --device rtx4090
    memplan plan ./llama --device 24GiB
    memplan plan ./llama --device 24GiB --device 24GiB --context 32768
    memplan plan ./llama --task train --seq 2048 --checkpointing full --device 80GiB

    Exit code: 0 it fits (with offload, too), 1 it does not, 2 could not answer.
    """
    result = build_plan(options, beside=beside)
    if save:
        result = _save(result)
    if as_json:
        from memplan.serialize import dumps

        click.echo(dumps(result))
    elif quiet:
        click.echo(result.footprint.total_bytes)
    elif proof:
        from memplan.report import proof_text

        click.echo(proof_text(result), nl=False)
    else:
        from memplan.report import plan_text

        text = plan_text(result, unit=chosen_unit(unit), bars=not plain)
        style.echo(_painted(text), nl=False)
    return 0 if result.verdict.fits else EXIT_FINDING


def _save(result: Any) -> Any:
    from memplan import config
    from memplan.store.open import open_writer

    with open_writer(config.setting("database").value) as writer:
        return writer.save_plan(result)


def _painted(text: str) -> str:
    """Colour the verdict, which also says it in words."""
    for words, paint in (("  DOES NOT FIT:", style.red), ("  FITS:", style.green)):
        text = text.replace(f"\n{words}", f"\n  {paint(words.strip())}")
    return text


@click.command("map")
@plan_options
@click.option("--json", "as_json", is_flag=True, help="The same: the answer is always JSON.")
def device_map(*, as_json: bool, **options: Any) -> int:
    """Print where each module goes, as the device_map that transformers and accelerate take.

    GPUs are written as their number, as in from_pretrained(device_map=...). Where only file names
    are known, the model is built without weights to learn its modules (needs torch).

    \b
    memplan map ./llama --device 8GiB > map.json
    """
    del as_json
    from memplan.emit.accelerate import native_map

    result = build_plan(options, exact_modules=True)
    click.echo(json.dumps(native_map(result.placement.device_map), indent=2))
    if result.placement.host_lookup:
        names = ", ".join(result.placement.host_lookup)
        click.echo(
            f"note: this map needs a loader that looks tokens up on the host ({names}): "
            "memplan emit PLAN --to accelerate writes it; alone, accelerate streams the table",
            err=True,
        )
    if not result.verdict.fits:
        style.echo(style.red("does not fit: ", err=True) + result.verdict.reason, err=True)
    return 0 if result.verdict.fits else EXIT_FINDING
