"""Brings the dashboard's catalogue up to date: new texts in, old ones out, compiled.

    .venv/bin/python scripts/messages.py [--check]

Texts are the first argument of `tr(...)` and `mark(...)` in tui/. New ones are left untranslated;
`--check` writes nothing and fails where anything is missing, unused or not compiled.
"""

from __future__ import annotations

import datetime as dt
import io
import sys
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "tui"
KEYWORDS = {"tr": None, "mark": None}

_ALWAYS = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
"""A catalogue of the same texts has the same bytes."""


def texts() -> list[str]:
    """Return every text of the dashboard, sorted."""
    found = extract_from_dir(
        str(FOLDER), method_map=[("**.py", "python")], keywords=KEYWORDS, comment_tags=()
    )
    return sorted({str(message) for _, _, message, _, _ in found})


def catalogue(language: str) -> Catalog:
    """Return a language's catalogue as it is stored."""
    path = po_path(language)
    if not path.exists():
        return Catalog(locale=language)
    with path.open("rb") as file:
        return read_po(file, locale=language)


def po_path(language: str) -> Path:
    """Return where a language's texts are."""
    return FOLDER / "locale" / language / "LC_MESSAGES" / "memplan.po"


def updated(old: Catalog, wanted: list[str], language: str) -> Catalog:
    """Return a catalogue with exactly the wanted texts."""
    new = Catalog(
        locale=language,
        project="memplan",
        copyright_holder="memplan",
        header_comment="# The dashboard's texts.",
        fuzzy=False,
    )
    for text in wanted:
        known = old.get(text)
        new.add(text, known.string if known is not None else "")
    return new


def compiled(found: Catalog) -> bytes:
    """Return a catalogue as gettext reads it."""
    out = io.BytesIO()
    found.creation_date = found.revision_date = _ALWAYS
    write_mo(out, found)
    return out.getvalue()


def problems(language: str) -> list[str]:
    """Return what is wrong with a language: missing, unused, or compiled from other texts."""
    stored, wanted = catalogue(language), texts()
    known = {str(message.id): message.string for message in stored if message.id}
    wrong = [f"no translation: {text!r}" for text in wanted if not known.get(text)]
    wrong += [f"not used: {text!r}" for text in known if text not in wanted]
    compiled_path = po_path(language).with_suffix(".mo")
    if not compiled_path.exists() or compiled_path.read_bytes() != compiled(stored):
        wrong.append(f"{compiled_path.name} is not compiled from the texts")
    return wrong


def main() -> int:
    """Update, or check."""
    if "--check" in sys.argv:
        wrong = problems("pt_BR")
        sys.stderr.write("\n".join([*wrong, ""]) if wrong else "")
        return 1 if wrong else 0
    found = updated(catalogue("pt_BR"), texts(), "pt_BR")
    path = po_path("pt_BR")
    path.parent.mkdir(parents=True, exist_ok=True)
    out = io.BytesIO()
    write_po(out, found, width=96, omit_header=False, sort_output=True)
    lines = [
        line
        for line in out.getvalue().decode().splitlines()
        if not line.startswith(
            (
                '"POT-Creation',
                '"PO-Revision',
                '"Last-Tr',
                '"Language-Team',
                '"Generated-By',
                '"Report-Msgid',
            )
        )
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    path.with_suffix(".mo").write_bytes(compiled(catalogue("pt_BR")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
