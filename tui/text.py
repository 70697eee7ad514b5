"""Every word that the dashboard shows, in the reader's language.

One gettext catalogue, locale/LANGUAGE/LC_MESSAGES/memplan.mo; the English words are its keys. `tr`
is called when a screen is drawn, never at import, so that the language can be chosen first.
"""

from __future__ import annotations

import gettext
from collections.abc import Mapping
from pathlib import Path

__all__ = ["LANGUAGES", "choose", "tr", "use"]

LANGUAGES = ("en", "pt_BR")
"""Languages that are complete."""

FOLDER = Path(__file__).parent / "locale"

_VARIABLES = ("LC_ALL", "LC_MESSAGES", "LANG")

_current: list[gettext.NullTranslations] = [gettext.NullTranslations()]


def choose(setting: str, environ: Mapping[str, str]) -> str:
    """Return the language to speak: the setting, else the first locale variable that is set.

    Args:
        setting: "auto" or a language such as "pt_BR".
        environ: LC_ALL, LC_MESSAGES and LANG are asked in this order.
    """
    wanted = setting
    if setting in {"", "auto"}:
        wanted = next((environ[name] for name in _VARIABLES if environ.get(name)), "en")
    short = wanted.split(".")[0].split("@")[0].replace("-", "_")
    return "pt_BR" if short.split("_")[0].lower() == "pt" else "en"


def use(language: str) -> None:
    """Speak a language from now on; an unknown one is English."""
    _current[0] = gettext.translation(
        "memplan", localedir=FOLDER, languages=[language], fallback=True
    )


def tr(text: str) -> str:
    """Return a text in the language in use."""
    return _current[0].gettext(text)
