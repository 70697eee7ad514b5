"""The dashboard in a headless terminal: what each screen looks like, at both sizes."""

from __future__ import annotations

import pytest
from goldens import check_golden
from tui_stage import app_on, fill, text_of, until

from memplan.store.writer import LocalWriter

SIZES = [(80, 24), (200, 50)]
SCREENS = {
    "live": ("1", "process"),
    "plan": ("2", "placement"),
    "compare": ("3", "by phase"),
    "runs": ("4", "of 2 runs"),
    "fleet": ("5", "machines: 2"),
}


@pytest.fixture
def database(tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    path = tmp_path / "m.db"
    fill(path)
    return path


@pytest.mark.parametrize("size", SIZES)
async def test_each_screen_looks_like_this(database, size):
    """Reached by its key, on a run with a plan."""
    app = app_on(database)
    async with app.run_test(size=size) as pilot:
        await until(app, "this machine")
        await pilot.press("o")
        await until(app, "run r-1")
        for name, (key, sign) in SCREENS.items():
            await pilot.press(key)
            await until(app, sign, name)
            await pilot.pause()
            check_golden(f"tui_{name}_{size[0]}x{size[1]}.txt", text_of(app))
        await pilot.press("1", "question_mark")
        await until(app, "changes")
        check_golden(f"tui_help_{size[0]}x{size[1]}.txt", text_of(app))


@pytest.mark.parametrize("size", SIZES)
async def test_without_colour_the_words_are_the_same(database, size, monkeypatch):
    """NO_COLOR: no crash, the same golden file, and no colour in any piece."""
    monkeypatch.setenv("NO_COLOR", "1")
    app = app_on(database)
    async with app.run_test(size=size) as pilot:
        await until(app, "this machine")
        await pilot.press("o")
        await until(app, "run r-1")
        await until(app, "process")
        await pilot.pause()
        check_golden(f"tui_live_{size[0]}x{size[1]}.txt", text_of(app))
        for key in "2345":
            await pilot.press(key)
            await pilot.pause()
        for name in ("#status", "#body", "#keys"):
            strip = app.screen.query_one(name).render_line(0)
            assert all(segment.style.color is None for segment in strip if segment.style)


@pytest.mark.parametrize("size", SIZES)
async def test_an_empty_database_says_what_to_type(tmp_path, size):
    """On every screen."""
    path = tmp_path / "m.db"
    LocalWriter(path).close()
    app = app_on(path)
    async with app.run_test(size=size) as pilot:
        await until(app, "nothing is sampling")
        check_golden(f"tui_empty_{size[0]}x{size[1]}.txt", text_of(app))
        await pilot.press("2")
        await until(app, "memplan plan llama-3.1-8b")
        for key in "345":
            await pilot.press(key)
            await until(app, "memplan run -- COMMAND")


async def test_portuguese_fills_every_screen(database):
    """No heading is left in English, and nothing is cut at 80 columns."""
    from memplan_tui import text

    text.use("pt_BR")
    try:
        app = app_on(database)
        async with app.run_test(size=(80, 24)) as pilot:
            await until(app, "esta máquina")
            await pilot.press("o")
            await until(app, "execução r-1")
            await until(app, "dentro do plano")
            await pilot.pause()
            check_golden("tui_live_pt_BR_80x24.txt", text_of(app))
            for key, sign in (("2", "partes no pico"), ("3", "por parte"), ("4", "execuções")):
                await pilot.press(key)
                await until(app, sign)
    finally:
        text.use("en")


async def test_ascii_terminals_get_ascii_alone(database):
    """On every screen, help and prompt included."""
    app = app_on(database, unicode=False, style="ascii")
    async with app.run_test(size=(80, 24)) as pilot:
        await until(app, "this machine")
        await pilot.press("o")
        text = await until(app, "run r-1")
        assert "*" in text
        for key in ("1", "2", "3", "4", "5"):
            await pilot.press(key)
            await pilot.pause()
            assert text_of(app).isascii(), text_of(app)


@pytest.mark.parametrize("size", [(30, 8), (20, 5), (59, 14), (80, 15), (132, 43), (250, 70)])
async def test_no_size_breaks_it(database, size):
    """Headings are whole or absent; a small window says what a larger one shows."""
    app = app_on(database)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(app, "this machine")
        await pilot.press("o")
        await until(app, "run r-1")
        await pilot.resize_terminal(*size)
        for key in "12345":
            await pilot.press(key)
            await pilot.pause()
            lines = text_of(app).splitlines()
            assert len(lines) <= size[1]
            assert all(len(line) <= size[0] for line in lines)
        await pilot.press("1")
        await pilot.pause()
        text = text_of(app)
        if size == (20, 5):
            assert "too small" in text
        elif size == (59, 14):
            assert "make the window larger" in text
