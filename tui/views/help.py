"""Help: every key of the screen that it was opened from, then those of all screens, then signs."""

from __future__ import annotations

from collections.abc import Mapping

from memplan_tui.keys import KEYS, Key, key_name, of_screen
from memplan_tui.lines import Line, beside, heading, wrapped
from memplan_tui.text import tr

__all__ = ["help_lines"]

_WIDE = 116
"""From this width on keys stand in two columns."""


def help_lines(screen: str, moved: Mapping[str, str], width: int) -> list[Line]:
    """Return the page.

    Args:
        screen: where help was asked for.
        moved: keys that the config moved.
        width: characters.
    """
    lines = wrapped(
        tr("memplan shows plans beside measurements. It reads the database and changes nothing."),
        width,
        "bold",
    )
    own = of_screen(screen)
    if own:
        lines += [[("", "")], heading(tr("keys of this screen"), width)]
        lines += _keys(own, moved, width)
    lines += [[("", "")], heading(tr("keys of all screens"), width)]
    lines += _keys(KEYS["app"], moved, width)
    lines += [[("", "")], heading(tr("signs"), width), *_signs(width)]
    lines += [[("", "")], heading(tr("as text, for pipes and screen readers"), width)]
    lines += [[(command, "")] for command in _COMMANDS]
    return lines


_COMMANDS = (
    "memplan tui --plain",
    "memplan runs",
    "memplan show last --chart",
    "memplan compare last",
    "memplan report last --html report.html",
)


def _keys(keys: tuple[Key, ...], moved: Mapping[str, str], width: int) -> list[Line]:
    cells: list[Line] = []
    room = width if width < _WIDE else (width - 4) // 2
    for key in keys:
        text = wrapped(tr(key.sentence), room - 9)
        first: Line = [(f"{key_name(key, moved):<9}", "key"), *text[0]]
        cells += [first, *([(" " * 9, ""), *line] for line in text[1:])]
    if width < _WIDE:
        return cells
    half = -(-len(cells) // 2)
    return beside(cells[:half], room, cells[half:], gap=4)


def _signs(width: int) -> list[Line]:
    signs = (
        ("⣀⡤⠖", "measured", tr("the curve: of each column the highest and the lowest sample")),
        ("╌╌╌", "plan", tr("the planned peak")),
        ("┄┄┄", "band", tr("the ends of the plan's band")),
        ("═══", "capacity", tr("all of the device's memory; ↑ = above the chart")),
        ("N/A", "dim", tr("not available: nobody measured or planned it; never to be read as 0")),
        ("=", "", tr("equal to the byte")),
        ("*", "bold", tr("another choice than the stored plan's")),
    )
    lines: list[Line] = []
    for sign, role, words in signs:
        text = wrapped(words, width - 9)
        lines += [[(f"{sign:<9}", role), *text[0]], *([(" " * 9, ""), *x] for x in text[1:])]
    return lines
