"""memplan.cli.whatif: a stored plan with other choices, by the formulas of `memplan plan`."""

from __future__ import annotations

import json

import pytest
from memplan_tui.app import MemplanApp
from tui_stage import until

from memplan.cli.main import run
from memplan.cli.whatif import WhatIf
from memplan.errors import UsageError
from memplan.serialize import loads
from memplan.store.reader import StoreReader
from memplan.types import Plan

HOST = ("--host-memory", "64GiB", "--disk", "0")


def planned(capsys, *options):
    """Return the plan that the command line makes."""
    run(["plan", "llama-3.1-8b", "--json", *HOST, *options])
    return loads(capsys.readouterr().out, Plan)


def test_changes_give_the_plan_that_the_command_gives(capsys):
    """Part by part, whatever is changed."""
    plan = planned(capsys, "--device", "rtx4090")
    other = WhatIf()
    for changes, options in (
        ({}, ()),
        ({"context": "16384"}, ("--context", "16384")),
        ({"batch": "8"}, ("--batch", "8")),
        ({"quant": "nf4"}, ("--quant", "nf4")),
        ({"quant": "int8", "context": "512"}, ("--quant", "int8", "--context", "512")),
    ):
        wanted = planned(capsys, "--device", "rtx4090", *options)
        made = other.replan(plan, changes)
        assert made.footprint == wanted.footprint, changes
        assert made.devices == wanted.devices, changes
        assert made.placement == wanted.placement, changes
    wanted = planned(capsys, "--device", "rtx4080")
    made = other.replan(plan, {"device": "rtx4080"})
    assert made.devices == wanted.devices


def test_a_training_changes_its_method(capsys):
    """By the closed forms, whatever the stored plan was made by."""
    options = ("--task", "train", "--method", "lora", "--seq", "1024", "--device", "h100")
    plan = planned(capsys, *options, "--estimator", "formula")
    other = WhatIf()
    assert set(other.choices(plan)) == {"seq", "batch", "method", "device", "gpus"}
    full = ("--task", "train", "--method", "full", "--seq", "1024", "--device", "h100")
    wanted = planned(capsys, *full, "--estimator", "formula")
    assert other.replan(plan, {"method": "full"}).footprint == wanted.footprint


def test_every_choice_has_the_plans_own_value_among_them(capsys):
    """So that a key always comes back to it."""
    plan = planned(capsys, "--device", "22GiB", "--context", "5000", "--quant", "hqq-4bit-g64")
    other = WhatIf()
    for option, value in other.current(plan).items():
        assert value in other.choices(plan)[option], option


def test_what_cannot_be_planned_says_why(capsys):
    """A plan that does not say where its model was."""
    from dataclasses import replace

    plan = planned(capsys, "--device", "rtx4090")
    lost = replace(plan, model=replace(plan.model, source="config", path=None))
    with pytest.raises(UsageError, match="does not say where"):
        WhatIf().replan(lost, {"batch": "2"})


async def test_keys_change_the_plan_on_the_screen(home, capsys):
    """Quantization, context, batch, device and their way back; then as stored."""
    assert run(["plan", "llama-3.1-8b", "--device", "rtx4090", "--save", "--json", *HOST]) == 0
    stored = json.loads(capsys.readouterr().out)
    database = home / "memplan.db"
    app = MemplanApp(database, planner=WhatIf(), interval_s=0.2)
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("2")
        await until(app, "z quantization none")
        await pilot.press("c")
        await until(app, "context 8192*")
        await until(app, "change")
        await pilot.press("C")
        await until(app, lambda text: "context 4096" in text and "change" not in text)
        await pilot.press("z", "b", "v")
        await until(app, lambda text: "int8*" in text and "batch 2*" in text)
        await until(app, "+")
        await pilot.press("0")
        await until(app, lambda text: "*" not in text)
    with StoreReader(database) as reader:
        assert reader.plan(stored["id"]).footprint.total_bytes == stored["footprint"]["total_bytes"]
