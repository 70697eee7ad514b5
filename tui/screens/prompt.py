"""One line to type: a filter, or a time to go to."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

__all__ = ["Prompt"]


class Prompt(ModalScreen[str | None]):
    """Asks for a text; escape gives None."""

    DEFAULT_CSS = """
    Prompt { align: center middle; }
    Prompt > Vertical { width: 72; max-width: 100%; height: auto; padding: 0 1;
        background: $surface; border: round $primary; }
    Prompt Input, Prompt Input:focus { border: none; height: 1; padding: 0; background: $panel; }
    Prompt:nocolor Input { text-style: underline; }
    Prompt:nocolor > Vertical { border: ascii $foreground; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Close", id="prompt.close", show=False)
    ]

    def __init__(self, title: str, value: str = "") -> None:
        """Set up.

        Args:
            title: what is asked.
            value: what stands there at first.
        """
        super().__init__()
        self._title = title
        self._value = value

    def compose(self) -> ComposeResult:
        """Lay out."""
        with Vertical():
            yield Static(self._title, markup=False)
            yield Input(self._value, id="typed")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Give the text back."""
        self.dismiss(event.value)
