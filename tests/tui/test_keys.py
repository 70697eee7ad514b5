"""The table of keys: every one has a name, a sentence, a place in palette and help."""

from __future__ import annotations

import pytest
from memplan_tui.app import MemplanApp
from memplan_tui.keys import KEYS, checked, footer
from memplan_tui.lines import text
from memplan_tui.screens.compare import CompareScreen
from memplan_tui.screens.help import HelpScreen
from memplan_tui.screens.live import LiveScreen
from memplan_tui.screens.plan import PlanScreen
from memplan_tui.screens.prompt import Prompt
from memplan_tui.screens.runs import FleetScreen, RunsScreen
from memplan_tui.views.help import help_lines
from tui_stage import app_on, fill, until

from memplan import config
from memplan.cli.main import run
from memplan.errors import UsageError

SCREENS = {
    "live": LiveScreen,
    "plan": PlanScreen,
    "compare": CompareScreen,
    "runs": RunsScreen,
    "fleet": FleetScreen,
    "help": HelpScreen,
    "app": MemplanApp,
}


def test_every_binding_has_a_name_of_its_own_and_a_description():
    """So that it can be moved, and found."""
    seen = set()
    for owner in (*SCREENS.values(), Prompt):
        for binding in owner.BINDINGS:
            assert binding.id
            assert binding.description
            assert binding.id not in seen
            seen.add(binding.id)


def test_every_key_has_a_title_a_sentence_and_an_action():
    """And an action that its owner has."""
    for screen, keys in KEYS.items():
        for key in keys:
            assert key.title
            assert key.sentence.endswith(".")
            name = key.action.removeprefix("app.").split("(")[0]
            owner = MemplanApp if key.action.startswith("app.") else SCREENS[screen]
            assert hasattr(owner, f"action_{name}"), key.id


def test_no_key_means_two_things_on_one_screen():
    """A screen's own keys and those of all screens do not meet."""
    everywhere = {k for key in KEYS["app"] for k in key.keys.split(",")}
    for screen, keys in KEYS.items():
        if screen in {"app", "help"}:
            continue  # help lies over the screen: its keys go first
        own = [k for key in keys for k in key.keys.split(",")]
        assert len(own) == len(set(own)), screen
        assert not everywhere & set(own), screen


async def test_every_key_is_in_the_palette_with_its_sentence(tmp_path):
    """On the screen where it works."""
    path = tmp_path / "m.db"
    fill(path)
    app = app_on(path)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(app, "used by all")
        for number, screen in enumerate(("live", "plan", "compare", "runs", "fleet"), start=1):
            await pilot.press(str(number))
            await pilot.pause()
            commands = {command.help for command in app.get_system_commands(app.screen)}
            wanted = (*KEYS.get(screen, ()), *KEYS["app"])
            missing = {key.sentence for key in wanted} - commands
            assert missing <= {"Find an action by its name."}, screen


@pytest.mark.parametrize("width", [30, 60, 80, 200])
@pytest.mark.parametrize("screen", ["live", "plan", "compare", "runs", "fleet"])
def test_the_last_line_has_whole_keys_only(screen, width):
    """And the screens before all else."""
    line = text([footer(screen, {}, width)])
    assert len(line) <= width
    assert line.startswith("1 Live")
    titles = {key.title for keys in KEYS.values() for key in keys}
    words = [part.split(" ", 1)[1] for part in line.split("  ")]
    assert set(words) <= titles


def test_help_lists_every_key_of_its_screen():
    """At 80 columns as at 200."""
    for width in (78, 198):
        page = text(help_lines("runs", {"runs.mark": "f9"}, width))
        assert "f9 " in page
        flat = " ".join(page.split())
        for key in (*KEYS["runs"], *KEYS["app"]):
            assert key.sentence in flat, key.id


def test_keys_are_moved_by_the_config(home, capsys):
    """A table [keys], quoted or not; a name that no key has is refused."""
    file = home / "config" / "memplan" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text('unit = "MiB"\n[keys]\napp.pause = "f2"\n"runs.mark" = "f3"\n')
    assert config.moved_keys(home) == {"app.pause": "f2", "runs.mark": "f3"}
    assert config.setting("unit").value == "MiB"
    assert run(["tui", "--keys"]) == 0
    out = capsys.readouterr().out
    assert next(line for line in out.splitlines() if "app.pause" in line).split()[1] == "f2"
    with pytest.raises(UsageError, match=r"app\.pauze"):
        checked({"app.pauze": "f2"})
    file.write_text("[keys]\napp.pause = 3\n")
    assert run(["tui", "--keys"]) == 2
    assert "app.pause" in capsys.readouterr().err


def test_a_replays_keys_come_first_in_its_footer():
    """At 80 columns there is room for them, for help and for the way out."""
    line = "".join(piece for piece, _ in footer("live", {}, 78, replay=True))
    for words in ("space Play", "r To now", "< Step back", "p Peak", "g Go to", "? Help", "q Quit"):
        assert words in line
    assert "space Hold" in "".join(piece for piece, _ in footer("live", {}, 78))
