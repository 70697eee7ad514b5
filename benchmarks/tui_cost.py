"""What the dashboard costs: first screen, idle CPU, memory, bytes to the terminal, a key press.

    .venv/bin/python benchmarks/tui_cost.py [--samples N] [--seconds S] [--database FILE]

The database holds N samples of a machine with 8 GPUs (default 10 million; FILE keeps it for the
next time; a copy of it is measured), a run of them goes on at 1 Hz while the dashboard watches.
First screen = from exec to the first one with what was measured on it, as of a program that pip has
installed: its byte code is there, and the working folder has no settings of its own. An editable
installation, which looks each module up anew, says so. Beside it: a Textual program with one word
on it, below which nothing can come, and memray's live screen, from this environment or from the
one that MEMPLAN_PEERS names (default: .venv-peers; python -m venv .venv-peers, then
.venv-peers/bin/pip install memray).
"""

from __future__ import annotations

import argparse
import compileall
import fcntl
import importlib.metadata
import importlib.util
import json
import os
import pty
import select
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from memplan.cli.whatif import WhatIf
from memplan.store.writer import LocalWriter
from memplan.types import Device, Plan, Run, Sample, Series
from memplan.units import GIB, MIB

ROOT = Path(__file__).parent.parent
GPUS = 8
SIZES = ((80, 24), (200, 50))
STARTS = 5
WARM_S = 8.0
NS = 10**9
BEFORE_S = 900
"""So long the run has gone on, and the machine was sampled, when the dashboard starts."""
TICKS = 2000
"""Instants that are written in one transaction."""


BARE = """
from textual.app import App
from textual.widgets import Static
class Bare(App):
    def compose(self):
        yield Static("used by all")
Bare().run()
"""
"""The least that a program of this library does."""


@dataclass
class Cost:
    """What one program cost."""

    first_s: float
    start_cpu_s: float
    idle_percent: float
    rss_mb: float
    bytes_per_s: float


def series() -> list[Series]:
    """Return the machine's series."""
    found = [
        Series(run_id=None, entity="host", metric=metric)
        for metric in ("total_bytes", "available_bytes", "used_bytes")
    ]
    for i in range(GPUS):
        found += [
            Series(run_id=None, entity=f"gpu:GPU-{i}", metric=metric)
            for metric in ("total_bytes", "used_bytes", "free_bytes")
        ]
    return found


def machine_samples(t_ns: int, tick: int, known: list[Series]) -> list[Sample]:
    """Return one instant of the machine."""
    values = {"total_bytes": 80 * GIB, "used_bytes": (20 + tick % 40) * GIB}
    free = values["total_bytes"] - values["used_bytes"]
    values |= {"available_bytes": free, "free_bytes": free}
    return [Sample(series=s, t_ns=t_ns, value=values[s.metric]) for s in known]


def fill(database: Path, samples: int) -> float:
    """Write the samples; return the seconds that it took."""
    known = series()
    ticks = samples // len(known)
    begin = time.time_ns() - ticks * NS
    started = time.perf_counter()
    with LocalWriter(database) as writer:
        writer.save_devices(
            [
                Device(
                    name=f"cuda:{i}",
                    kind="gpu",
                    capacity_bytes=80 * GIB,
                    uuid=f"GPU-{i}",
                    label="H100",
                )
                for i in range(GPUS)
            ]
        )
        for first in range(0, ticks, TICKS):
            batch: list[Sample] = []
            for tick in range(first, min(first + TICKS, ticks)):
                batch += machine_samples(begin + tick * NS, tick, known)
            writer.write_samples(batch)
    return time.perf_counter() - started


def feed(database: Path, ready: threading.Event, stop: threading.Event) -> None:
    """Write a run with 8 GPUs and the machine, once a second, until told to stop.

    Both go back a quarter of an hour, so that the dashboard's ten minutes are full.
    """
    known, begin = series(), time.time_ns() - BEFORE_S * NS
    run = Run(
        id="r-bench",
        plan_id=None,
        command=("python", "train.py"),
        host="bench",
        pid=1,
        started_ns=begin,
    )
    own = [Series(run_id=run.id, entity="tree", metric="rss_bytes")]
    own += [
        Series(run_id=run.id, entity=f"gpu:GPU-{i}/tree", metric="used_bytes") for i in range(GPUS)
    ]
    own += [
        Series(run_id=run.id, entity=f"process:{pid}", metric="rss_bytes") for pid in range(2, 10)
    ]
    with LocalWriter(database) as writer:
        writer.save_run(run)
        for i in range(BEFORE_S):
            writer.write_samples(
                [Sample(series=s, t_ns=begin + i * NS, value=(500 + i % 90) * MIB) for s in own]
            )
            writer.write_samples(machine_samples(begin + i * NS, i, known))
        tick = BEFORE_S
        ready.set()
        while not stop.wait(1.0):
            now, tick = time.time_ns(), tick + 1
            batch = machine_samples(now, tick, known)
            batch += [Sample(series=s, t_ns=now, value=(500 + tick % 90) * MIB) for s in own]
            writer.write_samples(batch)


def measured(
    command: list[str], sign: bytes, size: tuple[int, int], seconds: float, env: dict[str, str]
) -> Cost:
    """Start a program in a terminal of its own, wait for a word, then let it stand."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdin=side,
        stdout=side,
        stderr=side,
        env=env,
        cwd=tempfile.gettempdir(),
        start_new_session=True,
    )
    os.close(side)
    try:
        first = _until(main, sign, started)
        tree = psutil.Process(process.pid)
        start_cpu = _cpu(tree)
        if not seconds:
            return Cost(first, start_cpu, 0.0, 0.0, 0.0)
        _drain(main, WARM_S)
        before, began = _cpu(tree), time.perf_counter()
        count = _drain(main, seconds)
        took = time.perf_counter() - began
        idle = 100 * (_cpu(tree) - before) / took
        memory = sum(p.memory_info().rss for p in (tree, *tree.children(recursive=True)))
        return Cost(first, start_cpu, idle, memory / 1e6, count / took)
    finally:
        process.kill()
        process.wait()
        os.close(main)


def _cpu(process: psutil.Process) -> float:
    total = 0.0
    for found in (process, *process.children(recursive=True)):
        times = found.cpu_times()
        total += times.user + times.system
    return total


def _until(fd: int, sign: bytes, started: float) -> float:
    seen = b""
    while sign not in seen:
        if time.perf_counter() - started > 120:
            raise SystemExit(f"{sign!r} never came: {seen[-2000:]!r}")
        if select.select([fd], [], [], 0.05)[0]:
            seen = (seen + os.read(fd, 65536))[-200_000:]
    return time.perf_counter() - started


def _drain(fd: int, seconds: float) -> int:
    count, end = 0, time.perf_counter() + seconds
    while (left := end - time.perf_counter()) > 0:
        if select.select([fd], [], [], left)[0]:
            count += len(os.read(fd, 65536))
    return count


def what_if() -> tuple[float, float, str]:
    """Return median and worst CPU seconds of a key press on a 70B plan, and the worst key."""
    from memplan.cli.build import build_plan
    from memplan.cli.main import cli, collect_rarely

    words = ["llama-3.1-70b", "--device", "h100", "--gpus", "2", "--host-memory", "128GiB"]
    command = cli.get_command(None, "plan")  # type: ignore[arg-type]
    assert command is not None
    context = command.make_context("plan", [*words, "--disk", "0"])
    extra = ("save", "as_json", "plain", "quiet", "unit")
    options = {name: value for name, value in context.params.items() if name not in extra}
    plan = build_plan(options)
    planner = WhatIf()
    planner.prepare(plan)
    times: list[tuple[float, str]] = []
    collect_rarely()
    for changes, key in presses(planner, plan):
        began = time.process_time()
        planner.replan(plan, changes)
        times.append((time.process_time() - began, key))
    worst, key = max(times)
    return statistics.median(t for t, _ in times), worst, key


def presses(planner: WhatIf, plan: Plan) -> Iterator[tuple[dict[str, str], str]]:
    """Yield the choices after each of 60 keys, as a person presses them: each option in turn."""
    now, choices = dict(planner.current(plan)), planner.choices(plan)
    names = ["quant", "context", "context", "batch", "device", "quant", "gpus", "batch"]
    for name in (names[i % len(names)] for i in range(60)):
        values = choices[name]
        now[name] = values[(values.index(now[name]) + 1) % len(values)]
        own = planner.current(plan)
        yield {k: v for k, v in now.items() if v != own[k]}, f"{name} {now[name]}"


def row(name: str, value: str, target: str) -> None:
    """Print one line."""
    print(f"{name:<44} {value:>16}   target {target}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--database", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kept, database = arguments.database or Path(folder) / "kept.db", Path(folder) / "m.db"
        if not kept.exists():
            took = fill(kept, arguments.samples)
            print(f"{arguments.samples:,} samples written in {took:.0f} s")
        shutil.copy(kept, database)
        print(f"database: {database.stat().st_size / 1e6:.0f} MB, load {os.getloadavg()[0]:.1f}")
        dashboard(database, arguments.seconds)
    median, worst, key = what_if()
    row("what-if, 70B, CPU per key press, median", f"{1e3 * median:.0f} ms", "< 50 ms")
    row(f"what-if, the worst ({key})", f"{1e3 * worst:.0f} ms", "< 50 ms")
    peer(arguments.seconds)


def compiled() -> None:
    """Make the byte code that pip makes when it installs: without it each start compiles anew."""
    for name in ("memplan", "memplan_tui", "textual", "rich", "click", "platformdirs"):
        found = importlib.util.find_spec(name)
        assert found is not None
        assert found.submodule_search_locations
        for place in found.submodule_search_locations:
            if not compileall.compile_dir(place, quiet=1):
                raise SystemExit(f"no byte code can be written in {place}")


def dashboard(database: Path, seconds: float) -> None:
    """Measure memplan's own."""
    compiled()
    env = {**os.environ, "MEMPLAN_DATABASE": str(database), "COLORTERM": "truecolor"}
    env = {**env, "TERM": "xterm-256color", "LANG": "C.UTF-8", "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "memplan", "tui"]
    bare = [sys.executable, "-c", BARE]
    ready, stop = threading.Event(), threading.Event()
    writer = threading.Thread(target=feed, args=(database, ready, stop))
    writer.start()
    try:
        ready.wait()
        time.sleep(2)
        least, starts = [], []
        for _ in range(STARTS):  # in turn, so that both meet the same machine
            least.append(measured(bare, b"used by all", SIZES[0], 0, env))
            starts.append(measured(command, b"used by all", SIZES[0], 0, env))
        _show_start("a bare Textual program", least, "-")
        _show_start("memplan" + editable(), starts, "< 0.6 s")
        for size in SIZES:
            _show("memplan", size, measured(command, b"used by all", size, seconds, env))
    finally:
        stop.set()
        writer.join()


def _show_start(name: str, costs: list[Cost], target: str) -> None:
    first = statistics.median(cost.first_s for cost in costs)
    cpu = statistics.median(cost.start_cpu_s for cost in costs)
    row(f"{name}: first screen, median", f"{first:.2f} s", target)
    row(f"{name}: its CPU, median", f"{cpu:.2f} s", "-")


def editable() -> str:
    """Return words for an editable installation, "" for a plain one."""
    found = importlib.metadata.distribution("memplan").read_text("direct_url.json") or "{}"
    return " (editable)" if json.loads(found).get("dir_info", {}).get("editable") else ""


def peers_python() -> str | None:
    """Return a Python that has memray, if there is one."""
    folder = Path(os.environ.get("MEMPLAN_PEERS") or ROOT / ".venv-peers")
    for python in (sys.executable, str(folder / "bin" / "python")):
        if Path(python).exists():
            asked = subprocess.run(
                [python, "-c", "import memray"], capture_output=True, check=False
            )
            if not asked.returncode:
                return python
    return None


def peer(seconds: float) -> None:
    """Measure memray's live screen, where it is installed."""
    python = peers_python()
    if python is None:
        print("memray is not installed: see the head of this file")
        return
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "target.py"
        script.write_text(
            "import time\nkept = []\nwhile True:\n    kept.append(bytearray(10**5))\n"
            "    del kept[:-50]\n    time.sleep(0.05)\n"
        )
        env = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
        command = [python, "-m", "memray", "run", "--live", str(script)]
        for size in SIZES:
            cost = measured(command, b"Heap", size, seconds, env)
            row(f"memray: first screen {size[0]}x{size[1]}", f"{cost.first_s:.2f} s", "-")
            _show("memray", size, cost)


def _show(name: str, size: tuple[int, int], cost: Cost) -> None:
    ours = name == "memplan"
    where = f"{name} {size[0]}x{size[1]}"
    row(f"{where}: idle, share of a core", f"{cost.idle_percent:.2f} %", "< 1.5 %" if ours else "-")
    row(f"{where}: resident memory", f"{cost.rss_mb:.0f} MB", "< 80 MB" if ours else "-")
    sent = f"{cost.bytes_per_s / 1e3:.1f} kB/s"
    row(f"{where}: to the terminal", sent, "< 15 kB/s" if ours else "-")


if __name__ == "__main__":
    if shutil.which("stty") is None:
        raise SystemExit("this benchmark needs a Unix terminal")
    main()
