"""Colours: measured blue, plan orange, over vermillion (Okabe-Ito), told apart by everyone.

Meaning never hangs on colour alone: words and glyphs say the same.
"""

from __future__ import annotations

from textual.theme import Theme

__all__ = ["DEFAULT", "THEMES"]

DEFAULT = "memplan-dark"

THEMES = (
    Theme(
        name="memplan-dark",
        primary="#56B4E9",
        secondary="#E69F00",
        accent="#56B4E9",
        foreground="#E6E6E6",
        background="#121212",
        surface="#1B1B1B",
        panel="#262626",
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
        panel="#E6E6E6",
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
        panel="#000000",
        success="#00FFB0",
        warning="#FFD000",
        error="#FF9070",
        dark=True,
    ),
)
"""Contrast of text on its background: at least 4.5 in each theme."""
