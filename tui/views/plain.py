"""All screens once as text, for pipes and screen readers: no boxes, no braille."""

from __future__ import annotations

from memplan_tui.lines import Line, text
from memplan_tui.messages import Snapshot
from memplan_tui.text import tr
from memplan_tui.views.compare import compare_screen
from memplan_tui.views.live import device_table
from memplan_tui.views.runs import ordered, runs_screen
from memplan_tui.views.states import empty, note
from memplan_tui.views.words import Look, headline

from memplan.chart import glyphs

__all__ = ["plain_text"]

_WIDTH = 110


def plain_text(snapshot: Snapshot, unit: str) -> str:
    """Return what the screens show."""
    nothing = empty(snapshot, _WIDTH)
    if nothing is not None:
        return text(nothing) + "\n"
    look = Look(unit=unit, style=glyphs("ascii"))
    said = note(snapshot)
    lines: list[Line] = [[(headline(snapshot.detail), "")], *([said] if said else [])]
    lines += [[("", "")], *device_table(snapshot, look, _WIDTH, most=100)]
    if snapshot.detail is not None:
        tall = len(compare_screen(snapshot, look, _WIDTH, 400))
        lines += [[("", "")], *compare_screen(snapshot, look, _WIDTH, min(tall, 400))]
    if snapshot.runs:
        shown = ordered(snapshot, words="", sort="started", reverse=False)
        page = runs_screen(
            snapshot,
            shown,
            look,
            _WIDTH,
            min(len(shown), 20) + 2,
            cursor=-1,
            marked=(),
            sort="started",
            words="",
        )
        lines += [[("", "")], [(tr("Runs"), "")], *page[1:]]
    return text([_unruled(line) for line in lines]) + "\n"


def _unruled(line: Line) -> Line:
    return [(piece, role) for piece, role in line if role != "rule"]
