"""The store beside a naive table, in one run: bytes, bytes written, queries, retention, restart.

    python benchmarks/store.py [samples]        default: 10 million; --quick: half a million

200 series at 1 Hz whose values move in pages on 12 % of the ticks. The naive table is what an
ORM makes of it: a row for each sample with a text time stamp, host, thing and metric, and two
indexes. Its figures are taken on a tenth of the samples (it takes some 200 bytes for each).

Last, a daemon on a database of its own is asked by twenty clients, each ten times a second, while
as many series are written through it, a block of them closed and packed on the way.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from memplan.errors import DaemonError
from memplan.store.append import BLOCK_INSTANTS
from memplan.store.frame import HOUR_NS
from memplan.store.reader import StoreReader
from memplan.store.remote import DaemonClient, RemoteWriter, socket_path
from memplan.store.retention import Policy
from memplan.store.writer import LocalWriter
from memplan.types import Sample, Series

SERIES, FLUSH = 200, 10
NS = 10**9
T0 = 1_790_000_000 * NS
FOREVER = Policy(raw_ns=100_000 * HOUR_NS, cap_bytes=1 << 50)


def values(seed: int) -> Iterator[list[int]]:
    """Yield the values of all series, tick by tick: page-granular, 12 % change."""
    dice = random.Random(seed)
    now = [dice.randrange(1 << 22) * 4096 for _ in range(SERIES)]
    while True:
        for i in range(SERIES):
            if dice.random() < 0.12:
                now[i] = max(now[i] + dice.randrange(-512, 513) * 4096, 0)
        yield list(now)


def series() -> list[Series]:
    """Return the series: some of the host, most of processes."""
    return [
        Series(run_id=None, entity=f"process:{1000 + i}", metric="rss_bytes") for i in range(SERIES)
    ]


def batches(ticks: int) -> Iterator[list[Sample]]:
    """Yield what is flushed every ten seconds."""
    known, stream, batch = series(), values(1), []
    for tick in range(ticks):
        t_ns = T0 + tick * NS + (tick * 7919) % 200_000
        row = next(stream)
        batch += [Sample(series=s, t_ns=t_ns, value=v) for s, v in zip(known, row, strict=True)]
        if (tick + 1) % FLUSH == 0:
            yield batch
            batch = []


def written_bytes() -> int:
    """Return the bytes that this process has handed to write() and its like."""
    text = Path("/proc/self/io").read_text(encoding="ascii")
    return int(dict(line.split(": ") for line in text.splitlines())["wchar"])


def size(database: Path) -> int:
    """Return the bytes of a database and its log."""
    return sum(p.stat().st_size for p in (database, Path(f"{database}-wal")) if p.exists())


def milliseconds(what: Callable[[], object], times: int = 25) -> float:
    """Return the shortest CPU time of a call, warm: other work on the machine does not count."""
    what()
    took = []
    for _ in range(times):
        begun = time.process_time()
        what()
        took.append((time.process_time() - begun) * 1e3)
    return min(took)


def line(name: str, value: float, target: float, naive: str, unit: str) -> bool:
    """Print one figure beside its target and the naive table's."""
    good = value <= target
    print(
        f"{name:<46}{value:>9.2f} {unit:<3}  target <= {target:<6g} {'ok  ' if good else 'OVER'}"
        f"  naive {naive}",
        flush=True,
    )
    return good


class Naive:
    """What one writes first."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "naive.db"
        self.connection = sqlite3.connect(self.path)
        self.connection.executescript(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"
            "CREATE TABLE sample (id INTEGER PRIMARY KEY, t TEXT, host TEXT, thing TEXT,"
            " metric TEXT, value INTEGER);"
            "CREATE INDEX a ON sample (t); CREATE INDEX b ON sample (thing, metric, t);"
        )

    def write(self, batch: list[Sample]) -> None:
        """Insert a batch."""
        with self.connection:
            self.connection.executemany(
                "INSERT INTO sample (t, host, thing, metric, value) VALUES (?, ?, ?, ?, ?)",
                [(text(s.t_ns), "node1", s.series.entity, s.series.metric, s.value) for s in batch],
            )

    def points(self, since_ns: int, until_ns: int) -> list[object]:
        """Return one series in 200 buckets."""
        return self.connection.execute(
            "SELECT cast((julianday(t) - julianday(?)) * 86400 / ? AS INT), max(value), min(value)"
            " FROM sample WHERE thing = 'process:1000' AND metric = 'rss_bytes' AND t >= ?"
            " AND t < ? GROUP BY 1",
            (text(since_ns), (until_ns - since_ns) / NS / 200, text(since_ns), text(until_ns)),
        ).fetchall()

    def last(self, since_ns: int) -> list[object]:
        """Return the highest value of each series since a time."""
        return self.connection.execute(
            "SELECT thing, metric, max(value) FROM sample WHERE t >= ? GROUP BY 1, 2",
            (text(since_ns),),
        ).fetchall()

    def delete(self, count: int) -> float:
        """Delete the oldest rows in batches; return the seconds."""
        begun = time.perf_counter()
        for _ in range(0, count, 5000):
            with self.connection:
                self.connection.execute(
                    "DELETE FROM sample WHERE id IN (SELECT id FROM sample ORDER BY t LIMIT 5000)"
                )
        return time.perf_counter() - begun


def text(t_ns: int) -> str:
    """Return a time as an ORM stores it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(t_ns // NS)) + f".{t_ns % NS // 1000:06}"


def load(write: Callable[[list[Sample]], None], ticks: int) -> tuple[float, float]:
    """Write ticks; return (bytes written for each sample, seconds)."""
    before, begun = written_bytes(), time.perf_counter()
    for batch in batches(ticks):
        write(batch)
    return (written_bytes() - before) / (ticks * SERIES), time.perf_counter() - begun


READY = """
import sys, time
from memplan.store.writer import LocalWriter
LocalWriter(sys.argv[1])
print("ready", flush=True)
time.sleep(1000)
"""


def restart_s(database: Path) -> float:
    """Return the seconds from the start of an interpreter to a writer, after a kill -9."""
    took = []
    for _ in range(4):  # the first one finds a clean end, the others what a kill left
        command = [sys.executable, "-c", READY, str(database)]
        begun = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            child.stdout.readline()
            took.append(time.perf_counter() - begun)
            os.kill(child.pid, signal.SIGKILL)
    return max(took[1:])


CLIENTS, ASKED_S, ASKED_FOR_S = 20, 0.1, 30


def api(database: Path) -> list[bool]:
    """Print how long a daemon takes to answer while it writes."""
    environment = {**os.environ, "MEMPLAN_DATABASE": str(database)}
    command = [sys.executable, "-m", "memplan", "daemon", "run"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as daemon:
        try:
            took = asked(database)
        finally:
            daemon.terminate()
    took.sort()
    name, most = f"API answer while writing, {CLIENTS} clients, p99 (clock)", took[-1] * 1e3
    print(
        f"{'':46}{len(took)} answers, median {took[len(took) // 2] * 1e3:.2f}, most {most:.1f} ms"
    )
    return [line(name, took[len(took) * 99 // 100] * 1e3, 20, "-", "ms")]


def asked(database: Path) -> list[float]:
    """Return the seconds of each answer."""
    while True:
        try:
            writer = RemoteWriter(socket_path(database))
            break
        except DaemonError:
            time.sleep(0.05)
    ticks = batches(BLOCK_INSTANTS * 10)
    begin = (BLOCK_INSTANTS - ASKED_FOR_S // 2) // FLUSH  # its end comes half-way
    for _ in range(begin):
        writer.write_samples(next(ticks))
    took: list[float] = []
    end = time.monotonic() + ASKED_FOR_S

    def ask(number: int) -> None:
        time.sleep(number * ASKED_S / CLIENTS)
        with DaemonClient(socket_path(database)) as client:
            while time.monotonic() < end:
                begun = time.perf_counter()
                client.request("snapshot")
                took.append(time.perf_counter() - begun)
                time.sleep(ASKED_S)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    with writer:
        while time.monotonic() < end:  # each second what a second brings
            batch = next(ticks)
            for tick in range(FLUSH):
                writer.write_samples(batch[tick * SERIES : (tick + 1) * SERIES])
                time.sleep(1)
    for thread in threads:
        thread.join()
    return took


def main() -> int:
    """Print every figure; exit 1 when one is over its target."""
    quick = "--quick" in sys.argv
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    ticks = (numbers[0] if numbers else 500_000 if quick else 10_000_000) // SERIES
    with tempfile.TemporaryDirectory(prefix="mp-store-") as name:
        folder = Path(name)
        naive = Naive(folder)
        naive_ticks = ticks // 10
        naive_written, naive_s = load(naive.write, naive_ticks)
        good = ours(folder / "m.db", ticks, naive, naive_ticks, naive_written)
        good += api(folder / "api.db")
        print(f"loading: naive {naive_s:.0f} s for {naive_ticks * SERIES} samples")
    return 0 if all(good) else 1


def ours(
    database: Path, ticks: int, naive: Naive, naive_ticks: int, naive_written: float
) -> list[bool]:
    """Print our figures beside the naive table's."""
    samples, end = ticks * SERIES, T0 + ticks * NS
    naive_end = T0 + naive_ticks * NS
    good = []
    with LocalWriter(database, policy=FOREVER, now_ns=lambda: end) as writer:
        written, took_s = load(writer.write_samples, ticks)
        print(f"{samples} samples of {SERIES} series, flushed every {FLUSH} s, in {took_s:.0f} s")
        writer.checkpoint()
        naive.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        naive_size = size(naive.path) / (naive_ticks * SERIES)
        name = "bytes on disk a sample, roll-ups included"
        good.append(line(name, size(database) / samples, 3.5, f"{naive_size:.0f} B", "B"))
        good.append(line("bytes written a sample", written, 45, f"{naive_written:.0f} B", "B"))
        with StoreReader(database) as reader:
            other = milliseconds(
                lambda: naive.points(max(naive_end - 50_000 * NS, T0), naive_end), 3
            )
            for points in (50_000, 40_000):  # by blocks, and where those are too long, by minutes
                window = min(points, ticks) * NS
                rows = milliseconds(lambda window=window: one_series(reader, end, window))
                name = f"{window // NS} points to 200 buckets (CPU, warm)"
                beside = f"{other:.0f} ms of {min(50_000, naive_ticks)}"
                good.append(line(name, rows, 5, beside, "ms"))
            rows = milliseconds(
                lambda: reader.curves(None, since_ns=end - 300 * NS, until_ns=end, buckets=1)
            )
            other = milliseconds(lambda: naive.last(naive_end - 300 * NS), 3)
            good.append(
                line("all series of the last 5 min (CPU, warm)", rows, 5, f"{other:.0f} ms", "ms")
            )
    good += retention(database, ticks, end, naive, naive_ticks)
    good.append(line("ready after kill -9 (clock)", restart_s(database), 1.5, "-", "s"))
    return good


def one_series(reader: StoreReader, end: int, window: int) -> object:
    """Return one series of a window in 200 buckets."""
    return reader.curves(None, since_ns=end - window, until_ns=end, entity="process:1000")


def retention(database: Path, ticks: int, end: int, naive: Naive, naive_ticks: int) -> list[bool]:
    """Delete the older half and print how long it took, and its longest transaction."""
    half = Policy(raw_ns=ticks // 2 * NS, cap_bytes=1 << 50)
    with LocalWriter(database, policy=half, now_ns=lambda: end) as writer:
        begun = time.perf_counter()
        writer.keep_house()
        took_s = time.perf_counter() - begun
        longest_s, apart_s = writer.longest_batch_s, writer.longest_checkpoint_s
    other = naive.delete(naive_ticks * SERIES // 2)
    count = ticks * SERIES // 2
    print(f"{'longest checkpoint, outside of any lock (clock)':<46}{apart_s * 1e3:>9.2f} ms")
    return [
        line(f"retention of {count} samples (clock)", took_s, 3, f"{other:.1f} s for a tenth", "s"),
        line("longest lock meanwhile (clock)", longest_s * 1e3, 50, "-", "ms"),
    ]


if __name__ == "__main__":
    sys.exit(main())
