"""Plan + Run -> Comparison: what was planned beside what was measured, device by device.

Four numbers are never mixed: allocated, reserved, process and device. Each device's peak says in
`measured_by` which one it is, and the planned figure beside it counts the same thing: where only
the allocator was read, the planned overhead (context, workspaces) is left out on both sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memplan.types import (
    PARTS,
    CompareVerdict,
    Comparison,
    Device,
    DeviceComparison,
    Part,
    PartComparison,
    Peak,
    Phase,
    Run,
)

if TYPE_CHECKING:
    from memplan.types import Ledger, Plan

__all__ = ["START_PHASE", "compare"]

START_PHASE = "start"
"""Name of the phase after the imports and before the first weight: its RSS is the overhead."""

_INSIDE: tuple[Part, ...] = ("weights", "kv_cache", "gradients", "optimizer", "buffers")
"""Parts that a program can count from inside as sums over live tensors."""


def compare(
    plan: Plan | None,
    run: Run,
    *,
    peaks: Sequence[Peak],
    phases: Sequence[Phase] = (),
    devices: Sequence[Device] = (),
) -> Comparison:
    """Hold a run against its plan.

    Args:
        plan: None when the run was watched without one: measured figures only.
        run: the run.
        peaks: the highest value of each of its series.
        phases: what its program reported from inside.
        devices: known devices; they tell which uuid is "cuda:0" where there are several GPUs.
    """
    measured = _Measured(peaks, phases, devices)
    if plan is None:
        rows = tuple(_unplanned(name, measured) for name in measured.device_names())
    else:
        rows = tuple(_planned(ledger, plan, measured) for ledger in plan.devices)
    return Comparison(
        run=run,
        plan_id=(plan.id or run.plan_id) if plan is not None else None,
        devices=rows,
        verdict=_verdict(rows),
        notes=tuple(_notes(plan, run, rows, phases)),
    )


@dataclass(frozen=True, slots=True)
class _Reading:
    """The measured peak of one device."""

    peak: int | None
    by: str
    overhead_included: bool = True


class _Measured:
    """Looks measured numbers up by device name."""

    def __init__(
        self, peaks: Sequence[Peak], phases: Sequence[Phase], devices: Sequence[Device]
    ) -> None:
        self._peaks = {(p.series.entity, p.series.metric): p.value for p in peaks}
        self._uuids = {device.name: device.uuid for device in devices if device.uuid}
        self._counters: dict[str, int] = {}
        for phase in phases:
            _keep_highest(self._counters, phase.counters)
        starts = [p.counters.get("process.rss") for p in phases if p.name == START_PHASE]
        self.baseline = max((rss for rss in starts if rss is not None), default=None)

    def device_names(self) -> list[str]:
        """Return the devices that anything was measured on: the host first."""
        names = ["cpu"] if self.reading("cpu").peak is not None else []
        cuda = {key.split(".")[0] for key in self._counters if key.startswith("cuda:")}
        cuda |= {e.removeprefix("torch:") for e, _ in self._peaks if e.startswith("torch:cuda:")}
        trees = sum(entity.endswith("/tree") for entity, m in self._peaks if m == "used_bytes")
        cuda |= {"cuda:0"} if trees == 1 else set()
        cuda |= {name for name, uuid in self._uuids.items() if self._tree(uuid) is not None}
        return names + sorted(cuda)

    def reading(self, device: str) -> _Reading:
        """Return the peak of a device by the best counter there is."""
        if device == "cpu":
            for metric in ("hwm_bytes", "rss_bytes"):
                if (value := self._peaks.get(("tree", metric))) is not None:
                    return _Reading(value, "peak RSS of the process tree")
            return _Reading(self._counters.get("process.hwm"), "peak RSS of the process")
        if device == "disk":
            return _Reading(self._counters.get("disk.weights"), "offloaded weights")
        if (used := self._tree(self._uuid(device))) is not None:
            return _Reading(used, "GPU memory of the process tree (NVML)")
        allocated = self._highest(device, "peak_allocated", "allocated")
        return _Reading(allocated, "peak allocated (torch)", overhead_included=False)

    def reserved(self, device: str) -> int | None:
        """Return the peak of the allocator's reserved bytes."""
        return self._highest(device, "peak_reserved", "reserved")

    def part(self, device: str, part: Part, *, process: bool) -> int | None:
        """Return the bytes of one part as counted from inside, or None."""
        if part != "overhead":
            return self._counters.get(f"{device}.{part}") if part in _INSIDE else None
        if device == "cpu":
            return self.baseline
        used, reserved = self.reading(device).peak, self.reserved(device)
        return max(used - reserved, 0) if process and used and reserved else None

    def _highest(self, device: str, *names: str) -> int | None:
        found = [self._counters.get(f"{device}.{name}") for name in names]
        found += [self._peaks.get((f"torch:{device}", f"{name}_bytes")) for name in names]
        return max((value for value in found if value is not None), default=None)

    def _tree(self, uuid: str | None) -> int | None:
        return self._peaks.get((f"gpu:{uuid}/tree", "used_bytes")) if uuid else None

    def _uuid(self, device: str) -> str | None:
        """Return a GPU's uuid: by the device table, or the only GPU that the tree used."""
        if device in self._uuids:
            return self._uuids[device]
        used = {e for e, m in self._peaks if e.startswith("gpu:") and e.endswith("/tree")}
        if device == "cuda:0" and len(used) == 1:
            return used.pop().removeprefix("gpu:").removesuffix("/tree")
        return None


def _keep_highest(into: dict[str, int], values: Mapping[str, int]) -> None:
    for name, value in values.items():
        into[name] = max(value, into.get(name, value))


def _planned(ledger: Ledger, plan: Plan, measured: _Measured) -> DeviceComparison:
    reading = measured.reading(ledger.name)
    read = ledger.reused_bytes
    planned, low, high = (
        size + read for size in (ledger.total_bytes, ledger.low_bytes, ledger.high_bytes)
    )
    if not reading.overhead_included and reading.peak is not None:
        lines = [line for line in plan.footprint.lines if line.part == "overhead"]
        planned -= sum(line.bytes for line in lines)
        low -= sum(line.low_bytes for line in lines)
        high -= sum(line.high_bytes for line in lines)
    parts = tuple(
        PartComparison(
            part=part,
            planned_bytes=ledger.parts.get(part, 0) + (read if part == "weights" else 0),
            measured_bytes=measured.part(ledger.name, part, process=reading.overhead_included),
        )
        for part in PARTS
        if reading.overhead_included or part != "overhead"
    )
    peak = reading.peak
    return DeviceComparison(
        name=ledger.name,
        planned_bytes=planned,
        low_bytes=low,
        high_bytes=high,
        peak_bytes=peak,
        peak_reserved_bytes=measured.reserved(ledger.name),
        gap_bytes=None if peak is None else peak - planned,
        within_band=None if peak is None else low <= peak <= high,
        parts=tuple(p for p in parts if p.planned_bytes or p.measured_bytes),
        unaccounted_bytes=_unaccounted(peak, parts),
        measured_by=reading.by if peak is not None else "",
    )


def _unplanned(name: str, measured: _Measured) -> DeviceComparison:
    reading = measured.reading(name)
    parts = tuple(
        PartComparison(part=part, planned_bytes=None, measured_bytes=value)
        for part in PARTS
        if (value := measured.part(name, part, process=reading.overhead_included))
    )
    return DeviceComparison(
        name=name,
        planned_bytes=None,
        low_bytes=None,
        high_bytes=None,
        peak_bytes=reading.peak,
        peak_reserved_bytes=measured.reserved(name),
        gap_bytes=None,
        within_band=None,
        parts=parts,
        unaccounted_bytes=_unaccounted(reading.peak, parts),
        measured_by=reading.by if reading.peak is not None else "",
    )


def _unaccounted(peak: int | None, parts: Iterable[PartComparison]) -> int | None:
    """Return what no part explains: the peak less each part as measured, else as planned."""
    if peak is None:
        return None
    known = (p.planned_bytes if p.measured_bytes is None else p.measured_bytes for p in parts)
    return peak - sum(value or 0 for value in known)


def _verdict(rows: Sequence[DeviceComparison]) -> CompareVerdict | None:
    judged = [row for row in rows if row.within_band is not None]
    if any((row.peak_bytes or 0) > (row.high_bytes or 0) for row in judged):
        return "over"
    if any(not row.within_band for row in judged):
        return "under"
    return "within" if judged else None


def _notes(
    plan: Plan | None,
    run: Run,
    rows: Sequence[DeviceComparison],
    phases: Sequence[Phase],
) -> Iterable[str]:
    if plan is None:
        yield "no plan was given: measured figures only"
    for row in rows:
        if plan is not None and row.peak_bytes is None:
            yield f"nothing was measured on {row.name}"
        if row.measured_by.startswith("peak allocated"):
            yield f"{row.name}: only the allocator was read, so the planned overhead is left out"
    if not phases:
        yield "the program reported nothing from inside: parts are not measured one by one"
    if run.status == "lost":
        yield "the sampler died before the command did: the peak may be higher"
    elif run.status == "running":
        yield "the command is still running: the peak may rise"
    elif run.status == "failed":
        yield f"the command failed (exit code {run.exit_code})"
