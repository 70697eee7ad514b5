"""Draws docs/dashboard.svg: the dashboard's Compare screen on a stored run.

    .venv/bin/python docs/screenshot.py [DATABASE]

Without DATABASE it runs `memplan demo` into a temporary one first, so that the picture shows a real
run. Paths in the command of the run are shortened to their last part.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from memplan_tui.app import MemplanApp

OUTPUT = Path(__file__).parent / "dashboard.svg"
SIZE = (100, 42)


async def draw(database: str) -> None:
    """Show the demo's first run, the one with the offload, and save the screen."""
    app = MemplanApp(database, unit="MiB")
    async with app.run_test(size=SIZE) as pilot:
        await _settled(app)
        await pilot.press("2")
        names = [run.id for run in app.snapshot.runs if "generate" in " ".join(run.command)]
        if names:
            app.select_run(names[0])
        await pilot.pause(1.0)
        svg = app.export_screenshot(title="memplan tui")
    OUTPUT.write_text(svg, encoding="utf-8")


async def _settled(app: MemplanApp) -> None:
    for _ in range(100):
        if app.snapshot.state == "ok":
            return
        await asyncio.sleep(0.05)


def main() -> None:
    """Draw the picture."""
    if len(sys.argv) > 1:
        asyncio.run(draw(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        database = f"{folder}/demo.db"
        environment = {**os.environ, "MEMPLAN_DATABASE": database}
        command = [sys.executable, "-m", "memplan", "demo"]
        subprocess.run(command, env=environment, check=True)
        asyncio.run(draw(database))


if __name__ == "__main__":
    main()
