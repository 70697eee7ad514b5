"""Beginnings of the Hub's files, kept by commit, and which commit a branch was at.

    <cache>/hub/<server>/<org>--<name>/refs/<revision>.json   {"commit": ..., "seconds": ...}
    <cache>/hub/<server>/<org>--<name>/<commit>/files.json    ["config.json", ...]
    <cache>/hub/<server>/<org>--<name>/<commit>/<digest>.head  size of the whole file, beginning

What belongs to a commit never changes. A damaged or foreign file is a miss, never an error, and a
cache that cannot be written is no reason to fail.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memplan.config import cache_dir
from memplan.hub.names import endpoint

__all__ = ["COMMIT", "Head", "HubStore", "Ref"]

COMMIT = re.compile(r"[0-9a-f]{40}")
"""A commit's name."""

_SIZE = struct.Struct("<Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ref:
    """What a revision meant at a time."""

    commit: str
    """40 hexadecimal digits."""
    seconds: int
    """Unix time of the Hub's answer."""


class Head:
    """The beginning of a file, as a `Source`."""

    def __init__(self, size: int, data: bytes) -> None:
        self.size = size
        """Bytes of the whole file."""
        self._data = data

    def read(self, offset: int, length: int) -> bytes:
        """Return what is known of these bytes."""
        return self._data[offset : offset + length]


class HubStore:
    """The kept part of one repository."""

    def __init__(self, repo: str) -> None:
        server = re.sub(r"[^\w.-]+", "_", endpoint().partition("://")[2])
        self._folder = cache_dir() / "hub" / server / repo.replace("/", "--")

    def ref(self, revision: str) -> Ref | None:
        """Return the commit that a revision meant when the Hub was asked last."""
        try:
            data = json.loads(self._ref_path(revision).read_bytes())
            if COMMIT.fullmatch(data["commit"]):
                return Ref(commit=data["commit"], seconds=int(data["seconds"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        return None

    def keep_ref(self, revision: str, ref: Ref) -> None:
        """Keep what a revision means now."""
        text = json.dumps({"commit": ref.commit, "seconds": ref.seconds})
        _write(self._ref_path(revision), text.encode())

    def names(self, commit: str) -> tuple[str, ...] | None:
        """Return the files of a commit, or None when it was never listed."""
        try:
            data = json.loads((self._folder / commit / "files.json").read_bytes())
            return tuple(str(name) for name in data) if isinstance(data, list) else None
        except (OSError, ValueError, RecursionError):
            return None

    def keep_names(self, commit: str, names: Sequence[str]) -> None:
        """Keep the list of a commit's files."""
        _write(self._folder / commit / "files.json", json.dumps(list(names)).encode())

    def head(self, commit: str, name: str) -> Head | None:
        """Return the kept beginning of a file, or None."""
        try:
            data = self._head_path(commit, name).read_bytes()
            (size,) = _SIZE.unpack_from(data)
            return Head(size, data[_SIZE.size :])
        except (OSError, struct.error):
            return None

    def keep_head(self, commit: str, name: str, size: int, data: bytes) -> None:
        """Keep the beginning of a file of `size` bytes."""
        _write(self._head_path(commit, name), _SIZE.pack(size) + data)

    def plain_file(self, commit: str, name: str, data: bytes) -> Path:
        """Write a small file as it is, for libraries that read from a path, and return the path.

        Raises OSError when the cache cannot be written.
        """
        path = self._folder / commit / "plain" / Path(name).name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != data:
            _replace(path, data)
        return path

    def _ref_path(self, revision: str) -> Path:
        return self._folder / "refs" / f"{_digest(revision)}.json"

    def _head_path(self, commit: str, name: str) -> Path:
        return self._folder / commit / f"{_digest(name)}.head"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _write(path: Path, data: bytes) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, data)


def _replace(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
