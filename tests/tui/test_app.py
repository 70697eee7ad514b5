"""The dashboard in a headless terminal: what is on screen, at which size, after which key."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from factories import T0, make_device, make_phase, make_plan, make_run, make_sample
from goldens import check_golden
from memplan_tui.app import MemplanApp
from memplan_tui.messages import Polled

from memplan.store.writer import LocalWriter
from memplan.units import GIB, MIB

NOW = T0 + 120 * 10**9
S = 10**9


def fill(database):
    """Store a finished run with a plan and a running one without."""
    with LocalWriter(database) as writer:
        writer.save_plan(make_plan())
        writer.save_run(make_run(command=("python", "generate.py")))
        running = {"status": "running", "ended_ns": None, "exit_code": None}
        writer.save_run(make_run(id="r-2", plan_id=None, started_ns=T0 + 100 * S, **running))
        writer.save_phases([make_phase()])
        for i in range(120):
            value = (300 + 310 * min(i, 40) // 40) * MIB
            host = {"run_id": None, "entity": "host", "seconds": i}
            writer.write_samples(
                [
                    make_sample(value, seconds=i / 2),
                    make_sample(value, seconds=i / 2, metric="hwm_bytes"),
                    make_sample(24 * GIB, metric="total_bytes", **host),
                    make_sample(14 * GIB, metric="available_bytes", **host),
                ]
            )


@pytest.fixture
def database(tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    path = tmp_path / "m.db"
    fill(path)
    return path


def app_on(database, **options):
    return MemplanApp(database, unit="MiB", now_ns=lambda: NOW, **options)


def text_of(app):
    strips = app.screen._compositor.render_strips()
    lines = ["".join(segment.text for segment in strip).rstrip() for strip in strips]
    return "\n".join(lines).rstrip() + "\n"


async def until(app, condition, what="the screen"):
    """Wait until a condition on the screen's text holds."""
    for _ in range(200):
        if condition(text_of(app)):
            return text_of(app)
        await asyncio.sleep(0.02)
    raise AssertionError(f"{what} never came:\n{text_of(app)}")


@pytest.mark.parametrize("size", [(80, 24), (120, 30), (200, 50)])
@pytest.mark.parametrize("colour", [True, False])
async def test_live_looks_like_this(database, size, colour, monkeypatch):
    """Machine, runs, devices, chart; without colour the text is the same."""
    if not colour:
        monkeypatch.setenv("NO_COLOR", "1")
    app = app_on(database)
    async with app.run_test(size=size) as pilot:
        await until(app, lambda text: "r-1" in text)
        await pilot.press("down")
        text = await until(app, lambda text: "within plan" in text)
        await pilot.pause()
        check_golden(f"live_{size[0]}x{size[1]}.txt", text_of(app))
    assert "MiB" in text


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
async def test_compare_looks_like_this(database, size):
    """Part by part, the unaccounted line, the verdict in words."""
    app = app_on(database)
    async with app.run_test(size=size) as pilot:
        await until(app, lambda text: "r-1" in text)
        await pilot.press("down")
        await until(app, lambda text: "within plan" in text)
        await pilot.press("2")
        await until(app, lambda text: "WITHIN" in text)
        await pilot.pause()
        check_golden(f"compare_{size[0]}x{size[1]}.txt", text_of(app))


async def test_ascii_terminals_get_no_braille(database):
    """Only characters that every terminal has in the chart."""
    app = app_on(database, unicode=False)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(app, lambda text: "r-1" in text)
        await pilot.press("down")
        text = await until(app, lambda text: "*" in text)
        assert not any(0x2800 <= ord(char) <= 0x28FF for char in text)


async def test_every_key_does_something_visible(database):
    """Unit, colours, hold, help, compare, back, older and newer run, device."""
    app = app_on(database)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(app, lambda text: "peak in MiB" in text)
        await pilot.press("u")
        await until(app, lambda text: "peak in GB" in text)
        theme = app.theme
        await pilot.press("t")
        assert app.theme != theme
        await pilot.press("space")
        await until(app, lambda text: "HELD" in text)
        await pilot.press("space")
        await until(app, lambda text: "HELD" not in text)
        await pilot.press("question_mark")
        await until(app, lambda text: "changes nothing" in text)
        await pilot.press("escape")
        await until(app, lambda text: "changes nothing" not in text)
        await pilot.press("enter")
        await until(app, lambda text: "compare   run r-2" in text)
        await pilot.press("n")
        await until(app, lambda text: "compare   run r-1" in text)
        await pilot.press("p")
        await until(app, lambda text: "compare   run r-2" in text)
        await pilot.press("escape")
        await until(app, lambda text: "runs, newest first" in text)
        await pilot.press("q")
    assert app.return_code == 0


def test_every_binding_has_a_name_and_a_sentence():
    """So that it can be moved, and found in the footer or the palette."""
    from memplan_tui.screens.compare import CompareScreen
    from memplan_tui.screens.help import HelpScreen
    from memplan_tui.screens.live import LiveScreen

    seen = set()
    for owner in (MemplanApp, LiveScreen, CompareScreen, HelpScreen):
        for binding in owner.BINDINGS:
            assert binding.id
            assert binding.description
            assert binding.id not in seen
            seen.add(binding.id)


async def test_no_database_yet_says_what_to_type_and_fills_itself_later(tmp_path):
    """The screen does not have to be opened again."""
    path = tmp_path / "m.db"
    app = app_on(path, interval_s=0.05)
    async with app.run_test(size=(80, 24)):
        text = await until(app, lambda text: "There is no database" in text)
        assert "memplan run -- COMMAND" in text
        LocalWriter(path).close()
        await until(app, lambda text: "No run has been stored yet" in text)
        with LocalWriter(path) as writer:
            writer.save_run(make_run(plan_id=None))
        await until(app, lambda text: "r-1" in text)


async def test_a_database_that_is_taken_away_and_comes_back_is_survived(tmp_path):
    """An error is a state of the screen, no end of it."""
    path = tmp_path / "m.db"
    fill(path)
    app = app_on(path, interval_s=0.05)
    async with app.run_test(size=(80, 24)):
        await until(app, lambda text: "r-1" in text)
        path.rename(tmp_path / "away.db")
        await until(app, lambda text: "There is no database" in text)
        path.write_bytes(b"not a database at all, but long enough " * 50)
        await until(app, lambda text: "cannot be read" in text)
        (tmp_path / "away.db").replace(path)
        await until(app, lambda text: "r-1" in text)


async def test_a_run_without_samples_and_without_a_plan_says_so(tmp_path):
    """n/a, never 0."""
    path = tmp_path / "m.db"
    with LocalWriter(path) as writer:
        writer.save_run(make_run(plan_id=None))
    app = app_on(path)
    async with app.run_test(size=(80, 24)):
        text = await until(app, lambda text: "no samples of this run" in text)
        assert "no plan" in text
        assert "n/a" in text


async def test_a_live_run_moves(tmp_path):
    """What another process writes is on screen a poll later."""
    path = tmp_path / "m.db"
    app = app_on(path, interval_s=0.05)
    with LocalWriter(path) as writer:
        run = make_run(plan_id=None, status="running", ended_ns=None, exit_code=None)
        writer.save_run(run)
        writer.write_samples([make_sample(100 * MIB)])
        async with app.run_test(size=(80, 24)):
            await until(app, lambda text: "100.0" in text)
            writer.write_samples([make_sample(222 * MIB, seconds=1)])
            await until(app, lambda text: "222.0" in text)
            writer.save_run(replace(run, status="failed", exit_code=9, ended_ns=T0 + 2 * S))
            await until(app, lambda text: "exit 9" in text)


async def test_gpus_have_a_line_each(tmp_path):
    """With their names, used and total."""
    path = tmp_path / "m.db"
    with LocalWriter(path) as writer:
        writer.save_run(make_run(plan_id=None))
        writer.save_devices(
            [make_device(name="cuda:0", kind="gpu", uuid="GPU-1", label="RTX 4090")]
        )
        host = {"run_id": None, "seconds": 1}
        writer.write_samples(
            [
                make_sample(24 * GIB, entity="host", metric="total_bytes", **host),
                make_sample(14 * GIB, entity="host", metric="available_bytes", **host),
                make_sample(24 * GIB, entity="gpu:GPU-1", metric="total_bytes", **host),
                make_sample(6 * GIB, entity="gpu:GPU-1", metric="used_bytes", **host),
                make_sample(5 * GIB, entity="gpu:GPU-1/tree", metric="used_bytes"),
            ]
        )
    app = app_on(path)
    async with app.run_test(size=(100, 30)):
        text = await until(app, lambda text: "RTX 4090" in text)
        assert "6144.0 of 24576.0 MiB used (25 %)" in text
        assert "cuda:0" in text


async def test_an_answer_that_comes_while_the_program_ends_is_let_go(database):
    """Textual takes a screen's widgets away before the screen, and messages still come."""
    app = app_on(database)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(app, lambda text: "r-1" in text)
        for key in ("1", "2"):
            await pilot.press(key)
            await app.screen.query("*").remove()
            app.on_polled(Polled(app.snapshot))


async def test_a_window_can_be_made_smaller_and_larger(database):
    """Nothing crashes at any size."""
    app = app_on(database)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(app, lambda text: "r-1" in text)
        for size in ((30, 8), (200, 60), (20, 5), (80, 24)):
            await pilot.resize_terminal(*size)
            await pilot.pause()
        await pilot.press("2")
        for size in ((30, 8), (200, 60), (20, 5), (80, 24)):
            await pilot.resize_terminal(*size)
            await pilot.pause()
        await until(app, lambda text: "compare" in text)
