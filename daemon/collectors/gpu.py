"""GPUs: what each device holds, and what a run's processes use of it."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memplan_daemon.clock import NS, Clock
from memplan_daemon.collectors.base import Event, Gap, Reading, Steady, Watch
from memplan_daemon.collectors.child import Probe, cpu_ns
from memplan_daemon.proc import Process

__all__ = ["GpuCollector", "amd_problem", "nvidia_problem"]

_log = logging.getLogger("memplan.daemon")

FIRST_RETRY_S = 5.0
LAST_RETRY_S = 300.0
"""A driver that is not there or does not start is tried again after 5 s, 10 s, ... 5 minutes."""

WAIT_S = 0.05
"""Longest wait for an answer inside a tick; one that comes later counts for the next tick."""

STATES = ("ok", "not-supported", "no-permission", "lost", "late", "failed")
"""The code of a "gpu.state" event is the place in this list."""


def nvidia_problem() -> str:
    """Return why there cannot be NVIDIA readings; "" when there may be. Asks no driver."""
    if importlib.util.find_spec("pynvml") is None:
        return "the module pynvml is not installed (pip install nvidia-ml-py)"
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return "there is no NVIDIA driver library (libnvidia-ml.so.1)"
    return ""


def amd_problem() -> str:
    """Return why there cannot be AMD readings; "" when there may be."""
    if importlib.util.find_spec("amdsmi") is None:
        return "the module amdsmi is not installed (it comes with ROCm)"
    return ""


@dataclass(slots=True)
class _Gpu:
    """One device as it was last heard of."""

    name: str
    state: str = "ok"
    processes: Mapping[int, int | None] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _RunState:
    """What a run's processes have of the GPUs, as it was found in the last tick."""

    tick: int
    members: Mapping[int, Process]
    fresh: tuple[str, ...]
    """The GPUs that had answered."""
    found: list[Reading | Gap] = field(default_factory=list)
    """GPU by GPU: of each of the run's processes on it, and the sum where there is one."""
    places: dict[tuple[str, int], int] = field(default_factory=dict)
    """(UUID, process id) -> where in it."""
    sums: dict[str, int] = field(default_factory=dict)
    """UUID -> where in it the sum is."""


class GpuCollector:
    """Reads the GPUs of one vendor through a probe; keyed by UUID, never by number.

    Host: gpu:<uuid> total, used, free and, where the driver tells it apart, reserved bytes; load,
    power, clocks, temperature; rarely PCIe, NVLink and ECC. Run: gpu:<uuid>/tree used_bytes, the
    sum over the run's processes that the driver lists there, and process:<pid>/gpu:<uuid>; no
    reading where it lists none, or where it has no number for them. Drivers count host process
    ids: inside a container with ids of its own there is no reading.

    A device that does not answer is a gap ("lost"), a driver that does not answer makes all of
    them gaps ("late"). Events (XID, ECC) are handed out once. Device state is never changed.
    """

    def __init__(
        self,
        clock: Clock,
        backend: str = "nvml",
        *,
        problem: Callable[[], str] = nvidia_problem,
        wait_s: float = WAIT_S,
    ) -> None:
        """Remember what to ask; nothing is started before the first reading.

        Args:
            clock: paces deadlines and new starts.
            backend: "nvml" or "amd".
            problem: says why it makes no sense to start a probe at all; "" when it does.
            wait_s: longest wait for an answer inside a tick.
        """
        self.probe = Probe(backend, clock)
        """The child that talks to the driver."""
        self.problem = ""
        """Why there are no readings at all; "" while there are some."""
        self.driver = ""
        """Version of the driver."""
        self._clock = clock
        self._why_not = problem
        self._wait_s = wait_s
        self._gpus: dict[str, _Gpu] = {}
        self._events: list[Event] = []
        self._readings: list[Reading] = []
        self._runs: dict[str, _RunState] = {}
        self._fresh: tuple[str, ...] = ()
        self._moved: dict[int, list[str]] = {}
        self._other_lists = False
        self._pids: dict[str | None, frozenset[int]] = {}
        self._tick = -1
        self._retry_ns = 0
        self._retry_s = FIRST_RETRY_S

    @property
    def states(self) -> dict[str, str]:
        """Each known device's state: "ok", "lost" or "late"."""
        return {uuid: gpu.state for uuid, gpu in self._gpus.items()}

    @property
    def names(self) -> dict[str, str]:
        """Each known device's product name."""
        return {uuid: gpu.name for uuid, gpu in self._gpus.items()}

    def pids(self, uuid: str | None = None) -> frozenset[int]:
        """Return the processes on a GPU, or on any, by the last answer.

        The same object while they are the same.
        """
        if uuid not in self._pids:
            gpus = [gpu for name, gpu in self._gpus.items() if uuid in (None, name)]
            self._pids[uuid] = frozenset(pid for gpu in gpus for pid in gpu.processes)
        return self._pids[uuid]

    def cpu_ns(self) -> int:
        """Return the CPU time of the running probe, in nanoseconds."""
        return (cpu_ns(self.probe.pid) or 0) if self.probe.pid is not None else 0

    def close(self) -> None:
        """End the probe."""
        self.probe.close()

    def collect(self, watch: Watch) -> Sequence[Reading | Gap | Event] | Steady:
        """Return the readings of all GPUs that answer, and why others do not."""
        if watch.tick != self._tick:
            self._tick = watch.tick
            self._refresh(watch)
        if watch.run_id is not None:
            return self._run(watch.run_id, watch)
        events, self._events = self._events, []
        return [*self._readings, *self._gaps(), *events]

    def _refresh(self, watch: Watch) -> None:
        """Ask once in a tick, for all its watches."""
        self._readings = []
        recent = watch.tick - 1
        self._runs = {run: state for run, state in self._runs.items() if state.tick >= recent}
        self._fresh, self._moved, self._other_lists = (), {}, False
        if self._clock.monotonic_ns() < self._retry_ns:
            return
        if self.probe.pid is None and (problem := self._why_not()):
            self._pause(problem, absent=True)
            return
        groups = ["fast", *(pace for pace in ("medium", "rare") if pace in watch.due)]
        answer = self.probe.exchange(groups, self._wait_s)
        if answer is None:
            if self.probe.late:
                for uuid in self._gpus:
                    self._set(uuid, "late")
        elif answer["state"] != "ok":
            self._pause(answer["reason"], absent=answer["state"] == "absent")
        else:
            self._take(answer)

    def _pause(self, problem: str, *, absent: bool) -> None:
        """Note why there is nothing to read, say it once, and try again later."""
        if problem != self.problem:
            level = logging.INFO if absent else logging.WARNING
            _log.log(level, "no GPU readings: %s", problem)
        self.problem = problem
        self.probe.stop(pause_s=0)
        for uuid in self._gpus:
            self._set(uuid, "lost")
        self._retry_ns = self._clock.monotonic_ns() + round(self._retry_s * NS)
        self._retry_s = min(2 * self._retry_s, LAST_RETRY_S)

    def _take(self, answer: Mapping[str, Any]) -> None:
        if self.problem:
            _log.info("GPU readings are back")
        self.problem, self._retry_s, self.driver = "", FIRST_RETRY_S, answer["driver"]
        seen = set()
        for entry in answer["gpus"]:
            seen.add(entry["uuid"])
            self._take_gpu(entry)
        for uuid in self._gpus.keys() - seen:
            self._set(uuid, "lost")
        for uuid, kind, code, t_ns in answer["events"]:
            text = f"GPU {uuid}: {kind} {code}"
            self._events.append(Event(f"gpu:{uuid}", f"gpu.{kind}", code, text, t_ns))

    def _take_gpu(self, entry: Mapping[str, Any]) -> None:
        uuid = entry["uuid"]
        gpu = self._gpus.setdefault(uuid, _Gpu(entry["name"]))
        gpu.missing = entry["missing"]
        processes = entry["processes"] or {}
        if entry["state"] == "ok" and _failed(entry):
            processes = gpu.processes  # who is on it is not known: they have no number, and stay
        elif entry["state"] == "ok":
            self._fresh = (*self._fresh, uuid)
        if processes is not gpu.processes and processes != gpu.processes:
            self._note_moved(uuid, gpu.processes, processes)
            gpu.processes = processes
        self._set(uuid, entry["state"])
        entity = f"gpu:{uuid}"
        self._readings += [Reading(entity, metric, n) for metric, n in entry["values"].items()]

    def _note_moved(
        self, uuid: str, before: Mapping[int, int | None], now: Mapping[int, int | None]
    ) -> None:
        """Note whose bytes on a GPU are others; where its processes are others, only that."""
        if before.keys() != now.keys():
            self._other_lists, self._pids = True, {}
            return
        for pid, value in now.items():
            if value != before[pid]:
                self._moved.setdefault(pid, []).append(uuid)

    def _set(self, uuid: str, state: str) -> None:
        gpu = self._gpus[uuid]
        if gpu.state == state:
            return
        text = f"GPU {uuid} is {state}" if state != "ok" else f"GPU {uuid} answers again"
        self._events.append(Event(f"gpu:{uuid}", "gpu.state", STATES.index(state), text))
        gpu.state = state

    def _gaps(self) -> Iterator[Gap]:
        for uuid, gpu in self._gpus.items():
            if gpu.state != "ok":
                yield Gap(f"gpu:{uuid}", "state", gpu.state)  # type: ignore[arg-type]
                continue
            for metric, state in gpu.missing.items():
                yield Gap(f"gpu:{uuid}", metric, state)  # type: ignore[arg-type]

    def _run(self, run_id: str, watch: Watch) -> Steady:
        """Return a run's readings: those of the last tick, less what is other now."""
        state = self._runs.get(run_id)
        same = state is not None and state.members is watch.members and state.fresh == self._fresh
        news = None if state is None or not same or self._other_lists else self._stepped(state)
        if news is None:
            state = self._runs[run_id] = self._put_together(watch)
            news = [item for item in state.found if isinstance(item, Reading)]
        assert state is not None
        state.tick = watch.tick
        return Steady(state.found, news)

    def _stepped(self, state: _RunState) -> list[Reading] | None:
        """Take in whose bytes are others, and return what is new by it, and the sums.

        None where a number came or went.
        """
        mine = state.members.keys() & self._moved.keys()
        if mine:
            state.found = list(state.found)
        news: list[Reading] = []
        for pid in mine:
            for uuid in self._moved[pid]:
                place, value = state.places[uuid, pid], self._gpus[uuid].processes[pid]
                before, total = state.found[place], state.sums.get(uuid)
                if value is None or total is None or not isinstance(before, Reading):
                    return None
                state.found[place] = reading = before._replace(value=value)
                news.append(reading)
                sums = state.found[total]
                assert isinstance(sums, Reading)
                state.found[total] = sums._replace(value=sums.value + value - before.value)
        return news + [state.found[place] for place in state.sums.values()]  # type: ignore[misc]

    def _put_together(self, watch: Watch) -> _RunState:
        state = _RunState(watch.tick, watch.members, self._fresh)
        for uuid in self._fresh:
            processes = self._gpus[uuid].processes
            total: int | None = None
            for pid in processes.keys() & watch.members.keys():
                entity, value = f"process:{watch.members[pid].label}/gpu:{uuid}", processes[pid]
                state.places[uuid, pid] = len(state.found)
                if value is None:
                    state.found.append(Gap(entity, "used_bytes", "not-supported"))
                else:
                    state.found.append(Reading(entity, "used_bytes", value))
                    total = value + (total or 0)
            if total is not None:
                state.sums[uuid] = len(state.found)
                state.found.append(Reading(f"gpu:{uuid}/tree", "used_bytes", total))
        return state


def _failed(entry: Mapping[str, Any]) -> bool:
    """Tell whether a device has a list of processes that could not be read."""
    if entry["processes"] is not None:
        return False
    states = (entry["missing"].get(f"{kind}_processes") for kind in ("compute", "graphics"))
    return any(state not in (None, "not-supported") for state in states)
