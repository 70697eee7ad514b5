"""What all screens share: a status line, the body, and the keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, cast

from memplan_tui.canvas import Canvas
from memplan_tui.keys import footer
from memplan_tui.lines import Line, cut, ends, text
from memplan_tui.messages import Snapshot
from memplan_tui.text import tr
from memplan_tui.views.states import empty, note
from memplan_tui.views.words import Look, headline
from textual.app import ComposeResult
from textual.geometry import Size
from textual.screen import Screen

if TYPE_CHECKING:
    from memplan_tui.app import MemplanApp

__all__ = ["Page"]

SMALLEST = (30, 8)
"""Columns and rows below which nothing sensible fits."""


class Page(Screen[None]):
    """One of the five screens; a subclass says what stands in the body."""

    NAME: ClassVar[str] = ""
    """Key of its bindings."""
    NEED: ClassVar[str] = "live"
    """What must be there; see `memplan_tui.views.states.empty`."""
    TITLE_WORD: ClassVar[str] = ""
    """Its title, a key of the catalogue."""

    DEFAULT_CSS = """
    Page { background: $background; color: $foreground; layout: vertical; }
    Page > #status { height: 1; }
    Page > #body { height: 1fr; }
    Page > #keys { height: 1; }
    """

    def compose(self) -> ComposeResult:
        """Lay out."""
        unicode = self.memplan.unicode
        yield Canvas(unicode=unicode, id="status", base="status")
        yield Canvas(unicode=unicode, id="body", inset=1)
        yield Canvas(unicode=unicode, id="keys", inset=1)

    @property
    def memplan(self) -> MemplanApp:
        """Return the program."""
        return cast("MemplanApp", self.app)

    def body(self, snapshot: Snapshot, look: Look, width: int, height: int) -> list[Line]:
        """Return what stands between status line and keys."""
        raise NotImplementedError

    def about(self, snapshot: Snapshot) -> str:
        """Return what the status line names."""
        return headline(snapshot.detail)

    def on_mount(self) -> None:
        """Show what is known already: the library's first picture then has it."""
        self.show()

    def on_resize(self) -> None:
        """Lay the lines out anew."""
        self.show_soon()

    def on_screen_resume(self) -> None:
        """Show what came while another screen was in front."""
        self.show_soon()

    _due = False
    _pictured: tuple[Snapshot, Size, Look] | None = None
    _asked: tuple[int, bool] | None = None
    _keys: Sequence[Line] = ()

    def show_soon(self) -> None:
        """Draw once for all that happens now, before the library paints."""
        if not self._due:
            self._due = True
            self.call_later(self._show_due)

    def _show_due(self) -> None:
        self._due = False
        if self._pictured != self._facts():
            self.show()

    def _facts(self) -> tuple[Snapshot, Size, Look]:
        """Return all that a picture hangs on, but for what the screen itself chooses."""
        return self.memplan.snapshot, self.app.size, self.memplan.look()

    def show(self) -> None:
        """Draw the snapshot that the program holds."""
        if not self.query("#body"):
            return  # the program is ending, or the screen has just been made
        self._pictured = self._facts()
        app, (_, (width, height), look) = self.memplan, self._pictured
        self._canvas("status").show([self._status(app.snapshot, look, width)])
        asked = (width - 2, app.replay is not None)
        if asked != self._asked:  # the keys change with nothing else
            self._asked = asked
            self._keys = [footer(self.NAME, app.moved, width - 2, replay=asked[1])]
        self._canvas("keys").show(self._keys)
        self._canvas("body").show(self._body(app.snapshot, look, width - 2, height - 2))

    def _canvas(self, name: str) -> Canvas:
        return self.query_one(f"#{name}", Canvas)

    def _body(self, snapshot: Snapshot, look: Look, width: int, height: int) -> Sequence[Line]:
        if width < SMALLEST[0] or height < SMALLEST[1] - 2:
            return [[(tr("window too small"), "bold")]]
        nothing = empty(snapshot, width, need=self.NEED)
        if nothing is not None:
            return [[("", "")], *nothing]
        said = note(snapshot, need=self.NEED, replay=self.memplan.replay is not None)
        rest = self.body(snapshot, look, width, height - (said is not None))
        return [[(cut(text([said]), width), said[0][1])], *rest] if said is not None else rest

    def _status(self, snapshot: Snapshot, look: Look, width: int) -> Line:
        known = snapshot.state == "ok" or snapshot.kept
        about = self.about(snapshot) if known else ""
        words, role = look.clock
        title = f" memplan  {tr(self.TITLE_WORD)}   "
        room = width - len(title) - len(words) - 3
        while len(about) > room and " · " in about:
            about = about.rpartition(" · ")[0]  # the last facts go, whole
        return ends([(title + about, "")], [(f"{words} ", role)], width)
