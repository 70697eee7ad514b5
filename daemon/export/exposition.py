"""Prometheus's text format, and the text of one part of a moment, of which little is new.

The words are those of the official client, which writes all of it each time: for 1500 series that
takes ten times as long, and its modules alone hold 4 MiB.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import compress
from operator import is_not

from memplan_daemon.export.families import Family, family_of, place
from memplan_daemon.snapshot import Part

__all__ = ["CONTENT_TYPE", "Block", "Page", "header", "labelled", "written"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def header(family: Family) -> bytes:
    """Return what stands above a metric's series."""
    kind = "counter" if family.counter else "gauge"
    about = family.help.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {_name(family)} {about}\n# TYPE {_name(family)} {kind}\n".encode()


def labelled(labels: Sequence[str], values: Sequence[str]) -> bytes:
    """Return labels as they stand behind a metric's name, by name; a half character becomes "?"."""
    pairs = sorted(zip(labels, values, strict=True))
    text = ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)
    return f"{{{text}}}".encode(errors="replace") if text else b""


def written(family: Family) -> bytes:
    """Return a metric with all its series."""
    name = _name(family).encode()
    lines = [
        b"%b%b %b\n" % (name, _kept(family.labels, values), str(number).encode())
        for values, number in family.series
    ]
    return b"".join((header(family), *lines))


_kept = lru_cache(256)(labelled)
"""For those that are shown beside a moment: device names and runs stay for long."""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _name(family: Family) -> str:
    return f"{family.name}_total" if family.counter else family.name


@dataclass(slots=True, eq=False)
class Block:
    """The series of one metric of a part."""

    header: bytes
    """What stands above them; the same for the same metric of another run."""
    name: bytes
    """The metric's, as in each line."""
    factor: float
    """Our number times this is what is shown."""
    lines: list[bytes] = field(default_factory=list)
    """Of each series one, but only while they are collected."""
    text: bytes = b""
    """All of them."""

    def add(self, labels: bytes, value: int) -> int:
        """Collect one more series; return its row."""
        self.lines.append(b"%b%b %b\n" % (self.name, labels, self._number(value)))
        return len(self.lines) - 1

    def close(self) -> None:
        """Have collected all."""
        self.text = b"".join(self.lines)
        self.lines = []

    def change(self, values: Iterable[tuple[int, int]]) -> None:
        """Write other numbers into (row, value)."""
        lines = self.text.split(b"\n")
        for row, value in values:
            beginning, _, _ = lines[row].rpartition(b" ")
            lines[row] = b"%b %b" % (beginning, self._number(value))
        self.text = b"\n".join(lines)

    def _number(self, value: int) -> bytes:
        return str(value if self.factor == 1.0 else value * self.factor).encode()


class Page:
    """The text of one part, from moment to moment."""

    def __init__(self, part: Part) -> None:
        """Write all of it."""
        self._write(part)

    def turn(self, part: Part) -> None:
        """Become the text of a later part of the same run."""
        if part.names is not self._part.names:
            self._write(part)
        elif part is not self._part:
            self._change(part)

    def _write(self, part: Part) -> None:
        self._part = part
        found: dict[tuple[str, str], Block | None] = {}
        places = {entity: place(part.run, entity) for entity, _ in part.names}
        labels = {
            entity: labelled(where[1], where[2])
            for entity, where in places.items()
            if where is not None
        }
        self._of: list[Block | None] = []
        self._rows: list[int] = []
        for (entity, metric), value in zip(part.names, part.values, strict=True):
            block = None
            if (where := places[entity]) is not None:
                key = where[0], metric
                if key not in found:
                    found[key] = _block(where[0], where[1], metric)
                block = found[key]
            self._of.append(block)
            self._rows.append(-1 if block is None else block.add(labels[entity], value))
        self.blocks = [block for block in found.values() if block is not None]
        """What it is made of."""
        for block in self.blocks:
            block.close()

    def _change(self, part: Part) -> None:
        before, self._part = self._part, part
        changes: dict[Block, list[tuple[int, int]]] = {}
        for i in compress(range(len(part.values)), map(is_not, part.values, before.values)):
            if (block := self._of[i]) is not None:
                changes.setdefault(block, []).append((self._rows[i], part.values[i]))
        for block, values in changes.items():
            block.change(values)


def _block(scope: str, labels: tuple[str, ...], metric: str) -> Block | None:
    found = family_of(scope, labels, metric)
    if found is None:
        return None
    family, factor = found
    return Block(header(family), _name(family).encode(), factor)
