"""Colours: measured blue, plan orange, over vermillion (Okabe-Ito), told apart by everyone.

Meaning never hangs on colour alone: words and glyphs say the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from rich.style import Style
from textual.theme import BUILTIN_THEMES, Theme

__all__ = ["DEFAULT", "TERMINAL", "THEMES", "choose", "role_styles"]

DEFAULT = "memplan-dark"
TERMINAL = "memplan-terminal"

_DIM = {
    "memplan-dark": "#9A9A9A",
    "memplan-light": "#5F5F5F",
    "memplan-contrast": "#D0D0D0",
    TERMINAL: "bright_black",
}
"""Of what matters less, by theme."""

_RULE = {
    "memplan-dark": "#3A3A3A",
    "memplan-light": "#C8C8C8",
    "memplan-contrast": "#8A8A8A",
    TERMINAL: "bright_black",
}
"""Of rules, which carry no text."""

_CURSOR = {"memplan-dark": "#2E3A42", "memplan-light": "#D4E6F2", "memplan-contrast": "#404040"}
"""Behind the row of the cursor."""

_ANSI = BUILTIN_THEMES["ansi-dark"]

THEMES = (
    Theme(
        name="memplan-dark",
        primary="#56B4E9",
        secondary="#E69F00",
        accent="#56B4E9",
        foreground="#E6E6E6",
        background="#121212",
        surface="#1B1B1B",
        panel="#242424",
        success="#2FBF8F",
        warning="#E69F00",
        error="#FF7043",
        dark=True,
    ),
    Theme(
        name="memplan-light",
        primary="#0072B2",
        secondary="#8A5A00",
        accent="#0072B2",
        foreground="#1A1A1A",
        background="#FFFFFF",
        surface="#F4F4F4",
        panel="#E9E9E9",
        success="#00694D",
        warning="#8A5A00",
        error="#A83A00",
        dark=False,
    ),
    Theme(
        name="memplan-contrast",
        primary="#7FD4FF",
        secondary="#FFD000",
        accent="#FFFFFF",
        foreground="#FFFFFF",
        background="#000000",
        surface="#000000",
        panel="#303030",
        success="#00FFB0",
        warning="#FFD000",
        error="#FF9070",
        dark=True,
    ),
    Theme(
        name=TERMINAL,
        primary="ansi_bright_blue",
        secondary="ansi_yellow",
        accent="ansi_bright_blue",
        foreground="ansi_default",
        background="ansi_default",
        surface="ansi_default",
        panel="ansi_default",
        boost="ansi_default",
        success="ansi_green",
        warning="ansi_yellow",
        error="ansi_bright_red",
        dark=True,
        ansi=True,
        variables=dict(_ANSI.variables),
    ),
)
"""Contrast of text on its background: at least 4.5 in each theme; the last has the terminal's own
colours."""


def choose(setting: str, environ: Mapping[str, str]) -> str:
    """Return the theme: the setting; with "auto" the terminal's colours where it has only few.

    Without colour it is always the terminal's: the others would turn into shades of grey.
    """
    if environ.get("NO_COLOR"):
        return TERMINAL
    if setting not in {"", "auto"}:
        return setting
    rich_colours = environ.get("COLORTERM", "").lower() in {"truecolor", "24bit"}
    return DEFAULT if rich_colours else TERMINAL


def _plain(colour: str | None) -> str:
    return (colour or "default").removeprefix("ansi_")


def role_styles(theme: Theme, *, colour: bool = True) -> dict[str, Style]:
    """Return the style of each role: every piece has one, also without colour.

    Args:
        theme: ours, or one of Textual's.
        colour: False when the terminal wants none: attributes alone then tell what stands out.
    """
    if not colour:
        styles = {role: Style() for role in ("", "dim", "rule", "measured", "plan", "band", "key")}
        styles |= {role: Style() for role in ("capacity", "axis", "empty", "good")}
        styles |= {role: Style(bold=True) for role in ("bold", "title", "bad", "warn")}
        styles["key"] = Style(bold=True)
        styles["head"] = Style(underline=True)
        return {**styles, "cursor": Style(reverse=True), "status": Style(reverse=True)}
    text, dim = _plain(theme.foreground), _DIM.get(theme.name, _plain(theme.foreground))
    blue, orange, red = (_plain(c) for c in (theme.primary, theme.secondary, theme.error))
    return {
        "": Style(color=text),
        "dim": Style(color=dim),
        "rule": Style(color=_RULE.get(theme.name, dim)),
        "bold": Style(color=text, bold=True),
        "title": Style(color=text, bold=True),
        "head": Style(color=dim),
        "key": Style(color=blue, bold=True),
        "good": Style(color=_plain(theme.success)),
        "warn": Style(color=_plain(theme.warning), bold=True),
        "bad": Style(color=red, bold=True),
        "measured": Style(color=blue),
        "plan": Style(color=orange),
        "band": Style(color=orange, dim=theme.ansi),
        "capacity": Style(color=dim),
        "axis": Style(color=dim),
        "empty": Style(color=text),
        "cursor": Style(reverse=True)
        if theme.ansi
        else Style(color=text, bgcolor=_CURSOR.get(theme.name, _plain(theme.panel)), bold=True),
        "status": Style(bold=True, reverse=True)
        if theme.ansi
        else Style(color=text, bgcolor=_plain(theme.panel), bold=True),
    }
