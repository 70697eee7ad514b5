"""Lines of a screen as plain values: pieces of text, each with the role that gives it a colour.

No widget, no terminal: all that a screen shows can be tested as text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "Cell",
    "Column",
    "Line",
    "Piece",
    "bar",
    "beside",
    "cut",
    "ends",
    "fitted",
    "heading",
    "length",
    "plain",
    "table",
    "text",
    "wrapped",
]

Piece = tuple[str, str]
"""Text and its role: "", "dim", "bold", "title", "head", "good", "bad", "warn", "cursor" and the
chart's roles."""

Line = list[Piece]
Cell = str | Piece

GAP = 2
"""Blanks between two columns."""

MORE = "…"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Column:
    """One column of a table."""

    label: str
    """Its heading, never shortened: a column without room is left out whole."""
    width: int = 0
    """Least characters, so that nothing jumps."""
    right: bool = True
    """Numbers stand right."""
    drop: int = 0
    """Left out when there is no room, the highest number first; 0 = never."""
    free: bool = False
    """Its text may be cut: a command, a path."""


def length(line: Line) -> int:
    """Return the characters of a line."""
    return sum(len(piece) for piece, _ in line)


def text(lines: Iterable[Line]) -> str:
    """Return lines without their roles."""
    return "\n".join("".join(piece for piece, _ in line).rstrip() for line in lines)


def cut(words: str, room: int) -> str:
    """Return free text in at most `room` characters."""
    return words if len(words) <= room else words[: max(room - 1, 0)] + MORE[: max(room, 0)]


def fitted(line: Line, width: int) -> Line:
    """Return a line of exactly `width` characters."""
    result: Line = []
    room = width
    for piece, role in line:
        if room <= 0:
            break
        result.append((piece[:room], role))
        room -= len(piece)
    return [*result, (" " * room, "")] if room > 0 else result


def heading(words: str, width: int, note: str = "") -> Line:
    """Return the head of a block: its title, a rule, and a note at the right end."""
    title = f"{words} "
    tail = f" {note}" if note and len(title) + len(note) + 5 <= width else ""
    rule = "─" * max(width - len(title) - len(tail), 0)
    return [(title, "title"), (rule, "rule"), (tail, "dim")]


def ends(left: Line, right: Line, width: int) -> Line:
    """Return two texts at the ends of a line; where they would meet, the left one is cut."""
    room = width - length(right) - 2
    if length(left) > room:
        words = cut("".join(piece for piece, _ in left), max(room, 0))
        left = [(words, left[0][1] if left else "")]
    return [*left, (" " * max(width - length(left) - length(right), 0), ""), *right]


def wrapped(words: str, width: int, role: str = "") -> list[Line]:
    """Return a text in lines."""
    import textwrap

    return [[(part, role)] for part in textwrap.wrap(words, max(width, 10))]


def beside(
    left: Sequence[Line], left_width: int, right: Sequence[Line], *, gap: int = 3
) -> list[Line]:
    """Return two blocks side by side."""
    height = max(len(left), len(right))
    rows = []
    for i in range(height):
        first = fitted(left[i] if i < len(left) else [], left_width)
        rows.append([*first, (" " * gap, ""), *(right[i] if i < len(right) else [])])
    return rows


def bar(size: float, whole: float, width: int) -> str:
    """Return a bar of `width` characters; what is there at all shows at least a trace."""
    filled = round(width * min(max(size / whole, 0.0), 1.0)) if whole > 0 else 0
    if filled == 0 and size > 0 and width > 0:
        return "▏" + "·" * (width - 1)
    return "█" * filled + "·" * (width - filled)


_PLAIN = str.maketrans("─│█▒▏·…↑→▸", "-|#+:.~^>>")


def plain(words: str) -> str:
    """Return a text in ASCII, for terminals that have nothing else: accents are left out."""
    text_ = unicodedata.normalize("NFKD", words.translate(_PLAIN))
    return "".join(
        char if ord(char) < 128 else "?" for char in text_ if not unicodedata.combining(char)
    )


def table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell]],
    width: int,
    *,
    cursor: int | None = None,
) -> list[Line]:
    """Return a heading and rows in at most `width` characters; columns without room are left out.

    Args:
        columns: what stands in each row, in order.
        rows: cells; all rows have one for each column.
        width: characters.
        cursor: row that is marked.
    """
    cells = [[cell if isinstance(cell, tuple) else (cell, "") for cell in row] for row in rows]
    sizes = [
        max(c.width, len(c.label), *(() if c.free else (len(row[i][0]) for row in cells)))
        if not c.free
        else max(c.width, len(c.label))
        for i, c in enumerate(columns)
    ]
    kept = _kept(columns, sizes, width)
    left = width - sum(sizes[i] for i in kept) - GAP * (len(kept) - 1)
    for i in kept:
        if columns[i].free and left > 0:
            longest = max((len(row[i][0]) for row in cells), default=0)
            grown = min(left, max(longest - sizes[i], 0))
            sizes[i] += grown
            left -= grown
    lines = [
        _row([(columns[i].label, "head") for i in kept], [columns[i] for i in kept], sizes, kept)
    ]
    for number, row in enumerate(cells):
        line = _row([row[i] for i in kept], [columns[i] for i in kept], sizes, kept)
        if number == cursor:
            whole = "".join(piece for piece, _ in line)
            line = [(whole.ljust(width)[:width], "cursor")]
        lines.append(line)
    return lines


def _kept(columns: Sequence[Column], sizes: Sequence[int], width: int) -> list[int]:
    kept = list(range(len(columns)))
    while sum(sizes[i] for i in kept) + GAP * (len(kept) - 1) > width:
        droppable = [i for i in kept if columns[i].drop]
        if not droppable:
            break
        kept.remove(max(droppable, key=lambda i: columns[i].drop))
    return kept


def _row(
    cells: Sequence[Piece], columns: Sequence[Column], sizes: Sequence[int], kept: Sequence[int]
) -> Line:
    line: Line = []
    for n, ((words, role), column, i) in enumerate(zip(cells, columns, kept, strict=True)):
        size = sizes[i]
        shown = cut(words, size)
        gap = " " * GAP if n else ""
        space = " " * (size - len(shown))
        line += (
            [(gap + space, ""), (shown, role)]
            if column.right
            else [(gap, ""), (shown, role), (space, "")]
        )
    return [piece for piece in line if piece[0]]
