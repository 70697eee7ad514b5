"""Draws the pictures of the dashboard: Live, Plan and Compare on a stored run, as SVG.

    .venv/bin/python docs/screenshot.py [DATABASE]

Without DATABASE it runs `memplan demo` into a temporary one first, so that the pictures show a real
run, and saves a plan of a 70B model for the Plan screen.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from memplan_tui.app import MemplanApp

from memplan.cli.whatif import WhatIf
from memplan.store.reader import StoreReader
from memplan.types import Run

FOLDER = Path(__file__).parent
SIZES = {"live": (112, 34), "plan": (112, 30), "compare": (112, 42)}
FILES = {"live": "dashboard.svg", "plan": "plan.svg", "compare": "compare.svg"}
PLAN = ("llama-3.1-70b", "--quant", "int8", "--device", "a100-40gb", "--gpus", "2")
PLAN_HOST = ("--host-memory", "128GiB", "--disk", "0", "--context", "16384")

_FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
"""The library's pictures load a font from elsewhere; ours use the reader's own."""


async def draw(database: str) -> None:
    """Show the demo's first run, the one with the offload, and save each screen."""
    with StoreReader(database) as reader:
        run = _shown(reader.runs())
    app = MemplanApp(database, unit="MiB", planner=WhatIf(), now_ns=lambda: run.ended_ns or 0)
    async with app.run_test(size=SIZES["live"]) as pilot:
        app.select_run(run.id)
        await _settled(app, run.id)
        await pilot.pause(1.0)
        _save(app, "live")
        await pilot.resize_terminal(*SIZES["compare"])
        await pilot.press("3")
        await pilot.pause(1.0)
        _save(app, "compare")
        await pilot.resize_terminal(*SIZES["plan"])
        app.select_plan("last")
        await pilot.press("u", "u", "2")
        await pilot.pause(3.0)
        await pilot.press("z")
        await pilot.pause(2.0)
        _save(app, "plan")


def _shown(runs: tuple[Run, ...]) -> Run:
    names = [run for run in runs if "generate" in " ".join(run.command)]
    return (names or list(runs))[0]


def _save(app: MemplanApp, name: str) -> None:
    svg = _FONTS.sub("", app.export_screenshot(title=f"memplan tui · {name}"))
    svg = svg.replace("Fira Code", "DejaVu Sans Mono")
    (FOLDER / FILES[name]).write_text(svg, encoding="utf-8")


async def _settled(app: MemplanApp, run_id: str) -> None:
    for _ in range(400):
        detail = app.snapshot.detail
        if detail is not None and detail.run.id == run_id:
            return
        await asyncio.sleep(0.05)


def main() -> None:
    """Draw the pictures."""
    with contextlib.ExitStack() as stack:
        if len(sys.argv) > 1:
            database = sys.argv[1]
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            database = f"{folder}/demo.db"
            _memplan(database, "demo")
        _memplan(database, "plan", *PLAN, *PLAN_HOST, "--save", "--quiet")
        asyncio.run(draw(database))


def _memplan(database: str, *words: str) -> None:
    environment = {**os.environ, "MEMPLAN_DATABASE": database}
    command = [sys.executable, "-m", "memplan", *words]
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}")


if __name__ == "__main__":
    main()
