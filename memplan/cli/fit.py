"""`memplan fit`: what to change so that a model fits, best first."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from memplan.cli import style
from memplan.cli.options import Count, chosen_unit, plan_options, unit_option
from memplan.cli.pool import Workers, default_jobs
from memplan.cli.typed import plan_command, typed_options, typed_text
from memplan.errors import UsageError

if TYPE_CHECKING:
    from memplan.search.ask import Answer, Planner, Question
    from memplan.search.find import Request
    from memplan.search.types import Fit
    from memplan.types import ModelSpec, Plan

__all__ = ["fit", "make_planner"]

EXIT_FINDING = 1
_OWN = ("limit", "jobs", "save", "pick", "sequences", "as_json", "plain", "quiet", "unit")
_SLOW = 3.0
"""Seconds of planning from which other processes help."""
_KEPT_MODELS = 24


@click.command("fit")
@plan_options
@click.option(
    "--sequences", type=Count(), metavar="N", help="train: that one step must see, GPUs together."
)
@click.option("--limit", type=Count(), metavar="N", help="Lines. Default: 8; train: 4.")
@click.option("--jobs", type=Count(), metavar="N", help="Processes. Default: the cores, up to 4.")
@click.option("--save", is_flag=True, help="Keep the plan of line 1 in the database.")
@click.option("--pick", type=Count(), metavar="LINE", help="With --save: of another line.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, sizes in bytes.")
@click.option("--plain", is_flag=True, help="No colour.")
@click.option("--quiet", is_flag=True, help="Print the best command, nothing else.")
@unit_option
@click.pass_context
def fit(
    ctx: click.Context,
    /,
    *,
    sequences: int | None,
    limit: int | None,
    jobs: int | None,
    save: bool,
    pick: int | None,
    as_json: bool,
    plain: bool,
    quiet: bool,
    unit: str | None,
    **options: Any,
) -> int:
    """Search what to change so that MODEL fits: formats, cache, engine, batch, offload, GPUs.

    What you set is never changed. Each line has the command that plans it, and is one of those
    that nothing else beats in memory, speed, quality and GPUs together. For --task train it
    searches method, optimizer, checkpointing, loss and GPUs, and what is printed has been traced
    (--estimator formula answers at once).

    \b
    memplan fit llama-3.1-70b --device rtx4090
    memplan fit qwen3-32b --device rtx4090 --runtime vllm --context 32768
    memplan fit llama-3.1-8b --task train --device rtx4090 --seq 2048 --sequences 64

    Exit code: 0 something fits, 1 nothing does (what is nearest is printed), 2 could not answer.
    """
    if pick is not None and not save:
        raise UsageError("--pick says which line --save keeps", hint="add --save")
    if sequences is not None and options["task"] != "train":
        raise UsageError("--sequences belongs to --task train", hint="add --task train")
    given = typed_options(ctx, [name for name in options if name != "model"])
    lines = limit or (4 if options["task"] == "train" else 8)
    request = _request(options, given, limit=lines, sequences=sequences)
    with Workers(make_answerer, dict(options), jobs=jobs or default_jobs()) as workers:
        found = _search(request, workers)
    if save:
        found = _saved(found, pick or 1)
    _print(found, as_json=as_json, plain=plain, quiet=quiet, unit=chosen_unit(unit))
    return 0 if found.alternatives else EXIT_FINDING


def make_planner(options: Mapping[str, Any]) -> Planner:
    """Return what plans a command line with some options changed; models are read once."""
    from collections import OrderedDict

    from memplan.cli.build import build_plan
    from memplan.models.load import load_model

    kept: OrderedDict[str, ModelSpec] = OrderedDict()

    def load(argument: str, **how: Any) -> ModelSpec:
        work = how["options"]
        chosen = {name: work.get(name) for name in _LOADED}
        key = repr((argument, how["dtype"], chosen, how.get("exact_modules")))
        if key not in kept:
            kept[key] = load_model(argument, **how)
            while len(kept) > _KEPT_MODELS:
                kept.popitem(last=False)
        return kept[key]

    def planner(settings: Mapping[str, Any]) -> Plan:
        return build_plan({**options, **settings}, load=load, changes=False)

    return planner


_LOADED = (
    *("task", "runtime", "quant", "method", "precision"),
    *("lora_rank", "lora_targets", "lora_slots", "lora_dtype", "lora_dropout"),
)
"""Options that decide how a model is loaded."""


def make_answerer(options: Mapping[str, Any]) -> Callable[[Question], Answer]:
    """Return what answers a question about a command line."""
    from memplan.search.ask import answer

    planner = make_planner(options)
    return lambda question: answer(question, planner)


def _search(request: Request, workers: Workers[Question, Answer]) -> Fit:
    from memplan.search.find import find

    cost = [0.0]

    def ask(questions: Sequence[Question]) -> Sequence[Answer]:
        if request.traced or cost[0] * len(questions) > _SLOW:
            return workers.ask(questions)
        began = time.monotonic()
        answers = workers.here(questions)
        cost[0] = (time.monotonic() - began) / max(len(questions), 1)
        return answers

    return find(request, ask)


def _request(
    options: Mapping[str, Any], given: Mapping[str, Any], *, limit: int, sequences: int | None
) -> Request:
    from memplan.devices.parse import LOCAL, parse_hardware
    from memplan.footprint.defaults import weight_dtype
    from memplan.models.load import load_model
    from memplan.search.find import Request
    from memplan.search.infer import Facts

    model = options["model"]
    spec = load_model(
        model,
        dtype=weight_dtype({**options, "dtype": options["dtype"]}),
        options={"runtime": options["runtime"]},
        trust_remote_code=options["trust_remote_code"],
    )
    names = tuple(options["device"])
    first = parse_hardware(names).devices[0]
    estimator = options["estimator"] or ("trace" if options["task"] == "train" else "formula")
    return Request(
        given={name: typed_text(name, value) for name, value in given.items()},
        facts=Facts(
            most_context=spec.max_context,
            vendor=first.vendor,
            compute=first.compute,
            named=len(names),
            repeatable=len(names) == 1 and names[0] not in (LOCAL, "cpu"),
        ),
        command=lambda settings: plan_command(model, given, settings),
        limit=limit,
        traced=estimator == "trace",
        sequences=sequences,
        devices=_larger(first.capacity_bytes) if len(names) == 1 else (),
    )


def _larger(capacity: int) -> tuple[str, ...]:
    """Return a GPU of each larger size that is sold, the newest of it, smallest first."""
    from memplan.devices.table import known

    newest = {}
    for product in sorted(known(), key=lambda one: one.year):
        if product.kind == "gpu" and product.capacity_bytes > capacity:
            newest[product.capacity_bytes] = product.name
    return tuple(newest[size] for size in sorted(newest))


def _saved(found: Fit, line: int) -> Fit:
    """Return the answer with one alternative's plan kept in the database."""
    from dataclasses import replace

    from memplan import config
    from memplan.store.open import open_writer

    if line > len(found.alternatives):
        raise UsageError(
            f"there is no line {line} to save: {len(found.alternatives)} fit and are listed"
        )
    chosen = found.alternatives[line - 1]
    with open_writer(config.setting("database").value) as writer:
        kept = replace(chosen, plan=writer.save_plan(chosen.plan))
    return replace(
        found,
        alternatives=tuple(kept if one is chosen else one for one in found.alternatives),
    )


def _print(found: Fit, *, as_json: bool, plain: bool, quiet: bool, unit: str) -> None:
    if as_json:
        from memplan.search.document import document

        click.echo(json.dumps(document(found), indent=2, ensure_ascii=False))
        return
    if quiet:
        if found.alternatives:
            click.echo(found.alternatives[0].command)
        return
    from memplan.search.text import fit_text

    text = fit_text(found, unit=unit)
    saved = [one.plan.id for one in found.alternatives if one.plan.id is not None]
    for key in saved:
        text += f"\n  saved: {key}; memplan run --plan {key} -- COMMAND checks it\n"
    style.echo(text if plain else _painted(text), nl=False)


def _painted(text: str) -> str:
    for words, paint in (("DOES NOT FIT AS ASKED:", style.red), ("FITS AS ASKED:", style.green)):
        text = text.replace(f"\n  {words}", f"\n  {paint(words)}")
    return text
