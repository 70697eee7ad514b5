"""Tracks -> what the screens show, at any time: the same for a live run and for a replay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from memplan_tui.messages import Detail, Gpu, Host, Machine, Points
from memplan_tui.tracks import Tracks

from memplan.compare import compare
from memplan.types import Device, FrozenMap, Peak, Phase, Run

if TYPE_CHECKING:
    from memplan.types import Plan

__all__ = ["detail_at", "highest", "hosts_of", "machine_at", "phases_at", "run_at"]

_PROCESS = ("rss_bytes", "hwm_bytes")


def detail_at(
    run: Run,
    plan: Plan | None,
    tracks: Tracks,
    phases: Sequence[Phase],
    devices: Sequence[Device],
    *,
    at_ns: int,
    window_ns: int | None,
) -> Detail:
    """Return a run as it stood at a time.

    Args:
        run: as stored.
        plan: its plan.
        tracks: its samples.
        phases: as stored.
        devices: they tell which uuid is "cuda:0".
        at_ns: the clock.
        window_ns: how far back curves go; None = all.
    """
    now_run, now_phases, peaks = run_at(run, at_ns), phases_at(phases, at_ns), tracks.peaks(at_ns)
    entities = _entities(tracks, devices)
    since = 0 if window_ns is None else at_ns - window_ns
    return Detail(
        run=now_run,
        plan=plan,
        comparison=compare(plan, now_run, peaks=peaks, phases=now_phases, devices=devices),
        phases=now_phases,
        peaks=peaks,
        now=_values(tracks.now, entities, at_ns),
        history=_curves(tracks, entities, since, at_ns),
        processes=tracks.processes(now_phases, at_ns),
    )


def _values(
    read: Callable[[str, str, int], int | None], keys: Mapping[str, tuple[str, str]], at_ns: int
) -> FrozenMap[int]:
    """Return what a reading says of each name, where it says anything."""
    found = {name: read(*key, at_ns) for name, key in keys.items()}
    return FrozenMap({name: value for name, value in found.items() if value is not None})


def _entities(tracks: Tracks, devices: Sequence[Device]) -> dict[str, tuple[str, str]]:
    """Return device name -> the series of a run that is drawn for it, the host last."""
    names = {device.uuid: device.name for device in devices if device.uuid}
    found: dict[str, tuple[str, str]] = {}
    for entity in sorted(tracks.entities("used_bytes")):
        if entity.startswith("gpu:") and entity.endswith("/tree"):
            uuid = entity.removeprefix("gpu:").removesuffix("/tree")
            found[names.get(uuid, f"cuda:{len(found)}")] = (entity, "used_bytes")
    if ("tree", "rss_bytes") in tracks.series:
        found["cpu"] = ("tree", "rss_bytes")
    return dict(sorted(found.items(), key=lambda item: (item[0] == "cpu", item[0])))


def run_at(run: Run, at_ns: int) -> Run:
    """Return a run as it stood at a time: before its end it was running."""
    if run.ended_ns is None or at_ns >= run.ended_ns:
        return run
    return replace(run, ended_ns=None, exit_code=None, status="running")


def phases_at(phases: Sequence[Phase], at_ns: int) -> tuple[Phase, ...]:
    """Return the phases that had begun at a time; those that went on have no end and no counts."""
    begun = [phase for phase in phases if phase.started_ns <= at_ns]
    return tuple(
        replace(phase, ended_ns=None, counters=FrozenMap())
        if phase.ended_ns is not None and phase.ended_ns > at_ns
        else phase
        for phase in begun
    )


def machine_at(
    tracks: Tracks, devices: Sequence[Device], *, at_ns: int, window_ns: int | None
) -> Machine:
    """Return the machine as it stood at a time."""
    known = {device.uuid: device for device in devices if device.uuid}
    uuids = sorted({e.removeprefix("gpu:") for e, _ in tracks.series if _is_gpu(e)})
    gpus = tuple(
        Gpu(
            name=known[uuid].name if uuid in known else f"cuda:{i}",
            uuid=uuid,
            label=(known[uuid].label if uuid in known else "") or uuid,
            total_bytes=tracks.now(f"gpu:{uuid}", "total_bytes", at_ns),
            used_bytes=tracks.now(f"gpu:{uuid}", "used_bytes", at_ns),
        )
        for i, uuid in enumerate(uuids)
    )
    used = {gpu.name: (f"gpu:{gpu.uuid}", "used_bytes") for gpu in gpus}
    used["cpu"] = ("host", "used_bytes")
    since = 0 if window_ns is None else at_ns - window_ns
    return Machine(
        total_bytes=tracks.now("host", "total_bytes", at_ns),
        available_bytes=tracks.now("host", "available_bytes", at_ns),
        gpus=gpus,
        peaks=_values(tracks.high, used, at_ns),
        history=_curves(tracks, used, since, at_ns),
    )


def _curves(
    tracks: Tracks, keys: Mapping[str, tuple[str, str]], since: int, until: int
) -> FrozenMap[Points]:
    known = {name: tracks.series[key] for name, key in keys.items() if key in tracks.series}
    found = {name: track.points(since, until) for name, track in known.items()}
    return FrozenMap({name: points for name, points in found.items() if points})


def _is_gpu(entity: str) -> bool:
    return entity.startswith("gpu:") and "/" not in entity


def highest(peaks: Iterable[Peak]) -> int | None:
    """Return a run's highest process memory; None = it was not sampled."""
    values = [p.value for p in peaks if p.series.entity == "tree" and p.series.metric in _PROCESS]
    return max(values, default=None)


def hosts_of(runs: Sequence[Run], peaks: Mapping[str, int]) -> tuple[Host, ...]:
    """Return the machines that runs were made on, those with a running one first."""
    names = dict.fromkeys(run.host for run in runs)
    hosts = []
    for name in names:
        mine = [run for run in runs if run.host == name]
        known = [peaks[run.id] for run in mine if run.id in peaks]
        hosts.append(
            Host(
                name=name,
                runs=len(mine),
                running=sum(run.status == "running" for run in mine),
                over=sum(run.status in {"failed", "lost"} for run in mine),
                last_ns=max(run.started_ns for run in mine),
                peak_bytes=max(known, default=None),
            )
        )
    return tuple(sorted(hosts, key=lambda host: (-host.running, -host.last_ns)))
