"""What the daemon costs, beside what else runs here: CPU, memory, and what its targets feel.

    python benchmarks/daemon_cost.py [seconds] [GiB of the target]

CPU times are those that the kernel charges, so a busy machine changes them little. Peers that are
not installed are named and left out: pip install psrecord gpustat nvitop-exporter; node_exporter is
Debian's prometheus-node-exporter, or named by MEMPLAN_NODE_EXPORTER. The GPUs are fake ones.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from memplan.testing import FakeGpu, FakeNvml, ManualClock

GPUS, PROCESSES, SCANNED = 8, 200, 10_000
FIELDS = {"util": 37, "power": 250_000, "limit": 700_000, "temp": 54, "sm": 1980, "mem": 2619}
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def say(what: str, value: str, target: str = "") -> None:
    """Print one line: what, the value, the target beside it."""
    print(f"{what:58} {value:>16}  {target}", flush=True)


def family(pid: int) -> list[int]:
    """Return a process and its children."""
    found = [pid]
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        for child in text.split():
            found += family(int(child))
    return found


def cpu_s(pids: list[int]) -> float:
    """Return the CPU time of processes so far, in seconds, to the nanosecond where it is kept."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            tasks = list(Path(f"/proc/{pid}/task").iterdir())
            total += sum(int((t / "schedstat").read_text().split()[0]) for t in tasks) / 1e9
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
    """Start PROCESSES that sleep, on GPUS fake devices, in as many jobs."""
    started = [
        subprocess.Popen(
            ["sleep", "3600"], env={**os.environ, "TORCHELASTIC_RUN_ID": f"job-{i % GPUS}"}
        )
        for i in range(PROCESSES)
    ]
    try:
        pids = [process.pid for process in started]
        nvml.gpus = [
            FakeGpu(
                uuid=f"GPU-{i}",
                used=2**30 * (i + 1),
                fields=dict(FIELDS),
                compute=dict.fromkeys(pids[i::GPUS], 2**28),
            )
            for i in range(GPUS)
        ]
        nvml.write()
        yield pids
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()


@contextlib.contextmanager
def running(command: list[str], environment: dict[str, str], wait_s: float) -> Iterator[int]:
    """Run a program in the background; yields its pid after a while."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(wait_s)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def scrape(port: int, seconds: float) -> None:
    """Ask a Prometheus endpoint once a second."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read()
        time.sleep(1.0)


def daemon(environment: dict[str, str], folder: Path, seconds: float, port: int | None) -> None:
    """Measure our own daemon, all processes watched."""
    name = "daemon" if port is None else "daemon, scraped at 1 Hz"
    environment = {
        **environment,
        "MEMPLAN_DATABASE": str(folder / f"{name[-3:]}.db"),
        "MEMPLAN_CPU_BUDGET": "0",
        "MEMPLAN_PROMETHEUS": str(port or "off"),
    }
    command = [sys.executable, "-m", "memplan", "daemon", "run", "--interval", "1"]
    for watch in ([], ["--watch", "gpu:all"]):
        if port is not None and not watch:
            continue  # the scraped one is measured with all it has to show
        what = f"{name}, {PROCESSES} processes " + ("watched" if watch else "on the GPUs, listed")
        with running([*command, *watch], environment, 12) as pid:
            pids = family(pid)
            before, begin, rss = cpu_s(pids), time.monotonic(), memory_mib(pids[:1])
            if port is None:
                time.sleep(seconds)
            else:
                scrape(port, seconds)
            share = (cpu_s(pids) - before) / (time.monotonic() - begin)
            say(f"{what}: CPU", f"{share:.2%}", "<= 0.50% of a core")
            grown = memory_mib(pids[:1])
            say("  RSS", f"{grown:.1f} MiB", "<= 60 MiB")
            say("  RSS grown meanwhile", f"{grown - rss:+.2f} MiB", "flat")
            say("  with the GPU probe (PSS)", f"{memory_mib(pids, 'Pss'):.1f} MiB")


def exporter(name: str, command: list[str], environment: dict, port: int, seconds: float) -> None:
    """Measure somebody else's exporter, scraped once a second."""
    if not Path(command[0]).exists() and shutil.which(command[0]) is None:
        say(f"{name}", "not installed")
        return
    with running(command, environment, 8) as pid:
        scrape(port, 3)
        pids = family(pid)
        before, begin = cpu_s(pids), time.monotonic()
        scrape(port, seconds)
        share = (cpu_s(pids) - before) / (time.monotonic() - begin)
        say(f"{name}, scraped at 1 Hz: CPU", f"{share:.2%}")
        say("  RSS", f"{memory_mib(pids[:1]):.1f} MiB")


def gpustat(environment: dict[str, str]) -> None:
    """Measure queries of gpustat inside one process, as its watch mode makes them."""
    program = (
        "import time, gpustat\n"
        "gpustat.new_query()\n"
        "begin = time.process_time()\n"
        "for _ in range(5): gpustat.new_query()\n"
        "print((time.process_time() - begin) / 5)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        say("gpustat", "not installed")
    else:
        say("gpustat, one query a second: CPU", f"{float(done.stdout):.2%}")


def psrecord(environment: dict[str, str], pids: list[int], seconds: float) -> None:
    """Measure psrecord on one process: it watches no more than one tree."""
    program = Path(sys.executable).with_name("psrecord")
    if not program.exists():
        say("psrecord", "not installed")
        return
    command = [str(program), str(pids[0]), "--interval", "1", "--log", os.devnull]
    with running(command, environment, 4) as pid:
        before, begin = cpu_s([pid]), time.monotonic()
        time.sleep(seconds)
        share = (cpu_s([pid]) - before) / (time.monotonic() - begin)
        say("psrecord, 1 process at 1 Hz: CPU", f"{share:.2%}")
        say(f"  times {PROCESSES} processes", f"{share * PROCESSES:.1%}")


def scan(folder: Path) -> None:
    """Measure one listing of a fake /proc, as the daemon makes every five seconds."""
    from memplan_daemon.proc import ProcFolder
    from memplan_daemon.tree import ProcessTable

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
import mmap, sys, time
big = mmap.mmap(-1, int(float(sys.argv[1]) * 2**30))
for at in range(0, len(big), 4096): big[at] = 1
print("ready", flush=True)
for line in sys.stdin:
    end = time.monotonic() + float(line)
    begin, count, worst = time.thread_time(), 0, 0.0
    while (now := time.monotonic()) < end:
        area = mmap.mmap(-1, 2**20)
        for at in range(0, 2**20, 4096): area[at] = 1
        area.close()
        worst = max(worst, time.monotonic() - now)
        count += 1
    print(count / (time.thread_time() - begin), worst, flush=True)
"""


def disturbance(gib: float, rounds: int = 9) -> None:
    """Let a process map, touch and unmap memory, alone and while its status is read at 10 Hz."""
    from memplan_daemon.clock import SystemClock
    from memplan_daemon.collectors.base import Watch
    from memplan_daemon.collectors.process import ProcessCollector
    from memplan_daemon.proc import ProcFolder

    target = subprocess.Popen(
        [sys.executable, "-c", TARGET, str(gib)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert target.stdin is not None
    assert target.stdout is not None
    target.stdout.readline()
    member = ProcFolder().open(target.pid)
    assert member is not None
    collector = ProcessCollector(SystemClock())
    rates: dict[str, list[float]] = {"alone": [], "fast": [], "rollup": []}
    for _ in range(rounds):
        for mode, found in rates.items():
            target.stdin.write("1.0\n")
            target.stdin.flush()
            for tick in range(9):
                if mode == "fast":
                    watch = Watch(
                        run_id="r",
                        pid=target.pid,
                        members={target.pid: member},
                        tick=tick,
                        quiet=True,
                    )
                    list(collector.collect(watch))
                elif mode == "rollup":
                    member.read("smaps_rollup")
                time.sleep(0.1)
            found.append(float(target.stdout.readline().split()[0]))
    member.close()
    target.stdin.close()
    target.wait()
    alone, fast, rollup = (statistics.median(found) for found in rates.values())
    say(f"target of {gib:g} GiB, read at 10 Hz: slower by", f"{1 - fast / alone:+.1%}", "< 1%")
    say("  by smaps_rollup at 10 Hz, which the daemon never does", f"{1 - rollup / alone:+.1%}")


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


def agent(environment: dict[str, str], folder: Path) -> None:
    """Measure the share of a core that the agent takes beside a training; a daemon listens."""
    environment = {**environment, "MEMPLAN_DATABASE": str(folder / "agent.db")}
    command = [sys.executable, "-m", "memplan", "daemon", "run", "--interval", "1"]
    with running(command, environment, 6):
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


def main(seconds: float = 20.0, gib: float = 2.0) -> None:
    """Print everything."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        nvml = FakeNvml.build(folder / "nvml")
        environment = {**os.environ, **nvml.environment}
        with crowd(nvml) as pids:
            daemon(environment, folder, seconds, None)
            daemon(environment, folder, seconds, 19464)
            nvitop = str(Path(sys.executable).with_name("nvitop-exporter"))
            command = [nvitop, "--bind-address", "127.0.0.1", "--port", "19465"]
            exporter("nvitop-exporter", command, environment, 19465, seconds)
            node = os.environ.get("MEMPLAN_NODE_EXPORTER", "prometheus-node-exporter")
            command = [node, "--web.listen-address", "127.0.0.1:19466"]
            exporter("node_exporter", command, environment, 19466, seconds)
            gpustat(environment)
            psrecord(environment, pids, seconds)
        scan(folder / "proc")
        disturbance(gib)
        agent(environment, folder)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:3]))
