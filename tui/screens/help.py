"""Help: what the screens show and every key."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

__all__ = ["HelpScreen"]

_TEXT = """\
memplan shows plans beside measurements. It reads the database and changes nothing.

1         Live: the machine, the runs, the selected run against its plan
2, enter  Compare: planned and measured, part by part, and what nothing explains
up, down  select a run (Live), move in the table (Compare)
n, p      an older, a newer run (Compare)
d         draw the next device (Live)
u         unit: GiB, MiB, GB (1 GiB = 1024^3 bytes)
t         colours: dark, light, high contrast
space     hold the picture still; sampling goes on
ctrl+p    all actions by name
?         this page
q         leave (escape goes back)

measured  the process tree's resident memory, or the GPU's memory of the tree
- -       the planned peak       . .  the ends of its band
n/a       not available: nobody measured or planned it; never to be read as 0
gap       measured less planned; = means equal to the byte

The same facts as text: memplan tui --plain, memplan compare last
escape closes this page.
"""


class HelpScreen(ModalScreen[None]):
    """A page of text over the screen."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark", "dismiss", "Close", id="help.close"),
    ]

    def compose(self) -> ComposeResult:
        """Lay out."""
        with VerticalScroll(id="help"):
            yield Static(_TEXT, markup=False)
