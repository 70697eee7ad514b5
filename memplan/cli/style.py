"""Colour on a terminal, and only there."""

from __future__ import annotations

import os
import sys

import click

__all__ = ["blue", "bold", "choose", "decide_color", "echo", "green", "red"]


def decide_color(option: str = "auto") -> bool | None:
    """Return True or False where the user decided, None to let click look at the stream.

    Order: the option, NO_COLOR (not empty), FORCE_COLOR (not empty), TERM=dumb.
    """
    if option != "auto":
        return option == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return False if os.environ.get("TERM") == "dumb" else None


def choose(option: str) -> bool | None:
    """Take the command line's --color into force and return the decision."""
    _chosen["color"] = decide_color(option)
    return _chosen["color"]


_chosen: dict[str, bool | None] = {}


def _paint(text: str, *, err: bool, **how: bool | str) -> str:
    wish = _chosen["color"] if "color" in _chosen else decide_color()
    stream = sys.stderr if err else sys.stdout
    if wish is False or (wish is None and not stream.isatty()):
        return text
    return click.style(text, **how)  # type: ignore[arg-type]


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print text whose colour has been decided: click would strip what --color always forced."""
    click.echo(text, err=err, nl=nl, color=True)


def bold(text: str, *, err: bool = False) -> str:
    """Return bold text."""
    return _paint(text, err=err, bold=True)


def green(text: str, *, err: bool = False) -> str:
    """Return green text: it fits."""
    return _paint(text, err=err, fg="green", bold=True)


def red(text: str, *, err: bool = False) -> str:
    """Return red text: it does not fit, or an error."""
    return _paint(text, err=err, fg="red", bold=True)


def blue(text: str, *, err: bool = False) -> str:
    """Return blue text: a hint."""
    return _paint(text, err=err, fg="blue", bold=True)
