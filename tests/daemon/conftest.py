"""Recorded /proc folders, writers in memory, and real daemons for tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pytest
from memplan_daemon.proc import ProcFolder

from memplan.errors import MemplanError
from memplan.types import Sample


class FakeProc:
    """A /proc made of plain files; sizes in KiB, as the kernel writes them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = ProcFolder(root)

    def add(
        self,
        pid: int,
        parent: int = 1,
        *,
        rss: int = 0,
        hwm: int | None = None,
        anon: int | None = None,
        session: int = 1,
        state: str = "S",
        name: str = "python",
        pss: int | None = None,
    ) -> None:
        place = self.root / str(pid)
        place.mkdir(exist_ok=True)
        (place / "stat").write_text(f"{pid} ({name}) {state} {parent} {pid} {session} 0 -1 0\n")
        anon = rss if anon is None else anon
        lines = [f"Name:\t{name}", f"State:\t{state}", f"Pid:\t{pid}", f"PPid:\t{parent}"]
        if state != "Z":
            lines += [
                f"VmHWM:\t{rss if hwm is None else hwm:8d} kB",
                f"VmRSS:\t{rss:8d} kB",
                f"RssAnon:\t{anon:8d} kB",
                f"RssFile:\t{rss - anon:8d} kB",
                "RssShmem:\t       0 kB",
                "VmSwap:\t       0 kB",
            ]
        (place / "status").write_text("\n".join(lines) + "\n")
        if pss is not None:
            (place / "smaps_rollup").write_text(
                f"5570-7ffd ---p 0 00:00 0 [rollup]\nRss: {rss} kB\nPss: {pss} kB\n"
                "Private_Clean: 1 kB\nPrivate_Dirty: 2 kB\nPrivate_Hugetlb: 0 kB\n"
            )

    def remove(self, pid: int) -> None:
        shutil.rmtree(self.root / str(pid))


class MemoryWriter:
    """Keeps batches; raises `error` as long as it is set."""

    def __init__(self) -> None:
        self.batches: list[list[Sample]] = []
        self.saved: list[Any] = []
        self.error: MemplanError | None = None

    @property
    def samples(self) -> list[Sample]:
        return [sample for batch in self.batches for sample in batch]

    def values(self, entity: str, metric: str) -> list[int]:
        return [
            s.value for s in self.samples if (s.series.entity, s.series.metric) == (entity, metric)
        ]

    def _keep(self, value: Any) -> None:
        if self.error is not None:
            raise self.error
        self.saved.append(value)

    def save_plan(self, plan: Any) -> Any:
        self._keep(plan)
        return plan

    def save_run(self, run: Any) -> None:
        self._keep(run)

    def save_phases(self, phases: Sequence[Any]) -> None:
        self._keep(list(phases))

    def save_devices(self, devices: Sequence[Any]) -> None:
        self._keep(list(devices))

    def write_samples(self, samples: Sequence[Sample]) -> None:
        if self.error is not None:
            raise self.error
        self.batches.append(list(samples))

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        pass


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Return the condition's first true value; fail after a deadline."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return value


@pytest.fixture
def until() -> Callable[..., Any]:
    """Wait for a condition with a deadline."""
    return wait_for


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    """An empty /proc."""
    root = tmp_path / "proc"
    root.mkdir()
    return FakeProc(root)


@pytest.fixture
def writer() -> MemoryWriter:
    """A writer in memory."""
    return MemoryWriter()


@pytest.fixture
def daemons(home: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start real daemons on the test's own database; none outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "memplan", "daemon", "run", *options]
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=dict(os.environ), cwd=home
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.communicate()
