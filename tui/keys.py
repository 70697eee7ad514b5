"""Every key of the dashboard in one table: its name, what it does, and the sentence about it.

The name is what the config's [keys] table moves. Footer, help and palette are made from this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from memplan_tui.lines import Line
from memplan_tui.text import tr
from textual.binding import Binding

from memplan.errors import UsageError

__all__ = ["KEYS", "Key", "bindings", "checked", "footer", "key_name", "of_screen"]


def mark(text: str) -> str:
    """Mark a text for the catalogue; it is translated when it is shown."""
    return text


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Key:
    """One key."""

    id: str
    """Its name, "screen.action"; what is the same on all screens begins with "app."."""
    keys: str
    """Textual's names of the keys, comma between them."""
    action: str
    """What is called."""
    title: str
    """One or two words for the footer; a key of the catalogue."""
    sentence: str
    """What it does, for help and palette; a key of the catalogue."""
    rank: int = 9
    """Place in the footer, the lowest first; 9 = not there."""


def _k(name: str, keys: str, action: str, title: str, sentence: str, rank: int = 9) -> Key:  # noqa: PLR0917
    return Key(id=name, keys=keys, action=action, title=title, sentence=sentence, rank=rank)


_APP = (
    _k("app.live", "1", "app.show('live')", mark("Live"),
       mark("Devices, their curves and the processes of the selected run."), 1),
    _k("app.plan", "2", "app.show('plan')", mark("Plan"),
       mark("Parts of a plan, its placement, and what other choices would change."), 1),
    _k("app.compare", "3", "app.show('compare')", mark("Compare"),
       mark("Planned and measured, by part and by phase, and why they differ."), 1),
    _k("app.runs", "4", "app.show('runs')", mark("Runs"),
       mark("The history: filter, sort, two runs side by side."), 1),
    _k("app.fleet", "5", "app.show('fleet')", mark("Fleet"),
       mark("All machines that the database knows."), 1),
    _k("app.help", "question_mark,f1", "app.help", mark("Help"),
       mark("Every key, and what the signs mean."), 2),
    _k("app.quit", "q", "app.quit", mark("Quit"),
       mark("Leave; what samples goes on."), 3),
    _k("app.palette", "ctrl+p", "app.command_palette", mark("Commands"),
       mark("Find an action by its name."), 8),
    _k("app.pause", "space", "app.pause", mark("Hold"),
       mark("Hold the picture still; sampling goes on. In a replay: play or pause."), 4),
    _k("app.shorter", "left_square_bracket", "app.window(-1)", mark("Shorter"),
       mark("Show a shorter time: an hour, ten minutes, one minute.")),
    _k("app.longer", "right_square_bracket", "app.window(1)", mark("Longer"),
       mark("Show a longer time, up to all of the run.")),
    _k("app.device", "d", "app.device", mark("Next chart"),
       mark("Bring the next device's chart to the top."), 6),
    _k("app.older", "o", "app.run(1)", mark("Older run"),
       mark("Select the run before this one."), 7),
    _k("app.newer", "n", "app.run(-1)", mark("Newer run"),
       mark("Select the run after this one; beyond the newest, the machine itself."), 7),
    _k("app.unit", "u", "app.unit", mark("Unit"),
       mark("Switch all sizes between GiB, MiB and GB.")),
    _k("app.theme", "t", "app.theme", mark("Colours"),
       mark("Switch colours: dark, light, high contrast, the terminal's own.")),
    _k("app.export", "e", "app.export", mark("Export"),
       mark("Write what is visible as CSV and JSON, and the screen as SVG."), 5),
    _k("app.replay", "r", "app.replay", mark("Replay"),
       mark("Play the selected run again, or come back to what happens now."), 6),
    _k("app.back", "less_than_sign,comma", "app.step(-1)", mark("Step back"),
       mark("In a replay: one step back.")),
    _k("app.forward", "greater_than_sign,full_stop", "app.step(1)", mark("Step on"),
       mark("In a replay: one step on.")),
    _k("app.slower", "minus", "app.speed(-1)", mark("Slower"),
       mark("In a replay: half as fast.")),
    _k("app.faster", "plus,equals_sign", "app.speed(1)", mark("Faster"),
       mark("In a replay: twice as fast.")),
    _k("app.begin", "home", "app.edge(0)", mark("Begin"),
       mark("In a replay: go to its begin.")),
    _k("app.end", "end", "app.edge(1)", mark("End"),
       mark("In a replay: go to its end.")),
    _k("app.peak", "p", "app.peak", mark("Peak"),
       mark("In a replay: go to the highest point of the first chart.")),
    _k("app.time", "g", "app.time", mark("Go to"),
       mark("In a replay: go to a time, such as 14:03:22, 90s, +5min or 50%.")),
)  # fmt: skip

_PLAN = (
    _k("plan.quant", "z", "change('quant',1)", mark("Quantization"),
       mark("Plan with the next quantization."), 5),
    _k("plan.quant_back", "Z", "change('quant',-1)", mark("Quantization back"),
       mark("Plan with the quantization before.")),
    _k("plan.context", "c", "change('context',1)", mark("Context"),
       mark("Plan with twice the context (training: the sequence)."), 5),
    _k("plan.context_back", "C", "change('context',-1)", mark("Context back"),
       mark("Plan with half the context.")),
    _k("plan.batch", "b", "change('batch',1)", mark("Batch"),
       mark("Plan with twice the batch."), 5),
    _k("plan.batch_back", "B", "change('batch',-1)", mark("Batch back"),
       mark("Plan with half the batch.")),
    _k("plan.method", "m", "change('method',1)", mark("Method"),
       mark("Plan with the next training method."), 6),
    _k("plan.method_back", "M", "change('method',-1)", mark("Method back"),
       mark("Plan with the training method before.")),
    _k("plan.device", "v", "change('device',1)", mark("Device"),
       mark("Plan for the next larger device."), 5),
    _k("plan.device_back", "V", "change('device',-1)", mark("Device back"),
       mark("Plan for the next smaller device.")),
    _k("plan.gpus", "x", "change('gpus',1)", mark("How many"),
       mark("Plan for twice as many devices."), 6),
    _k("plan.gpus_back", "X", "change('gpus',-1)", mark("Fewer"),
       mark("Plan for half as many devices.")),
    _k("plan.reset", "0", "reset", mark("As stored"),
       mark("Show the plan as it was stored."), 6),
    _k("plan.older", "l", "other(1)", mark("Older plan"),
       mark("Show the plan that was stored before this one."), 7),
    _k("plan.newer", "k", "other(-1)", mark("Newer plan"),
       mark("Show the plan that was stored after this one.")),
)  # fmt: skip

_COMPARE = (
    _k("compare.down", "down,j,pagedown", "scroll(1)", mark("Down"),
       mark("Show the lines below.")),
    _k("compare.up", "up,k,pageup", "scroll(-1)", mark("Up"),
       mark("Show the lines above.")),
)  # fmt: skip

_RUNS = (
    _k("runs.down", "down,j", "move(1)", mark("Down"), mark("Go to the run below.")),
    _k("runs.up", "up,k", "move(-1)", mark("Up"), mark("Go to the run above.")),
    _k("runs.page_down", "pagedown", "move(10)", mark("Page down"), mark("Go ten runs down.")),
    _k("runs.page_up", "pageup", "move(-10)", mark("Page up"), mark("Go ten runs up.")),
    _k("runs.open", "enter", "open", mark("Open"),
       mark("Show the run beside its plan."), 4),
    _k("runs.filter", "slash", "filter", mark("Filter"),
       mark("Show only runs that hold some words."), 4),
    _k("runs.sort", "s", "sort(1)", mark("Sort"),
       mark("Sort by the next column."), 4),
    _k("runs.reverse", "S", "reverse", mark("Reverse"),
       mark("Turn the order round.")),
    _k("runs.mark", "x", "mark", mark("Mark"),
       mark("Mark this run; two marked runs are shown side by side."), 4),
)  # fmt: skip

_FLEET = (
    _k("fleet.down", "down,j", "move(1)", mark("Down"), mark("Go to the machine below.")),
    _k("fleet.up", "up,k", "move(-1)", mark("Up"), mark("Go to the machine above.")),
    _k("fleet.open", "enter", "open", mark("Its runs"),
       mark("Show this machine's runs."), 4),
)  # fmt: skip

_HELP = (
    _k("help.close", "escape,q,question_mark,f1", "close", mark("Close"),
       mark("Close this page."), 1),
    _k("help.down", "down,j,pagedown,space", "scroll(1)", mark("Down"),
       mark("Show the lines below."), 2),
    _k("help.up", "up,k,pageup", "scroll(-1)", mark("Up"),
       mark("Show the lines above.")),
)  # fmt: skip

KEYS: dict[str, tuple[Key, ...]] = {
    "app": _APP,
    "plan": _PLAN,
    "compare": _COMPARE,
    "runs": _RUNS,
    "fleet": _FLEET,
    "help": _HELP,
}
"""By screen; what begins with "app." is there on all screens."""

_NAMES = {
    "question_mark": "?",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "less_than_sign": "<",
    "greater_than_sign": ">",
    "minus": "-",
    "plus": "+",
    "slash": "/",
    "full_stop": ".",
    "comma": ",",
    "equals_sign": "=",
    "escape": "esc",
}


def of_screen(screen: str) -> tuple[Key, ...]:
    """Return a screen's own keys; a screen without any has none."""
    return KEYS.get(screen, ())


def bindings(screen: str) -> list[Binding]:
    """Return a screen's bindings, as Textual takes them."""
    return [
        Binding(key.keys, key.action, key.title, id=key.id, tooltip=key.sentence, show=False)
        for key in of_screen(screen)
    ]


def key_name(key: Key, moved: Mapping[str, str]) -> str:
    """Return a key as it stands on the keyboard, the first of several."""
    first = moved.get(key.id, key.keys).split(",")[0]
    return _NAMES.get(first, first)


def checked(moved: Mapping[str, str]) -> Mapping[str, str]:
    """Return moved keys. Raises UsageError for a name that no key has."""
    known = {key.id for keys in KEYS.values() for key in keys}
    for name in moved:
        if name not in known:
            raise UsageError(f"[keys] names no action {name!r}", hint="memplan tui --keys")
    return moved


def footer(
    screen: str,
    moved: Mapping[str, str],
    width: int,
    *,
    replay: bool = False,
    own: bool = False,
) -> Line:
    """Return the last line: as many keys as have room, each whole, the important ones first.

    Args:
        screen: whose keys.
        moved: keys that the config moved.
        width: characters.
        replay: is one played.
        own: leave the keys of all screens out.
    """
    everywhere = () if own else KEYS["app"]
    wanted = [k for k in (*everywhere, *of_screen(screen)) if k.rank < 9]
    wanted.sort(key=lambda k: (k.rank, k.id.startswith("app.")))
    titles = _IN_REPLAY if replay else {}
    if replay:
        known = {k.id: k for k in KEYS["app"]}
        wanted = [*(known[i] for i in titles), *(k for k in wanted if k.id not in titles)]
    line: Line = []
    room = width
    for key in wanted:
        name, title = key_name(key, moved), tr(titles.get(key.id) or key.title)
        gap = "  " if line else ""
        size = len(gap) + len(name) + 1 + len(title)
        if size <= room:
            line += [(gap, ""), (name, "key"), (f" {title}", "dim")]
            room -= size
    return line


_IN_REPLAY = {
    "app.pause": mark("Play"),
    "app.replay": mark("To now"),
    "app.back": "",
    "app.forward": "",
    "app.peak": "",
    "app.time": "",
    "app.help": "",
    "app.quit": "",
    "app.slower": "",
    "app.faster": "",
}
"""What comes first in the footer of a replay, and its title there where that is another."""


def listing(screens: Iterable[str], moved: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return (name, key, sentence) of each key, as `memplan tui --keys` prints them."""
    return [
        (key.id, key_name(key, moved), tr(key.sentence))
        for screen in screens
        for key in KEYS[screen]
    ]
