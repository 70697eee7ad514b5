"""What the daemon costs, beside what else runs here: CPU, memory, and what its targets feel.

    python benchmarks/daemon_cost.py [daemon] [scan] [disturbance] [agent]

Without a word it does all, in twelve minutes. CPU times are those that the kernel charges, so a
busy machine changes them little. All daemons and peers run at the same time, at 1 Hz, on the same
eight fake GPUs and 200 processes: every GPU's load and memory changes each second, and so does the
memory of one process of each job. `make peers` installs psrecord, gpustat and nvitop-exporter into
.venv-peers, which MEMPLAN_PEERS may name, too; node_exporter is Debian's prometheus-node-exporter,
or named by MEMPLAN_NODE_EXPORTER. Who is not there is named and left out.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from memplan.testing import FakeGpu, FakeNvml, ManualClock

GPUS, PROCESSES, SCANNED = 8, 200, 10_000
FIELDS = {"util": 37, "power": 250_000, "limit": 700_000, "temp": 54, "sm": 1980, "mem": 2619}
WARM_S, WINDOW_S = 150.0, 240.0
"""By then the first block of two minutes is packed; the window holds two more of them."""

TARGET_GIB, BLOCK_S, QUADS, READ_S = 8.0, 0.2, 200, 0.1

PEERS = Path(os.environ.get("MEMPLAN_PEERS", Path(__file__).parents[1] / ".venv-peers"))

MOVER = """
import mmap, time
while True:
    for mib in (1, 2):
        area = mmap.mmap(-1, mib * 2**20)
        for at in range(0, len(area), 4096): area[at] = 1
        time.sleep(1)
        area.close()
"""
"""A process whose memory is another one each second."""


def say(what: str, value: str, target: str = "") -> None:
    """Print one line: what, the value, the target beside it."""
    print(f"{what:58} {value:>20}  {target}", flush=True)


def family(pid: int) -> list[int]:
    """Return a process and its children."""
    found = [pid]
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        for child in text.split():
            found += family(int(child))
    return found


def cpu_s(pids: list[int]) -> float:
    """Return the CPU time of processes so far, in seconds.

    To the nanosecond for what runs; threads that have ended count in clock ticks of 10 ms.
    """
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            tasks = list(Path(f"/proc/{pid}/task").iterdir())
            exact = sum(int((t / "schedstat").read_text().split()[0]) for t in tasks) / 1e9
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += max(exact, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
    return total


def memory_mib(pids: list[int], key: str = "Rss") -> float:
    """Return the sum of a line of smaps_rollup, in MiB."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(key + ":"):
                    total += int(line.split()[1])
    return total / 1024


@contextlib.contextmanager
def crowd(nvml: FakeNvml) -> Iterator[list[int]]:
    """Start PROCESSES on GPUS fake devices, in as many jobs; one of each job moves."""
    started = [
        subprocess.Popen(
            [sys.executable, "-SIc", MOVER] if i < GPUS else ["sleep", "3600"],
            env={**os.environ, "TORCHELASTIC_RUN_ID": f"job-{i % GPUS}"},
        )
        for i in range(PROCESSES)
    ]
    ended = threading.Event()
    pids = [process.pid for process in started]
    stirrer = threading.Thread(target=stir, args=(nvml, pids, ended))
    try:
        change(nvml, pids)
        stirrer.start()
        yield pids
    finally:
        ended.set()
        stirrer.join()
        for process in started:
            process.kill()
        for process in started:
            process.wait()


def change(nvml: FakeNvml, pids: list[int]) -> None:
    """Let every GPU report another load, and other bytes of itself and of its first process."""
    nvml.gpus = [
        FakeGpu(
            uuid=f"GPU-{i}",
            used=2**30 * (i + 1) + random.randrange(2**9) * 2**20,
            fields={**FIELDS, "util": random.randrange(100), "power": random.randrange(700_000)},
            compute={
                pid: 2**28 + (random.randrange(2**9) * 2**20 if pid == pids[i] else 0)
                for pid in pids[i::GPUS]
            },
        )
        for i in range(GPUS)
    ]
    nvml.write()


def stir(nvml: FakeNvml, pids: list[int], ended: threading.Event) -> None:
    """Change the GPUs once a second."""
    while not ended.wait(1.0):
        change(nvml, pids)


@dataclass(slots=True)
class Subject:
    """A program that is measured."""

    name: str
    command: list[str]
    environment: dict[str, str]
    port: int | None = None
    """Asked for its metrics once a second."""
    ours: bool = False
    """Held against the targets."""
    times: int = 1
    """It watches one process, and would have to run so often."""
    pid: int = 0

    @property
    def there(self) -> bool:
        """Tell whether it is installed."""
        return shutil.which(self.command[0]) is not None


GPUSTAT = """
import io, time, gpustat
while True:
    gpustat.new_query().print_formatted(io.StringIO())
    time.sleep(1)
"""
"""What its watch mode does, without a terminal."""


def subjects(folder: Path, environment: dict[str, str], pids: list[int]) -> list[Subject]:
    """Return our daemon three times, and the peers."""
    found = []
    for number, (what, watched, port) in enumerate(
        (
            (f"daemon, {PROCESSES} processes on the GPUs, listed", False, None),
            (f"daemon, {PROCESSES} processes watched", True, None),
            (f"daemon, {PROCESSES} processes watched, scraped", True, 19464),
        )
    ):
        (folder / str(number)).mkdir()
        command = [sys.executable, "-m", "memplan", "daemon", "run", "--interval", "1"]
        settings = {
            "MEMPLAN_DATABASE": str(folder / str(number) / "memplan.db"),
            "MEMPLAN_CPU_BUDGET": "0",
            "MEMPLAN_PROMETHEUS": str(port or "off"),
        }
        watch = ["--watch", "gpu:all"] if watched else []
        found.append(
            Subject(what, [*command, *watch], {**environment, **settings}, port, ours=True)
        )
    programs = PEERS / "bin"
    node = os.environ.get("MEMPLAN_NODE_EXPORTER", "prometheus-node-exporter")
    listen = ["--bind-address", "127.0.0.1", "--port", "19465"]
    web = ["--web.listen-address", "127.0.0.1:19466"]
    log = ["--interval", "1", "--log", os.devnull]
    python = str(programs / "python")
    return [
        *found,
        Subject(
            "nvitop-exporter, scraped",
            [str(programs / "nvitop-exporter"), *listen],
            environment,
            19465,
        ),
        Subject("gpustat, one query a second", [python, "-c", GPUSTAT], environment),
        Subject("node_exporter, scraped", [node, *web], environment, 19466),
        Subject(
            "psrecord, 1 process",
            [str(programs / "psrecord"), str(pids[0]), *log],
            environment,
            times=PROCESSES,
        ),
    ]


@contextlib.contextmanager
def running(command: list[str], environment: dict[str, str]) -> Iterator[int]:
    """Run a program in the background; yields its pid."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def scrape(ports: list[int], ended: threading.Event) -> None:
    """Ask Prometheus endpoints once a second."""
    while not ended.wait(1.0):
        for port in ports:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read()


def daemon() -> None:
    """Measure our own daemon and its peers, all at the same time."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        nvml = FakeNvml.build(folder / "nvml")
        pids = stack.enter_context(crowd(nvml))
        every = subjects(folder, {**os.environ, **nvml.environment}, pids)
        here = [subject for subject in every if subject.there]
        for subject in here:
            subject.pid = stack.enter_context(running(subject.command, subject.environment))
        ended = threading.Event()
        ports = [subject.port for subject in here if subject.port is not None]
        scraper = threading.Thread(target=scrape, args=(ports, ended))
        scraper.start()
        stack.callback(scraper.join)
        stack.callback(ended.set)
        time.sleep(WARM_S)
        before = {s.name: (cpu_s(family(s.pid)), memory_mib([s.pid])) for s in here}
        begin = time.monotonic()
        time.sleep(WINDOW_S)
        for subject in every:
            if subject not in here:
                say(subject.name, "not installed")
                continue
            cpu, rss = before[subject.name]
            share = (cpu_s(family(subject.pid)) - cpu) / (time.monotonic() - begin)
            report(subject, share, rss)


def report(subject: Subject, share: float, rss: float) -> None:
    """Print what one program took, and what it held before."""
    ours, pids = subject.ours, family(subject.pid)
    aim = "<= 0.50% of a core" if ours and subject.port is None else ""
    say(f"{subject.name}: CPU", f"{share:.2%}", aim)
    if subject.times > 1:
        say(f"  times {subject.times} processes", f"{share * subject.times:.1%}")
    now = memory_mib([subject.pid])
    say("  RSS", f"{now:.1f} MiB", "<= 60 MiB" if ours else "")
    say(f"  RSS grown in {WINDOW_S:.0f} s", f"{now - rss:+.2f} MiB", "flat" if ours else "")
    if ours:
        say("  with the GPU probe (PSS)", f"{memory_mib(pids, 'Pss'):.1f} MiB")


def scan() -> None:
    """Measure one listing of a fake /proc, as the daemon makes every five seconds."""
    from memplan_daemon.proc import ProcFolder
    from memplan_daemon.tree import ProcessTable

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for pid in range(2, SCANNED + 2):
            place = folder / str(pid)
            place.mkdir(parents=True)
            (place / "stat").write_text(f"{pid} (python) S 1 {pid} {pid} 0 -1 0\n")
        table = ProcessTable(ProcFolder(folder), ManualClock())
        costs = []
        for _ in range(7):
            begin = time.process_time()
            table.expire()
            table.refresh()
            costs.append(time.process_time() - begin)
    say(f"scan of {SCANNED} processes: CPU", f"{min(costs) * 1e3:.0f} ms", "<= 150 ms")


TARGET = """
import mmap, os, sys, time
cores = sorted(os.sched_getaffinity(0))
os.sched_setaffinity(0, cores[-1:])
big = mmap.mmap(-1, int(float(sys.argv[1]) * 2**30))
for at in range(0, len(big), 4096): big[at] = 1
print("ready", flush=True)
for line in sys.stdin:
    begin, cpu, count = time.perf_counter(), time.thread_time(), 0
    end = begin + float(line)
    while time.perf_counter() < end:
        area = mmap.mmap(-1, 2**20)
        for at in range(0, 2**20, 4096): area[at] = 1
        area.close()
        count += 1
    print((time.thread_time() - cpu) / count, (time.perf_counter() - begin) / count, flush=True)
"""


class Target:
    """A large process that maps, touches and unmaps memory, on a core of its own."""

    def __init__(self) -> None:
        """Start it, and wait until it holds its memory."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", TARGET, str(TARGET_GIB)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def block(self, read: Callable[[], object]) -> tuple[float, float]:
        """Return the seconds of CPU and of the clock that one round took, while it is read."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{BLOCK_S}\n")
        self._process.stdin.flush()
        for _ in range(round(BLOCK_S / READ_S)):
            time.sleep(READ_S / 2)
            read()
            time.sleep(READ_S / 3)
        cpu, wall = map(float, self._answer().split())
        return cpu, wall

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def disturbance() -> None:
    """Let a large process work in short blocks, alone and read at 10 Hz, in the order ABBA.

    Whatever changes slowly, as the load of the machine does, is then the same for both.
    """
    from memplan_daemon.clock import SystemClock
    from memplan_daemon.collectors.base import Watch
    from memplan_daemon.collectors.process import ProcessCollector
    from memplan_daemon.proc import ProcFolder

    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])
    target = Target()
    member = ProcFolder().open(target.pid)
    assert member is not None
    stalling = partial(member.read, "smaps_rollup")
    collector, members = ProcessCollector(SystemClock()), {target.pid: member}

    def fast() -> None:
        watch = Watch(run_id="r", pid=target.pid, members=members, quiet=True)
        list(collector.collect(watch))

    quads = {"read at 10 Hz": (fast, QUADS), "smaps_rollup at 10 Hz": (stalling, QUADS // 20)}
    try:
        for what, (read, number) in quads.items():
            found = [quad(target, read) for _ in range(number)]
            for kind, slower in zip(("CPU", "wall"), zip(*found, strict=True), strict=True):
                low, high = interval(slower)
                name = f"target of {TARGET_GIB:g} GiB, {what}: slower by ({kind})"
                middle = f"{statistics.median(slower):+.2%}"
                aim = "< 1%" if read is fast else "never done by the daemon"
                say(name, middle, f"{aim}; 95 % of {low:+.2%} to {high:+.2%}, {number} quads")
    finally:
        member.close()
        target.close()
        os.sched_setaffinity(0, cores)


def quad(target: Target, read: Callable[[], object]) -> tuple[float, float]:
    """Return by what part a round took longer while it was read: CPU and wall."""
    blocks = [target.block(way) for way in (nothing, read, read, nothing)]
    alone = [sum(pair) for pair in zip(blocks[0], blocks[3], strict=True)]
    beside = [sum(pair) for pair in zip(blocks[1], blocks[2], strict=True)]
    return beside[0] / alone[0] - 1, beside[1] / alone[1] - 1


def nothing() -> None:
    """Read nothing."""


def interval(values: tuple[float, ...]) -> tuple[float, float]:
    """Return between which values the median lies in 95 of 100 cases, whatever they come from."""
    ranked, n = sorted(values), len(values)
    away = math.ceil(0.98 * math.sqrt(n))
    return ranked[max(n // 2 - away, 0)], ranked[min(n // 2 + away, n - 1)]


STEP = """
import sys, time, torch
from memplan import measure
torch.set_num_threads(1)
model = torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(8)))
optimizer = torch.optim.AdamW(model.parameters())
data = torch.randn(64, 512)
def steps(seconds):
    end, begin, count = time.monotonic() + seconds, time.process_time(), 0
    while time.monotonic() < end:
        model(data).sum().backward(); optimizer.step(); optimizer.zero_grad(); count += 1
    return (time.process_time() - begin) / count
steps(2)
measure.attach(0.1)
steps(1)
import threading
thread = next(t for t in threading.enumerate() if t.name == "memplan-agent").native_id
def used():
    return int(open(f"/proc/self/task/{thread}/schedstat").read().split()[0]) / 1e9
before, begin = used(), time.monotonic()
step = steps(8)
share = (used() - before) / (time.monotonic() - begin)  # of a core, had the step one to itself
from memplan.measure.allocator import Allocators
reader = Allocators(); reader.read()
begin = time.process_time()
for _ in range(2000): reader.read()
print(step, share, (time.process_time() - begin) / 2000)
"""


def agent() -> None:
    """Measure the share of a core that the agent takes beside a training; a daemon listens."""
    command = [sys.executable, "-m", "memplan", "daemon", "run", "--interval", "1"]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "MEMPLAN_DATABASE": str(Path(folder) / "agent.db")}
        with running(command, environment):
            time.sleep(6)
            done = subprocess.run(
                [sys.executable, "-c", STEP],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
    if done.returncode:
        say("agent", "torch is not installed")
        return
    step, share, sample = map(float, done.stdout.split())
    say(f"agent at 10 Hz beside steps of {step * 1e3:.1f} ms: CPU", f"{share:.2%}", "< 1%")
    say("  one reading of the counters", f"{sample * 1e6:.1f} us", "< 20 us")


PARTS = {"daemon": daemon, "scan": scan, "disturbance": disturbance, "agent": agent}


def main(names: list[str]) -> None:
    """Print everything, or the parts that are named."""
    for name in names or PARTS:
        PARTS[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
