"""Where a reader's queries go: to SQLite's own driver, or to PostgreSQL by SQLAlchemy.

The queries are the same text for both (`memplan.store.queries`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from memplan.store.readonly import begin_read, connect, is_url, translated
from memplan.store.version import SQLITE_TABLES

__all__ = ["Ask", "Source", "open_source"]


class Ask(Protocol):
    """Runs a query inside of a read transaction and returns all rows."""

    def __call__(self, query: str, **asked: Any) -> list[Any]:
        """Return all rows.

        Args:
            query: its text, with :names of parameters.
            asked: the parameters.
        """
        ...


class Source(Protocol):
    """A database that can be read."""

    tables: str
    """Query for the names of its tables."""

    def reading(self) -> AbstractContextManager[Ask]:
        """Open one short read transaction; errors are ours."""
        ...

    def close(self) -> None:
        """Give the connection back."""
        ...


def open_source(database: str | Path) -> Source:
    """Return the database as a source. Raises StoreMissingError when there is no file yet."""
    return _Url(str(database)) if is_url(database) else _File(Path(database))


class _File:
    """An SQLite file; whoever reads at the same time in another thread waits."""

    tables = SQLITE_TABLES

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with translated(path):
            self._connection = connect(path)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Ask]:
        connection = self._connection

        def ask(query: str, **asked: Any) -> list[Any]:
            return connection.execute(query, asked).fetchall()

        with self._lock, translated(self._path):
            begin_read(connection)
            try:
                yield ask
            finally:
                connection.rollback()  # nothing was written; harmless where none is open

    def close(self) -> None:
        with self._lock:
            self._connection.close()


class _Url:
    """A fleet's database."""

    tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema"

    def __init__(self, url: str) -> None:
        from memplan.store.engine import reader_engine

        self._url = url
        self._engine = reader_engine(url)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Ask]:
        import sqlalchemy

        from memplan.store import engine

        with engine.translated(self._url), self._engine.connect() as connection, connection.begin():

            def ask(query: str, **asked: Any) -> list[Any]:
                rows = connection.execute(sqlalchemy.text(query), asked)
                return [tuple(row) for row in rows]

            yield ask

    def close(self) -> None:
        self._engine.dispose()
