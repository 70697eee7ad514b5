"""What was measured as text."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from memplan.report.columns import number, table
from memplan.types import Peak, Phase, Run

__all__ = ["run_line", "run_text"]


def run_text(
    run: Run, *, phases: Sequence[Phase] = (), peaks: Sequence[Peak] = (), unit: str = "GiB"
) -> str:
    """Return one run: how it ended, its phases with their counters, the peak of each series."""
    sections = [[run_line(run)], _phase_table(phases, unit), _peak_table(peaks, unit)]
    if not peaks:
        sections.append(["  nothing was measured"])
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def run_line(run: Run) -> str:
    """Return a run's command, time and end in one line."""
    text = f"run {run.id}: {shlex.join(run.command)}"
    if run.ended_ns is not None:
        text += f" · {(run.ended_ns - run.started_ns) / 1e9:.1f} s"
    if run.exit_code is not None:
        text += f" · exit code {run.exit_code}"
    return f"{text} · {run.status}"


def _phase_table(phases: Sequence[Phase], unit: str) -> list[str]:
    if not phases:
        return []
    rows = [["phase", "seconds", "counter", unit]]
    for phase in phases:
        seconds = (
            "" if phase.ended_ns is None else f"{(phase.ended_ns - phase.started_ns) / 1e9:.2f}"
        )
        for i, (name, value) in enumerate(sorted(phase.counters.items()) or [("", 0)]):
            first = (phase.name, seconds) if i == 0 else ("", "")
            rows.append([*first, name, number(value, unit) if name else ""])
    return table(rows, "lrlr")


def _peak_table(peaks: Sequence[Peak], unit: str) -> list[str]:
    if not peaks:
        return []
    rows = [["series", "metric", f"peak {unit}", "samples"]]
    left_out = _small_processes(peaks)
    for peak in sorted(peaks, key=lambda p: (p.series.entity, p.series.metric)):
        if peak.series.entity in left_out:
            continue
        is_bytes = peak.series.metric.endswith("_bytes")
        value = number(peak.value, unit) if is_bytes else str(peak.value)
        rows.append([peak.series.entity, peak.series.metric, value, str(peak.count)])
    lines = table(rows, "llrr")
    if left_out:
        lines.append(f"  and {len(left_out)} smaller processes: memplan export RUN")
    return lines


_LISTED_PROCESSES = 4
"""A program's helpers come and go by the dozen: a summary names the largest."""


def _small_processes(peaks: Sequence[Peak]) -> set[str]:
    """Return all processes but the largest, each by its highest peak."""
    sizes: dict[str, int] = {}
    for peak in peaks:
        entity, metric = peak.series.entity, peak.series.metric
        if entity.startswith("process:") and metric.endswith("_bytes"):
            sizes[entity] = max(peak.value, sizes.get(entity, 0))
    order = sorted(sizes, key=lambda entity: -sizes[entity])
    return set(order[_LISTED_PROCESSES:])
