"""Command lines without their secrets. They are stored only where somebody asked for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

__all__ = ["HIDDEN", "redacted"]

HIDDEN = "***"

_WORDS = "api[-_]?key|access[-_]?key|auth|bearer|credential|passw(?:or)?d|passphrase|secret|token"
_OPTION = re.compile(rf"^--?[\w.-]*(?:{_WORDS})[\w.-]*$", re.IGNORECASE)
_ASSIGNED = re.compile(rf"^(-{{0,2}}[\w.-]*(?:{_WORDS})[\w.-]*)=", re.IGNORECASE)
_IN_URL = re.compile(r"(\w+://[^\s:/@]*:)[^\s@]+@")
_IN_QUERY = re.compile(rf"([?&;][\w.-]*(?:{_WORDS})[\w.-]*=)[^&;\s]+", re.IGNORECASE)
_KNOWN = re.compile(
    r"\b(?:hf_\w{8,}|sk-[\w-]{8,}|gh[opsu]_\w{8,}|github_pat_\w{8,}|glpat-[\w-]{8,}|xox[abp]-[\w-]{8,}"
    r"|AKIA[0-9A-Z]{12,}|eyJ[\w-]{10,}\.[\w-]+\.[\w-]*)"
)


def redacted(words: Iterable[str]) -> tuple[str, ...]:
    """Return a command line in which what looks like a secret is "***".

    Hidden: the value after an option such as --token or --db-password, and in NAME_TOKEN=value;
    passwords in URLs; and the forms of well-known tokens, wherever they stand. A secret that looks
    like nothing of that kind is not found.
    """
    return tuple(_words(words))


def _words(words: Iterable[str]) -> Iterator[str]:
    hide_next = False
    for word in words:
        if hide_next and not word.startswith("-"):
            yield HIDDEN
            hide_next = False
            continue
        hide_next = bool(_OPTION.match(word))
        yield _word(word)


def _word(word: str) -> str:
    if match := _ASSIGNED.match(word):
        return f"{match[1]}={HIDDEN}"
    word = _IN_URL.sub(rf"\1{HIDDEN}@", word)
    word = _IN_QUERY.sub(rf"\1{HIDDEN}", word)
    return _KNOWN.sub(HIDDEN, word)
