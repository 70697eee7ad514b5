"""Recorded /proc folders, writers in memory, and real daemons for tests."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pytest
from memplan_daemon.collectors.base import Event, Gap, Reading
from memplan_daemon.proc import Process, ProcFolder
from memplan_daemon.snapshot import RunInfo

from memplan import testing
from memplan.errors import MemplanError
from memplan.types import Sample


class FakeProc(testing.FakeProc):
    """A /proc made of plain files, and what reads it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.folder = ProcFolder(root)
        self.held: dict[int, Process] = {}

    def hold(self, pid: int) -> Process:
        """Open a process once; the fixture lets go of it."""
        if pid not in self.held:
            self.held[pid] = self.folder.open(pid)
        return self.held[pid]


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

    def save_events(self, events: Sequence[Any]) -> None:
        self._keep(list(events))

    def stage_samples(self, samples: Sequence[Sample]) -> None:
        self.write_samples(samples)

    def flush(self) -> None:
        pass

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


def wait_for(condition: Callable[[], Any], seconds: float = 90.0) -> Any:
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
def kernel_kills() -> Iterator[None]:
    """Let no other test have the kernel kill something meanwhile: its count is the machine's."""
    with (Path(tempfile.gettempdir()) / "memplan-kernel-kills.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture
def proc(tmp_path: Path) -> Iterator[FakeProc]:
    """An empty /proc."""
    made = FakeProc(tmp_path / "proc")
    yield made
    for process in made.held.values():
        process.close()


@pytest.fixture(scope="session")
def built_nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake library, compiled once."""
    try:
        return testing.FakeNvml.build(tmp_path_factory.mktemp("nvml")).folder
    except testing.NoCompilerError as error:
        pytest.skip(str(error))


@pytest.fixture
def nvml(built_nvml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> testing.FakeNvml:
    """The fake library without devices; every process that is started now uses it."""
    shutil.copytree(built_nvml, tmp_path / "nvml")
    made = testing.FakeNvml(tmp_path / "nvml")
    made.write()
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


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
        environment = {"MEMPLAN_FLUSH": "0", **os.environ}  # samples are there as soon as taken
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=environment, cwd=home
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.communicate()


HOSTILE = 'a"b\\c\nd{}=,é\x85\u2028 '
"""What a driver, or whoever names a run, may say."""

METRICS = ("rss_bytes", "hwm_bytes", "power_milliwatts", "ooms_count", "final_rss_bytes")


class Weather:
    """Ticks in which all that can happen to a board happens, by dice; most of it stays the same.

    Runs, processes and metrics come, go and come again, numbers become gaps, a series is found
    twice, what has not changed is the same object, or its equal, or a list of the same objects.
    """

    def __init__(self, seed):
        self.dice = random.Random(seed)
        self.tick = 0
        self.kept = {}
        self.lists = {}
        self.watched = {}

    def happens(self, share):
        return self.dice.random() < share

    def item(self, run, entity, metric, nth):
        key = run, entity, metric, nth
        if key not in self.kept or self.happens(0.1):
            kind = Gap if self.happens(0.2) else Reading
            value = "late" if kind is Gap else self.dice.choice((0, 1, 7, 10**15))
            self.kept[key] = kind(entity, metric, value)
        elif self.happens(0.1):
            self.kept[key] = type(self.kept[key])(*self.kept[key])
        return self.kept[key]

    def collected(self, run, entities, pace):
        """Return what one collector finds of a run."""
        key = run, pace
        if key not in self.lists or self.happens(0.2):
            names = [(e, m, 0) for e in entities for m in METRICS if self.happens(0.6)]
            twice = [(e, m, 1) for e, m, _ in names if self.happens(0.02)]
            self.lists[key] = names + twice
        items = [self.item(run, *names) for names in self.lists[key]]
        if self.happens(0.05):
            items.append(Event("host", "host.clock", 0, "it moved"))
        return items

    def blow(self, board):
        """Publish one tick."""
        self.tick += 1
        due = [pace for pace in ("medium", "rare") if self.happens(0.2)]
        for run in ("r", HOSTILE, "s"):
            if self.happens(0.1):
                self.watched.pop(run, None)
            elif self.happens(0.1):
                self.watched[run] = RunInfo(pid=self.tick, uid=None)
        found = []
        of_host = ["host", "daemon", f"gpu:{HOSTILE}", "gpu:G", "strange"]
        of_run = [
            "tree",
            "cgroup",
            "gpu:G/tree",
            f"torch:{HOSTILE}",
            *(f"process:{pid}{part}" for pid in (1, 2, 3) for part in ("", "/gpu:G", "/torch:c")),
        ]
        over = [run for run in ("r", "s") if self.happens(0.05)]
        for run in dict.fromkeys([None, *self.watched, *over]):
            entities = of_host if run is None else of_run
            paces = [pace for pace in ("fast", *due) if self.happens(0.95)]
            found += [(run, self.collected(run, entities, pace)) for pace in paces]
        board.publish(t_ns=self.tick, tick=self.tick, due=due, found=found, runs=dict(self.watched))
        return due, found


@pytest.fixture(params=range(5))
def weather(request):
    """Return weather, each time another."""
    return Weather(request.param)
