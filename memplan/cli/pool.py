"""Questions answered by several processes, with a bar on a terminal. torch stays in them."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar

import click

from memplan.errors import MemplanError

__all__ = ["Workers", "default_jobs"]

Q = TypeVar("Q")
A = TypeVar("A")

_PATIENCE = 1.0
"""Seconds before a bar is shown."""
_WIDTH = 30
_MOST_JOBS = 4


def default_jobs() -> int:
    """Return how many processes share the work when nobody says: the cores, up to four."""
    import os

    return max(1, min(len(os.sched_getaffinity(0)), _MOST_JOBS))


class Workers(Generic[Q, A]):
    """Processes that each call one function; started when they are first needed."""

    def __init__(self, make: Callable[[Any], Callable[[Q], A]], about: Any, *, jobs: int) -> None:
        """Remember the work.

        Args:
            make: a function of a module; called once in each process with `about`, it returns
                what answers one question.
            about: what all questions have in common.
            jobs: processes; 1 = this one answers.
        """
        self._make, self._about, self._jobs = make, about, jobs
        self._own: Callable[[Q], A] | None = None
        self._pool: Any = None

    def __enter__(self) -> Workers[Q, A]:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the processes; what they still had to do is dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=error is None, cancel_futures=True)

    def here(self, questions: Sequence[Q]) -> list[A]:
        """Answer in this process."""
        if self._own is None:
            self._own = self._make(self._about)
        return list(_shown(map(self._own, questions), len(questions)))

    def ask(self, questions: Sequence[Q]) -> list[A]:
        """Answer in the processes, in the order of the questions.

        Raises MemplanError when a process ends before it has answered.
        """
        if self._jobs == 1 or not questions:
            return self.here(questions)
        from concurrent.futures.process import BrokenProcessPool

        try:
            return list(_shown(self._started().map(_answer, questions), len(questions)))
        except BrokenProcessPool as error:
            raise MemplanError(
                "a worker process was ended, perhaps for want of memory", hint="add --jobs 1"
            ) from error

    def _started(self) -> Any:
        if self._pool is None:
            import multiprocessing
            from concurrent.futures import ProcessPoolExecutor

            self._pool = ProcessPoolExecutor(
                self._jobs,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_begin,
                initargs=(self._make, self._about),
            )
        return self._pool


_HERE: list[Callable[[Any], Any]] = []
"""What answers in this worker."""


def _begin(make: Callable[[Any], Callable[[Any], Any]], about: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _HERE[:] = [make(about)]


def _answer(question: Any) -> Any:
    return _HERE[0](question)


def _shown(answers: Iterable[A], count: int) -> Iterable[A]:
    """Yield answers; after a second a terminal sees how many there are."""
    began, bar = time.monotonic(), False
    terminal = sys.stderr.isatty()
    for i, one in enumerate(answers, 1):
        if terminal and time.monotonic() - began > _PATIENCE:
            bar = True
            done = "#" * round(_WIDTH * i / count)
            click.echo(f"\r  [{done.ljust(_WIDTH)}] {i} of {count}", err=True, nl=False)
        yield one
    if bar:
        click.echo("\r" + " " * (_WIDTH + 24) + "\r", err=True, nl=False)
