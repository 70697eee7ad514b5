"""The dashboard's behaviour: keys, states, what is written, what is survived."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace

import pytest
from factories import T0, make_device, make_plan, make_run, make_sample
from memplan_tui.app import Polled
from textual.widgets import Input
from tui_stage import NOW, S, app_on, fill, text_of, until

from memplan.store.writer import LocalWriter
from memplan.units import GIB, MIB


@pytest.fixture
def database(tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    path = tmp_path / "m.db"
    fill(path)
    return path


async def test_every_key_does_something_visible(database):
    """Unit, colours, hold, window, help, older and newer run."""
    app = app_on(database)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(app, "used by all")
        await pilot.press("o")
        await until(app, "run r-1")
        await pilot.press("u")
        await until(app, "plan 0.62 GB")
        theme = app.theme
        await pilot.press("t")
        assert app.theme != theme
        await pilot.press("space")
        await until(app, "HELD")
        await pilot.press("space")
        await until(app, lambda text: "HELD" not in text)
        await pilot.press("left_square_bracket")
        await until(app, " 1 min")
        await pilot.press("question_mark")
        await until(app, "changes")
        await pilot.press("escape")
        await until(app, lambda text: "changes" not in text)
        await pilot.press("o")
        await until(app, "run r-0")
        await pilot.press("n")
        await until(app, "run r-1")
        await pilot.press("n")
        await until(app, "this machine")
        await pilot.press("q")
    assert app.return_code == 0


async def test_a_moved_key_moves(database):
    """By the name that the config gives; the old key is then free."""
    app = app_on(database, moved={"app.runs": "f6"})
    async with app.run_test(size=(120, 30)) as pilot:
        text = await until(app, "this machine")
        assert "f6 Runs" in text
        await pilot.press("4")
        await pilot.pause()
        assert "of 2 runs" not in text_of(app)
        await pilot.press("f6")
        await until(app, "of 2 runs")


async def test_the_palette_runs_actions_by_name(database):
    """Typed in part, with a sentence for each."""
    app = app_on(database)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(app, "this machine")
        await pilot.press("ctrl+p")
        await until(app, "Find an action")
        app.screen.query_one(Input).value = "fleet"
        await until(app, "All machines that the database knows.")
        await pilot.press("enter")
        await until(app, "machines: 2")


async def test_runs_are_filtered_sorted_marked_and_opened(database):
    """By the keys of that screen."""
    app = app_on(database)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(app, "this machine")
        await pilot.press("4")
        text = await until(app, "r-0")
        assert text.index("r-1") < text.index("r-0")
        await pilot.press("S")
        await until(app, lambda text: text.index("r-1") > text.index("r-0"))
        await pilot.press("x", "down", "x")
        text = await until(app, "side by side")
        assert "exit 9" in text
        await pilot.press("s", "s")
        await until(app, "by status")
        await pilot.press("slash")
        await until(app, "hold these words")
        await pilot.press(*"node2", "enter")
        text = await until(app, "1 of 2 runs")
        assert "r-1  " not in text.split("side by side", maxsplit=1)[0]
        await pilot.press("enter")
        await until(app, "Compare   run r-0")


async def test_compare_without_a_run_says_how_to_choose_one(tmp_path):
    """The machine itself is shown, and runs are there."""
    path = tmp_path / "m.db"
    fill(path)
    app = app_on(path, now_ns=lambda: T0 + 121 * S)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(app, "this machine")
        await pilot.press("3")
        await until(app, "o selects the newest one")
        await pilot.press("o")
        await until(app, "by part")


async def test_a_machine_of_the_fleet_opens_its_runs(database):
    """With its name as the filter."""
    app = app_on(database)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(app, "this machine")
        await pilot.press("5")
        await until(app, "machines: 2")
        await pilot.press("down", "enter")
        await until(app, "1 of 2 runs")


async def test_export_writes_curves_facts_and_the_screen(database, tmp_path):
    """And never over a file that is there."""
    folder = tmp_path / "out"
    folder.mkdir()
    app = app_on(database, folder=folder)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await until(app, "used by all")
        await pilot.press("o")
        await until(app, "run r-1")
        await pilot.press("e")
        await until(app, "Written")
        await pilot.press("e")
        await pilot.pause()
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 6
    (curves,) = [path for path in folder.glob("*.csv") if "-2" not in path.name[-6:]]
    rows = curves.read_text().splitlines()
    assert rows[0] == "t_ns,device,bytes"
    assert rows[1] == f"{T0},cpu,{300 * MIB}"
    assert len(rows) == 121
    facts = json.loads(curves.with_suffix(".json").read_text())
    assert facts["schema"] == "memplan.window/1"
    assert facts["comparison"]["devices"][0]["peak_bytes"] == 610 * MIB
    assert curves.with_suffix(".svg").read_text().startswith("<svg")


async def test_no_database_yet_fills_itself_later(tmp_path):
    """The screen does not have to be opened again."""
    path = tmp_path / "m.db"
    app = app_on(path, interval_s=0.05)
    async with app.run_test(size=(80, 24)):
        text = await until(app, "There is no database")
        assert "memplan run -- COMMAND" in text
        LocalWriter(path).close()
        await until(app, "No run has been stored yet")
        with LocalWriter(path) as writer:
            writer.save_run(make_run(plan_id=None))
            app._poller._listed_ns = None
        await until(app, "run r-1")


async def test_a_database_taken_away_in_mid_run_keeps_its_picture(tmp_path):
    """Gone, damaged, back: a state each, with what was read last still on the screen."""
    path = tmp_path / "m.db"
    fill(path)
    app = app_on(path, interval_s=0.05)
    async with app.run_test(size=(120, 30)) as pilot:
        await until(app, "used by all")
        await pilot.press("o")
        await until(app, "within plan")
        path.rename(tmp_path / "away.db")
        text = await until(app, "Database gone")
        assert "within plan" in text
        path.write_bytes(b"not a database at all, but long enough " * 50)
        await until(app, "Database cannot be read")
        (tmp_path / "away.db").replace(path)
        text = await until(app, lambda text: "Database" not in text)
        assert "within plan" in text


async def test_a_database_of_a_newer_memplan_says_so(tmp_path):
    """With what to do, and no traceback."""
    path = tmp_path / "m.db"
    fill(path)
    with sqlite3.connect(path) as connection:
        connection.execute("update alembic_version set version_num = '9999'")
    connection.close()
    app = app_on(path)
    async with app.run_test(size=(80, 24)):
        text = await until(app, "newer memplan")
        assert "Try:" in text


async def test_a_live_run_moves(tmp_path):
    """What another process writes is on screen a poll later."""
    path = tmp_path / "m.db"
    app = app_on(path, interval_s=0.05)
    with LocalWriter(path) as writer:
        run = make_run(plan_id=None, status="running", ended_ns=None, exit_code=None)
        writer.save_run(run)
        writer.write_samples([make_sample(100 * MIB)])
        async with app.run_test(size=(80, 24)):
            await until(app, "100.0")
            writer.write_samples([make_sample(222 * MIB, seconds=1)])
            await until(app, "222.0")
            writer.save_run(replace(run, status="failed", exit_code=9, ended_ns=T0 + 2 * S))
            await until(app, "exit 9")


def gpu_samples(writer, *, tree=True):
    """Store a host with a GPU; `tree`: with the run's own share of it."""
    writer.save_devices([make_device(name="cuda:0", kind="gpu", uuid="GPU-1", label="RTX 4090")])
    host = {"run_id": None, "seconds": 1}
    samples = [
        make_sample(24 * GIB, entity="host", metric="total_bytes", **host),
        make_sample(14 * GIB, entity="host", metric="available_bytes", **host),
        make_sample(10 * GIB, entity="host", metric="used_bytes", **host),
        make_sample(24 * GIB, entity="gpu:GPU-1", metric="total_bytes", **host),
        make_sample(6 * GIB, entity="gpu:GPU-1", metric="used_bytes", **host),
        make_sample(1 * GIB),
    ]
    if tree:
        samples.append(make_sample(5 * GIB, entity="gpu:GPU-1/tree", metric="used_bytes"))
    writer.write_samples(samples)


async def test_gpus_have_a_line_each(tmp_path):
    """With the run's share, and what everybody uses of all."""
    path = tmp_path / "m.db"
    with LocalWriter(path) as writer:
        writer.save_run(make_run(plan_id=None))
        gpu_samples(writer)
    app = app_on(path, unit="GiB")
    async with app.run_test(size=(100, 30)):
        text = await until(app, "run r-1")
        line = next(line for line in text.splitlines() if line.startswith(" cuda:0"))
        assert line.split()[1:4] == ["5.00", "5.00", "6.00/24.00"]


async def test_memory_that_the_driver_does_not_tell_by_process_is_not_zero(tmp_path):
    """N/A, with the words for it: WSL2 and containers."""
    path = tmp_path / "m.db"
    plan = make_plan()
    gpu = replace(plan.devices[0], name="cuda:0", kind="gpu")
    with LocalWriter(path) as writer:
        writer.save_plan(replace(plan, devices=(gpu,)))
        writer.save_run(make_run())
        gpu_samples(writer, tree=False)
    app = app_on(path, unit="GiB")
    async with app.run_test(size=(120, 30)):
        text = await until(app, "run r-1")
        assert "N/A per process" in text


async def test_states_of_the_machine_are_said(tmp_path):
    """No GPU; a sampler that is silent for long."""
    path = tmp_path / "m.db"
    fill(path)
    app = app_on(path)
    async with app.run_test(size=(100, 30)):
        await until(app, "No NVIDIA driver found; showing host memory only.")
    late = app_on(path, now_ns=lambda: NOW + 40 * S)
    async with late.run_test(size=(100, 30)):
        await until(late, "Last sample 41 s ago: nothing is sampling.")


async def test_a_thousand_updates_change_nothing_but_the_picture(database):
    """No growth: widgets, timers and curves stay what they are."""
    app = app_on(database)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(app, "used by all")
        await pilot.press("o")
        await until(app, "run r-1")
        widgets, drawn = len(app.screen.query("*")), text_of(app)
        for _ in range(1000):
            app.on_polled(Polled(app.snapshot))
        await pilot.pause()
        assert len(app.screen.query("*")) == widgets
        assert text_of(app) == drawn


async def test_an_answer_that_comes_while_the_program_ends_is_let_go(database):
    """Textual takes a screen's widgets away before the screen, and messages still come."""
    app = app_on(database)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(app, "this machine")
        for key in "12345":
            await pilot.press(key)
            await pilot.pause()
            await app.screen.query("*").remove()
            app.on_polled(Polled(app.snapshot))
