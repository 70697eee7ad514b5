"""Numbers, times and judgements as people read them, and what all screens are drawn with."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memplan_tui.lines import Line, Piece
from memplan_tui.messages import FIRST_WINDOW_NS, Detail, Snapshot
from memplan_tui.text import tr

from memplan.chart import Glyphs, Words, glyphs
from memplan.types import DeviceComparison, Run
from memplan.units import UNITS

if TYPE_CHECKING:
    from memplan.types import Plan

__all__ = ["WINDOWS", "Look", "ago", "clock", "gap", "headline", "judged", "number", "part_name"]

STALE_NS = 30 * 10**9
"""After this long without a sample the sampler is taken for gone: a daemon keeps what it read for
ten seconds before it writes, and on a busy machine it samples less often."""

WINDOWS: tuple[int | None, ...] = (60 * 10**9, FIRST_WINDOW_NS, 3600 * 10**9, None)
"""How far back curves go: one minute, ten, an hour, all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How things are shown."""

    unit: str = "GiB"
    """Unit of sizes."""
    style: Glyphs = glyphs("braille")  # noqa: RUF009 - frozen
    """What is drawn with."""
    window_ns: int | None = None
    """How far back curves go."""
    device: int = 0
    """Which device's chart comes first."""
    clock: Piece = ("", "")
    """What stands at the right end of the status line."""


def words() -> Words:
    """Return the names of a chart's lines."""
    return Words(measured=tr("measured"), plan=tr("plan"), capacity=tr("capacity"))


def part_name(part: str) -> str:
    """Return a part's name for people; the words of the field stay."""
    names = {
        "weights": tr("weights"),
        "kv_cache": tr("KV cache"),
        "state_cache": tr("state cache"),
        "activations": tr("activations"),
        "gradients": tr("gradients"),
        "optimizer": tr("optimizer"),
        "buffers": tr("buffers"),
        "overhead": tr("overhead"),
        "unaccounted": tr("unaccounted"),
    }
    return names.get(part, part)


def number(value: int | None, unit: str) -> str:
    """Return a size without its unit; the heading has it. None = N/A, never 0."""
    if value is None:
        return tr("N/A")
    return f"{value / UNITS[unit]:.{_digits(unit)}f}"


def _digits(unit: str) -> int:
    return 1 if unit == "MiB" else 2


def size(value: int | None, unit: str) -> str:
    """Return a size with its unit."""
    return number(value, unit) if value is None else f"{number(value, unit)} {unit}"


def gap(measured: int | None, planned: int | None, unit: str) -> str:
    """Return the signed difference, "=" when it is zero to the byte."""
    if measured is None or planned is None:
        return ""
    if measured == planned:
        return "="
    return signed(measured - planned, unit)


def signed(value: int, unit: str) -> str:
    """Return a difference with its sign, without its unit."""
    return f"{value / UNITS[unit]:+.{_digits(unit)}f}"


def band(low: int | None, high: int | None, unit: str) -> str:
    """Return the ends of a band; "" where it has no width."""
    if low is None or high is None or low == high:
        return ""
    return f"{number(low, unit)} .. {number(high, unit)}"


def ago(ns: int) -> str:
    """Return how long ago something was, in words."""
    seconds = max(ns, 0) // 10**9
    if seconds < 120:
        return tr("{n} s ago").format(n=seconds)
    if seconds < 7200:
        return tr("{n} min ago").format(n=seconds // 60)
    if seconds < 48 * 3600:
        return tr("{n} h ago").format(n=seconds // 3600)
    return tr("{n} days ago").format(n=seconds // 86400)


def clock(t_ns: int, *, day: bool = False) -> str:
    """Return a local time of day."""
    return time.strftime("%Y-%m-%d %H:%M:%S" if day else "%H:%M:%S", time.localtime(t_ns / 1e9))


def short_day(t_ns: int) -> str:
    """Return a day of this year or so, and the time, where there is little room."""
    return time.strftime("%m-%d %H:%M", time.localtime(t_ns / 1e9))


def lasting(start_ns: int, end_ns: int) -> str:
    """Return a length of time."""
    seconds = max(end_ns - start_ns, 0) / 1e9
    if seconds < 600:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def judged(row: DeviceComparison, *, running: bool = False) -> Piece:
    """Return how a device did, in words that need no colour.

    Args:
        row: the device.
        running: the run goes on: below the plan is then no finding yet.
    """
    if row.peak_bytes is None:
        return tr("not measured"), "dim"
    if row.within_band is None:
        return tr("no plan"), "dim"
    if row.within_band:
        return tr("within plan"), "good"
    if row.peak_bytes > (row.high_bytes or 0):
        return tr("OVER PLAN"), "bad"
    return (tr("below so far"), "dim") if running else (tr("under plan"), "warn")


def sampler(snapshot: Snapshot) -> Piece:
    """Return whether anything is sampled. A run that goes on is sampled by `memplan run`."""
    last = snapshot.last_sample_ns
    if snapshot.kept:
        return tr("database: {state}").format(state=state_name(snapshot.state)), "bad"
    if snapshot.state != "ok":
        return "", ""
    if last is None:
        return tr("nothing sampled yet"), "warn"
    if snapshot.now_ns - last <= STALE_NS:
        return tr("sampling"), "good"
    return tr("last sample {ago}").format(ago=ago(snapshot.now_ns - last)), "warn"


def state_name(state: str) -> str:
    """Return a database's state in one or two words."""
    names = {
        "missing": tr("gone"),
        "newer": tr("newer than this memplan"),
        "locked": tr("locked"),
        "broken": tr("cannot be read"),
    }
    return names.get(state, state)


def headline(detail: Detail | None) -> str:
    """Return the selected run in one line."""
    if detail is None:
        return tr("this machine")
    facts = [tr("run {id}").format(id=detail.run.id), run_state(detail)]
    if detail.plan is None:
        return " · ".join([*facts, tr("no plan")])
    return " · ".join([*facts, plan_line(detail.plan)])


def run_state(detail: Detail) -> str:
    """Return how a run stands."""
    run = detail.run
    names = {
        "running": tr("running"),
        "finished": tr("finished"),
        "failed": tr("exit {code}").format(code=run.exit_code),
        "lost": tr("lost"),
    }
    return names[run.status]


def plan_line(plan: Plan) -> str:
    """Return a plan's model and workload in one line."""
    work = plan.workload
    size_ = work.context if work.task == "infer" else work.seq
    form = work.dtype if work.quant == "none" else work.quant
    return f"{plan.model.name} · {form} · {work.task} {work.batch} x {size_}"


def command_line(run: Run) -> str:
    """Return a run's command, of its program only the name."""
    program, *words = run.command or ("",)
    return shlex.join([program.rpartition("/")[2], *words])


def join(pieces: list[Line], between: str) -> Line:
    """Return lines as one, with something between them."""
    result: Line = []
    for i, piece in enumerate(pieces):
        result += [(between, "dim"), *piece] if i else piece
    return result
