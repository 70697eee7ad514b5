"""The newest readings as metric families: names, labels and units as Prometheus wants them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from memplan_daemon.collectors.gpu import GpuCollector
from memplan_daemon.sampler import Sampler
from memplan_daemon.snapshot import Moment

__all__ = ["Family", "Place", "family_of", "others", "place"]

_UNITS = {
    "microseconds": ("seconds", 1e-6),
    "milliwatts": ("watts", 1e-3),
    "megahertz": ("hertz", 1e6),
    "percent": ("ratio", 1e-2),
}
"""Our unit -> the base unit and the factor."""

_COUNTERS = (
    "oom_kill_count",
    "limit_hit_count",
    "throttled_count",
    "alloc_retries_count",
    "ooms_count",
    "peak_resets_count",
    "ecc_corrected_count",
    "ecc_uncorrected_count",
    "late_ticks_count",
    "dropped_samples_count",
    "probe_restarts_count",
    "stall_some_microseconds",
    "stall_full_microseconds",
    "cpu_microseconds",
    "nvlink_tx_bytes",
    "nvlink_rx_bytes",
)
"""Metrics that only grow."""


@dataclass(slots=True)
class Family:
    """One metric with all its series."""

    name: str
    """Without "_total"."""
    help: str
    """One sentence."""
    labels: tuple[str, ...] = ()
    """Names of the labels."""
    counter: bool = False
    """It only grows."""
    series: list[tuple[tuple[str, ...], float]] = field(default_factory=list)
    """(label values, value)."""


Place = tuple[str, tuple[str, ...], tuple[str, ...]]
"""(scope, label names, label values)."""


def place(run: str | None, entity: str) -> Place | None:
    """Return where an entity is shown; None for one that is not exported."""
    if run is None:
        kind, _, name = entity.partition(":")
        if kind == "gpu":
            return "gpu", ("gpu",), (name,)
        return (entity, (), ()) if entity in ("host", "daemon") else None
    if entity in ("tree", "cgroup", "workload"):
        return {"tree": "run"}.get(entity, entity), ("run",), (run,)
    first, _, second = entity.partition("/")
    kind, _, name = first.partition(":")
    if kind == "gpu" and second == "tree":
        return "run_gpu", ("run", "gpu"), (run, name)
    if kind == "torch":
        return "torch", ("run", "device", "pid"), (run, name, "")
    if kind != "process":
        return None
    if second.startswith("gpu:"):
        return "process_gpu", ("run", "pid", "gpu"), (run, name, second[4:])
    if second.startswith("torch:"):
        return "torch", ("run", "device", "pid"), (run, second[6:], name)
    return ("process", ("run", "pid"), (run, name)) if not second else None


def _metric(metric: str) -> tuple[str, float, bool]:
    """Return (name in base units, factor, does it only grow)."""
    counter = metric in _COUNTERS
    stem, _, unit = metric.rpartition("_")
    if unit == "count":
        return stem, 1.0, counter
    if unit in _UNITS:
        base, factor = _UNITS[unit]
        return f"{stem}_{base}", factor, counter
    return metric, 1.0, counter


def family_of(scope: str, labels: tuple[str, ...], metric: str) -> tuple[Family, float] | None:
    """Return a metric of a scope without series, and the factor from our unit to the base unit.

    None for one that is not shown.
    """
    if metric.startswith("final_"):
        return None
    stem, factor, counter = _metric(metric)
    about = f"{stem.replace('_', ' ')} of one {scope.replace('_', ' of one ')}, as sampled."
    return Family(f"memplan_{scope}_{stem}", about, labels, counter), factor


def others(sampler: Sampler, moment: Moment, gpus: Sequence[GpuCollector]) -> Iterable[Family]:
    """Yield what is shown beside a moment's numbers."""
    yield from _missing(moment)
    yield from _devices(gpus)
    yield from _own(sampler, moment)


def _missing(moment: Moment) -> Iterable[Family]:
    family = Family(
        "memplan_missing",
        "1 for a number that cannot be read, with the reason.",
        labels=("run", "entity", "metric", "reason"),
    )
    for part in moment.parts:
        for (entity, metric), state in part.gaps.items():
            family.series.append(((part.run or "", entity, metric, state), 1))
    yield family


def _devices(gpus: Sequence[GpuCollector]) -> Iterable[Family]:
    up = Family("memplan_gpu_up", "1 while the device answers.", ("gpu",))
    info = Family("memplan_gpu_info", "The device's product name.", ("gpu", "name"))
    for collector in gpus:
        up.series += [((uuid,), int(s == "ok")) for uuid, s in collector.states.items()]
        info.series += [((uuid, name), 1) for uuid, name in collector.names.items()]
    yield up
    yield info


def _own(sampler: Sampler, moment: Moment) -> Iterable[Family]:
    counts, budget = sampler.counts, sampler.budget
    numbers = {
        "ticks": (counts.ticks, True, "Ticks taken."),
        "events": (sampler.events.count, True, "Events seen."),
        "samples_written": (counts.samples_written, True, "Samples that the store has committed."),
        "lateness_seconds": (counts.lateness_ns / 1e9, False, "Lateness of the newest tick."),
        "last_tick_timestamp_seconds": (moment.t_ns / 1e9, False, "When it ticked last."),
        "store_up": (int(not sampler.store_error), False, "1 while the store takes samples."),
        "stretch_ratio": (
            budget.stretch if budget else 1.0,
            False,
            "Intervals are so much longer.",
        ),
    }
    for name, (value, counter, text) in numbers.items():
        yield Family(f"memplan_sampler_{name}", text, (), counter, [((), value)])
    info = Family("memplan_run_info", "A run that is watched.", ("run", "pid", "uid"))
    for run_id, about in moment.runs.items():
        info.series.append(((run_id, str(about.pid), str(about.uid)), 1))
    yield info
