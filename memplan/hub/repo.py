"""One commit of a repository on the Hub: its files' names, and their beginnings.

Asked in this order: memplan's cache, huggingface_hub's cache, the Hub. A branch is looked up on
the Hub once a day; a commit never again.
"""

from __future__ import annotations

import datetime as dt
import importlib.util
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from memplan.errors import BadModelError, MissingDependencyError
from memplan.hub.names import HubName, endpoint
from memplan.hub.ranges import TIMEOUT_S, HubUnreachableError, RemoteFile, hub_errors, retrying
from memplan.hub.store import COMMIT, HubStore, Ref
from memplan.versions import installed_version

__all__ = ["HubFile", "Repo", "open_repo"]

FRESH_S = 24 * 3600
"""Seconds for which the answer about a branch is taken from the cache."""

MAX_NAMES = 100_000


class HubFile(Protocol):
    """Bytes at an offset of a file, wherever they are."""

    size: int
    """Bytes of the whole file."""

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes from an offset, fewer only at the end of the file."""


@dataclass(slots=True, kw_only=True)
class Repo:
    """One commit of a repository."""

    id: str
    """"org/name"."""
    commit: str
    """40 hexadecimal digits."""
    names: tuple[str, ...]
    """Its files, with folders."""
    seconds: int
    """Unix time at which the Hub said that the revision is this commit; 0 = not known."""
    store: HubStore = field(repr=False)
    """Where beginnings are kept."""
    reachable: bool = True
    """False when only caches may be asked, since the Hub did not answer."""
    fetched: bool = False
    """True once something came over the network."""

    def origin(self) -> str:
        """Return where the answers come from, for people."""
        text = f"{self.id}@{self.commit[:7]} on the Hub"
        if self.fetched:
            return text
        day = dt.datetime.fromtimestamp(self.seconds, dt.UTC).date()
        cached = f"from the cache of {day}" if self.seconds else "from the cache"
        return f"{text}, {'' if self.reachable else 'which cannot be reached: '}{cached}"

    def open(self, name: str) -> HubFile:
        """Return a file's beginning. Raises ModelError when no cache and no server has it."""
        kept = self.store.head(self.commit, name)
        if kept is not None:
            return kept
        path = self._downloaded(name)
        if path is not None:
            return _LocalFile(path)
        where = f"{self.id}/{name}"
        if not self.reachable:
            raise HubUnreachableError(
                f"{where}: the Hub cannot be reached and it is not in the cache",
                hint="plan it once with a connection: after that the cache answers offline",
            )
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(self.id, name, revision=self.commit, endpoint=endpoint())
        file = RemoteFile(url, where, _headers())
        self.fetched = True
        return file

    def keep(self, name: str, file: HubFile, length: int | None = None) -> None:
        """Keep the first `length` bytes, or all that was read, of a file from the network."""
        if isinstance(file, RemoteFile):
            self.store.keep_head(self.commit, name, file.size, file.head(length))

    def read(self, name: str, limit: int) -> bytes:
        """Return a whole small file, and keep it.

        Raises BadModelError for one of more than `limit` bytes, and what `open` raises.
        """
        file = self.open(name)
        if file.size > limit:
            raise BadModelError(
                f"{self.id}/{name} has {file.size} bytes: too large for a config or an index",
                hint="is it the right repository?",
            )
        data = file.read(0, file.size)
        self.keep(name, file, file.size)
        return data

    def plain_file(self, name: str, limit: int) -> Path:
        """Return a small file's path on this disk. Raises BadModelError, and what `open` raises."""
        try:
            return self.store.plain_file(self.commit, name, self.read(name, limit))
        except OSError as error:
            raise BadModelError(
                f"cannot keep {self.id}/{name}: {error.strerror or error}",
                hint="set MEMPLAN_CACHE to a folder that can be written",
            ) from error

    def code_folder(self) -> Path:
        """Download the repository's Python and JSON files, for --trust-remote-code.

        Raises ModelError.
        """
        from huggingface_hub import snapshot_download

        with hub_errors(self.id):
            return Path(
                snapshot_download(
                    self.id,
                    revision=self.commit,
                    allow_patterns=["*.py", "*.json"],
                    ignore_patterns=["*.index.json"],
                    endpoint=endpoint(),
                )
            )

    def _downloaded(self, name: str) -> Path | None:
        """Return a file of huggingface_hub's cache."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.id, name, revision=self.commit)
        return Path(found) if isinstance(found, str) else None


class _LocalFile:
    """A file that huggingface_hub has downloaded."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = path.stat().st_size

    def read(self, offset: int, length: int) -> bytes:
        with self._path.open("rb") as file:
            file.seek(offset)
            return file.read(length)


def open_repo(name: HubName) -> Repo:
    """Find the commit of a revision and the names of its files.

    Raises MissingDependencyError without huggingface_hub, HubUnreachableError when neither the Hub
    nor a cache answers, HubRefusedError when there is no such thing, BadModelError for an answer
    that makes no sense.
    """
    store = HubStore(name.repo)
    kept = _kept(name, store)
    if kept is not None and (not kept.seconds or time.time() - kept.seconds < FRESH_S):
        return kept
    if importlib.util.find_spec("huggingface_hub") is None:
        raise MissingDependencyError(
            "reading a model from the Hub needs huggingface_hub",
            hint="pip install 'memplan[models]'",
        )
    try:
        return _ask(name, store)
    except HubUnreachableError:
        offline = kept or _downloaded(name, store)
        if offline is None:
            raise
        offline.reachable = False
        return offline


def _kept(name: HubName, store: HubStore) -> Repo | None:
    exact = COMMIT.fullmatch(name.revision)
    ref = Ref(commit=name.revision, seconds=0) if exact else store.ref(name.revision)
    names = store.names(ref.commit) if ref else None
    if ref is None or names is None:
        return None
    seconds = 0 if exact else ref.seconds
    return Repo(id=name.repo, commit=ref.commit, names=names, seconds=seconds, store=store)


def _ask(name: HubName, store: HubStore) -> Repo:
    """Ask the Hub, and keep what it says."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint(), library_name="memplan")

    def ask() -> tuple[str, tuple[str, ...]]:
        info: Any = api.model_info(name.repo, revision=name.revision, timeout=TIMEOUT_S)
        return str(info.sha), tuple(str(item.rfilename) for item in info.siblings)

    commit, names = retrying(ask, name.repo)
    if not COMMIT.fullmatch(commit) or len(names) > MAX_NAMES:
        raise BadModelError(
            f"{name.repo}: the answer is not one of a Hugging Face Hub", hint="check HF_ENDPOINT"
        )
    ref = Ref(commit=commit, seconds=int(time.time()))
    store.keep_ref(name.revision, ref)
    store.keep_names(commit, names)
    seconds = ref.seconds
    return Repo(
        id=name.repo, commit=commit, names=names, seconds=seconds, store=store, fetched=True
    )


def _downloaded(name: HubName, store: HubStore) -> Repo | None:
    """Return what huggingface_hub's cache has of a repository, or None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name.repo, revision=name.revision, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    if not COMMIT.fullmatch(folder.name):
        return None
    files = (path for path in folder.rglob("*") if path.is_file())
    names = tuple(sorted(path.relative_to(folder).as_posix() for path in files))
    return Repo(id=name.repo, commit=folder.name, names=names, seconds=0, store=store)


def _headers() -> dict[str, str]:
    from huggingface_hub.utils import build_hf_headers

    version = installed_version("memplan")
    headers = build_hf_headers(library_name="memplan", library_version=version)
    return {str(key): str(value) for key, value in headers.items()}
