"""What to say where there is nothing to show, and what to type; notes on what is shown."""

from __future__ import annotations

from memplan_tui.lines import Line, wrapped
from memplan_tui.messages import Snapshot
from memplan_tui.text import tr
from memplan_tui.views.words import STALE_NS, ago, clock, state_name

__all__ = ["empty", "note"]

Command = tuple[str, str]
"""What it is for, and what to type."""


def _commands(*commands: Command) -> list[Line]:
    wide = max(len(words) for words, _ in commands) + 3
    return [[(f"  {words:<{wide}}", ""), (typed, "bold")] for words, typed in commands]


def _ways() -> list[Line]:
    return _commands(
        (tr("Measure something:"), "memplan run -- COMMAND"),
        (tr("Against a plan:"), "memplan run --plan last -- COMMAND"),
        (tr("See the whole loop:"), "memplan demo"),
        (tr("Watch this machine:"), "memplan daemon start"),
    )


def empty(snapshot: Snapshot, width: int, *, need: str = "live") -> list[Line] | None:
    """Return what stands instead of a screen that has nothing to show; None = it has something.

    Args:
        snapshot: what is known.
        width: characters.
        need: "live" (a run or the machine), "plan", "compare" (a run) or "runs".
    """
    if snapshot.kept or (snapshot.state == "ok" and _has(snapshot, need)):
        return None
    if snapshot.state == "reading":
        return [[(tr("Reading the database ..."), "dim")]]
    blank: Line = [("", "")]
    if snapshot.state == "ok" and need == "compare" and snapshot.runs:
        return _choose(width)
    if snapshot.state == "ok":
        return [*_nothing(need, width), blank, *(_plans() if need == "plan" else _ways())]
    titles = {
        "missing": tr("There is no database yet."),
        "newer": tr("The database was written by a newer memplan."),
        "locked": tr("The database is locked by another program."),
        "broken": tr("The database cannot be read."),
    }
    lines = [*wrapped(titles[snapshot.state], width, "title"), blank]
    lines += wrapped(snapshot.reason, width, "dim")
    if snapshot.state == "missing":
        lines += [blank, *_ways()]
    elif snapshot.hint:
        lines += [blank, [(tr("Try:") + " ", ""), (snapshot.hint, "bold")]]
    return [
        *lines,
        blank,
        *wrapped(tr("This screen fills itself as soon as there is something."), width),
    ]


def _has(snapshot: Snapshot, need: str) -> bool:
    if need == "plan":
        return snapshot.plan is not None
    if need in {"runs", "fleet"}:
        return bool(snapshot.runs)
    if need == "compare":
        return snapshot.detail is not None
    return snapshot.detail is not None or bool(snapshot.machine.history)


def _nothing(need: str, width: int) -> list[Line]:
    if need == "plan":
        return wrapped(tr("No plan has been stored yet."), width, "title")
    if need == "compare":
        return wrapped(tr("No run is selected."), width, "title")
    if need == "live":
        return [
            *wrapped(tr("No run has been stored yet, and nothing is sampling."), width, "title"),
        ]
    return wrapped(tr("No run has been stored yet."), width, "title")


def _choose(width: int) -> list[Line]:
    return [
        *wrapped(tr("No run is selected."), width, "title"),
        [("", "")],
        *wrapped(tr("o selects the newest one; on the screen Runs, enter opens any."), width),
    ]


def _plans() -> list[Line]:
    return _commands(
        (tr("Make one:"), "memplan plan llama-3.1-8b --device 24GiB --save"),
        (tr("See the whole loop:"), "memplan demo"),
    )


def note(snapshot: Snapshot, *, need: str = "live", replay: bool = False) -> Line | None:
    """Return the one thing a reader must know about what is on the screen; None = nothing.

    Args:
        snapshot: what is known.
        need: as of `empty`; what the sampler does now is said on the Live screen.
        replay: is one played.
    """
    if snapshot.kept:
        words = tr("Database {state}. Shown is what was read at {time}: {reason}")
        text = words.format(
            state=state_name(snapshot.state), reason=snapshot.reason, time=clock(snapshot.now_ns)
        )
        return [(text, "bad")]
    if snapshot.state != "ok" or replay or need != "live":
        return None
    if snapshot.last_sample_ns is None:
        return [(tr("Nothing is sampling. Start it: memplan daemon start"), "warn")]
    silent = snapshot.now_ns - snapshot.last_sample_ns
    if silent > STALE_NS:
        words = tr("Last sample {ago}: nothing is sampling. Start it: memplan daemon start")
        return [(words.format(ago=ago(silent)), "warn")]
    return _hardware(snapshot)


def _hardware(snapshot: Snapshot) -> Line | None:
    plan = snapshot.detail.plan if snapshot.detail is not None else None
    kinds = {ledger.kind for ledger in plan.devices} if plan is not None else set()
    shared = plan is not None and "host_memory" in plan.workload.assumed
    if shared and "gpu" in kinds and "cpu" not in kinds:
        return [(tr("CPU and GPU share one memory here: it is counted once."), "dim")]
    if "gpu" in kinds and not snapshot.machine.gpus:
        return [(tr("No GPU is seen here: the plan's GPU cannot be measured."), "warn")]
    if snapshot.machine.total_bytes is None:
        return [(tr("The machine itself is not sampled: memplan daemon start"), "dim")]
    if not snapshot.machine.gpus and snapshot.detail is None:
        return [(tr("No NVIDIA driver found; showing host memory only."), "dim")]
    return None
