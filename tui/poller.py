"""Reads the database for the screens: only what is new, in short transactions, off the loop."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from memplan_tui.messages import Detail, Gpu, Machine, Snapshot

from memplan.chart import downsample
from memplan.compare import compare
from memplan.errors import MemplanError, NotStoredError, StoreMissingError
from memplan.store.base import Reader
from memplan.types import FrozenMap, Peak, Plan, Run, Sample, Series

__all__ = ["Poller", "database_text"]

KEPT_POINTS = 4096
"""Points of one curve; beyond, neighbours are joined and the higher one stays."""

LISTED_RUNS = 50

LOOKED_UP = 5
"""Runs whose peak is looked up in one poll: the first screen must not wait for all of them."""

_HOST_WINDOW_NS = 60 * 10**9
"""How far back the machine's last samples are looked for."""

_PROCESS = ("rss_bytes", "hwm_bytes")


def database_text(database: str | Path) -> str:
    """Return a database's place for people: a URL without its password."""
    text = str(database)
    scheme, sign, rest = text.partition("://")
    if sign and "@" in rest:
        return f"{scheme}://...@{rest.rpartition('@')[2]}"
    return text


class Poller:
    """Keeps a reader open and a cursor per run; one `poll` makes one Snapshot."""

    def __init__(
        self,
        database: str | Path,
        *,
        open_reader: Callable[[str | Path], Reader],
        now_ns: Callable[[], int],
    ) -> None:
        """Prepare; nothing is opened before the first poll.

        Args:
            database: file or URL.
            open_reader: makes a reader.
            now_ns: the wall clock.
        """
        self._database = database
        self._open_reader = open_reader
        self._now_ns = now_ns
        self._reader: Reader | None = None
        self._run_id: str | None = None
        self._cursor = 0
        self._curves: dict[str, list[tuple[int, int]]] = {}
        self._last: dict[str, int] = {}
        self._highest: dict[Series, Peak] = {}
        self._ended: dict[str, int | None] = {}
        self._one_at_a_time = threading.Lock()

    def poll(self, selected: str | None = None) -> Snapshot:
        """Return what the database says now. Never raises: a problem is a state with a reason.

        Args:
            selected: id of the run to show in detail; None = the newest.
        """
        with self._one_at_a_time:
            return self._poll(selected)

    def _poll(self, selected: str | None) -> Snapshot:
        now = self._now_ns()
        try:
            if self._reader is None:
                self._reader = self._open_reader(self._database)
            return self._read(self._reader, now, selected)
        except StoreMissingError:
            self.close()
            place = database_text(self._database)
            return Snapshot(
                state="missing",
                reason=f"There is no database at {place} yet.",
                now_ns=now,
            )
        except (MemplanError, OSError) as error:
            self.close()
            hint = getattr(error, "hint", "")
            text = f"{error}." + (f" Try: {hint}" if hint else "")
            return Snapshot(state="broken", reason=text, now_ns=now)

    def _read(self, reader: Reader, now: int, selected: str | None) -> Snapshot:
        runs = reader.runs(LISTED_RUNS)
        last = reader.last_sample_ns()
        chosen = next((run for run in runs if run.id == selected), runs[0] if runs else None)
        detail = self._detail(reader, chosen) if chosen is not None else None
        peaks = self._run_peaks(reader, runs)
        return Snapshot(
            state="ok",
            now_ns=now,
            last_sample_ns=last,
            machine=_machine(reader, last),
            runs=runs,
            peaks=FrozenMap(peaks),
            detail=detail,
        )

    def _run_peaks(self, reader: Reader, runs: tuple[Run, ...]) -> dict[str, int]:
        """Return each run's highest process memory; a few new ones are looked up per poll."""
        if self._run_id is not None:
            self._ended[self._run_id] = _highest(self._highest.values())
        unknown = [run for run in runs if run.id not in self._ended and run.status != "running"]
        for run in unknown[:LOOKED_UP]:
            self._ended[run.id] = _highest(reader.peaks(run.id))
        return {run.id: peak for run in runs if (peak := self._ended.get(run.id)) is not None}

    def _detail(self, reader: Reader, run: Run) -> Detail:
        plan = _plan(reader, run)
        self._follow(reader, run)
        phases, peaks = reader.phases(run.id), tuple(self._highest.values())
        devices = reader.devices()
        comparison = compare(plan, run, peaks=peaks, phases=phases, devices=devices)
        uuids = {device.uuid: device.name for device in devices if device.uuid}
        history = {_device(key, uuids): points for key, points in self._curves.items()}
        now = {_device(key, uuids): value for key, value in self._last.items()}
        return Detail(
            run=run,
            plan=plan,
            comparison=comparison,
            phases=phases,
            peaks=peaks,
            now=FrozenMap(now),
            history=FrozenMap({name: tuple(points) for name, points in history.items()}),
        )

    def _follow(self, reader: Reader, run: Run) -> None:
        """Read the run's samples from where the last poll ended."""
        if run.id != self._run_id:
            self._run_id, self._cursor = run.id, 0
            self._curves, self._last, self._highest = {}, {}, {}
        while True:
            batch = reader.samples(run.id, after=self._cursor)
            for sample in batch.samples:
                self._keep(sample)
            if batch.cursor == self._cursor:
                return
            self._cursor = batch.cursor

    def _keep(self, sample: Sample) -> None:
        entity, metric = sample.series.entity, sample.series.metric
        known = self._highest.get(sample.series)
        higher = known is None or sample.value > known.value
        self._highest[sample.series] = Peak(
            series=sample.series,
            value=sample.value if known is None or higher else known.value,
            t_ns=sample.t_ns if known is None or higher else known.t_ns,
            count=1 if known is None else known.count + 1,
        )
        wanted = (entity == "tree" and metric == "rss_bytes") or (
            entity.startswith("gpu:") and entity.endswith("/tree") and metric == "used_bytes"
        )
        if not wanted:
            return
        curve = self._curves.setdefault(entity, [])
        curve.append((sample.t_ns, sample.value))
        self._last[entity] = sample.value
        if len(curve) > KEPT_POINTS:
            self._curves[entity] = downsample(curve, KEPT_POINTS)

    def close(self) -> None:
        """Give the reader back; the next poll opens it anew."""
        if self._reader is not None:
            with contextlib.suppress(MemplanError):
                self._reader.close()
        self._reader = None


def _device(entity: str, uuids: dict[str, str]) -> str:
    """Return the name of the device that a series of a run is about."""
    if entity == "tree":
        return "cpu"
    uuid = entity.removeprefix("gpu:").removesuffix("/tree")
    return uuids.get(uuid, "cuda:0")


def _highest(peaks: Iterable[Peak]) -> int | None:
    values = [p.value for p in peaks if p.series.entity == "tree" and p.series.metric in _PROCESS]
    return max(values, default=None)


def _plan(reader: Reader, run: Run) -> Plan | None:
    if run.plan_id is None:
        return None
    with contextlib.suppress(NotStoredError):
        return reader.plan(run.plan_id)
    return None


def _machine(reader: Reader, last: int | None) -> Machine:
    """Return the machine as of the last samples of its own."""
    if last is None:
        return Machine()
    batch = reader.samples(None, since_ns=last - _HOST_WINDOW_NS)
    newest = {(s.series.entity, s.series.metric): s.value for s in batch.samples}
    labels = {device.uuid: device.label for device in reader.devices()}
    uuids = sorted({entity.removeprefix("gpu:") for entity, _ in newest if _is_gpu(entity)})
    return Machine(
        total_bytes=newest.get(("host", "total_bytes")),
        available_bytes=newest.get(("host", "available_bytes")),
        gpus=tuple(
            Gpu(
                uuid=uuid,
                label=labels.get(uuid) or uuid,
                total_bytes=newest.get((f"gpu:{uuid}", "total_bytes")),
                used_bytes=newest.get((f"gpu:{uuid}", "used_bytes")),
            )
            for uuid in uuids
        ),
    )


def _is_gpu(entity: str) -> bool:
    return entity.startswith("gpu:") and "/" not in entity
