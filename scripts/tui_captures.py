"""Drives the dashboard in tmux against a running daemon, and keeps what stood on the screen.

    .venv/bin/python scripts/tui_captures.py [--check] [--folder FOLDER]

At 80x24 and 200x50, plain, with NO_COLOR=1 and with LANG=pt_BR.UTF-8: every screen by its key,
headings whole, the chart moves, a resize is survived. Captures go to tests/golden/tmux, numbers and
curves made alike; with --check their words are compared instead. Needs tmux.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from memplan.errors import StoreError
from memplan.store.reader import StoreReader

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "tests" / "golden" / "tmux"
SIZES = ((80, 24), (200, 50))
SCREENS = {"1": "live", "2": "plan", "3": "compare", "4": "runs", "5": "fleet", "?": "help"}
SIGNS = {
    "en": {
        "live": "used by all",
        "plan": "parts at the peak",
        "compare": "by part",
        "runs": "command",
        "fleet": "machines:",
        "help": "changes",
    },
    "pt_BR": {
        "live": "uso total",
        "plan": "partes no pico",
        "compare": "por parte",
        "runs": "comando",
        "fleet": "máquinas:",
        "help": "muda",
    },
}
VARIANTS = {
    "plain": {"LANG": "C.UTF-8"},
    "no_color": {"LANG": "C.UTF-8", "NO_COLOR": "1"},
    "pt_BR": {"LANG": "pt_BR.UTF-8", "PYTHONUTF8": "1"},
}
STUB = re.compile(r"(?:^|  )(?:dev|pla|pea|sta|cap|mea|now[a-z]|com|pro)(?:  |$)", re.MULTILINE)
PATIENCE_S = 60.0
_NUMBERS = itertools.count(1)
PROGRAM = """
import time
kept = []
for i in range(6000):
    kept.append(bytearray(2**20 if i % 40 < 20 else 2**16))
    if i % 60 == 59:
        del kept[: len(kept) // 2]
    time.sleep(0.05)
"""


class Problem(Exception):  # noqa: N818 - a finding, said in words
    """The screen is not as it should be."""


class Terminal:
    """A tmux window with the dashboard in it."""

    def __init__(self, size: tuple[int, int], command: str) -> None:
        """Start."""
        self.name = f"memplan-{os.getpid()}-{next(_NUMBERS)}"
        width, height = (str(number) for number in size)
        self._tmux("new-session", "-d", "-s", self.name, "-x", width, "-y", height, command)
        self._tmux("set-option", "-t", self.name, "window-size", "manual")

    def _tmux(self, *words: str) -> str:
        """Run a command on a server of this window's own: one that ends takes no other with it."""
        command = ["tmux", "-L", self.name, "-f", "/dev/null", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def text(self) -> str:
        """Return what is on the screen."""
        return self._tmux("capture-pane", "-p", "-t", self.name)

    def colours(self) -> str:
        """Return the screen with its escape sequences."""
        return self._tmux("capture-pane", "-p", "-e", "-t", self.name)

    def press(self, key: str) -> None:
        """Press a key."""
        self._tmux("send-keys", "-t", self.name, key)

    def resize(self, width: int, height: int) -> None:
        """Make the window another size."""
        self._tmux("resize-window", "-t", self.name, "-x", str(width), "-y", str(height))

    def until(self, what: str, holds: Callable[[str], bool]) -> str:
        """Wait until something holds of the screen's text."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            text = self.text()
            if holds(text):
                return text
            time.sleep(0.2)
        raise Problem(f"{what} never came:\n{self.text()}")

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self._tmux("kill-server")


def skeleton(text: str) -> str:
    """Return a capture without what changes from run to run: digits, curves, ids, folders."""
    text = re.sub(r"(?<!\S)/\S*/", "", text)
    text = re.sub(r"[\u2800-\u28ff]", " ", text)
    text = re.sub(r"\b[rp]-[0-9a-z]+", "ID", text)
    text = re.sub(r"\d+", "0", text)
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip() + "\n"


def words(text: str) -> set[str]:
    """Return the words of a skeleton, which stay whatever the numbers are."""
    return set(re.findall(r"[^\W\d_]{3,}", text))


def capture(size: tuple[int, int], variant: str, database: str) -> dict[str, str]:
    """Walk through all screens of one variant; return their captures."""
    language = "pt_BR" if variant == "pt_BR" else "en"
    names = ("LC_ALL", "LC_MESSAGES", "NO_COLOR")
    unset = " ".join(f"-u {name}" for name in names)
    env = {**VARIANTS[variant], "MEMPLAN_DATABASE": database, "COLORTERM": "truecolor", "TZ": "UTC"}
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in env.items())
    program = f"{shlex.quote(sys.executable)} -m memplan tui"
    terminal = Terminal(size, f"env {unset} {settings} {program}; sleep 600")
    try:
        return _walk(terminal, size, SIGNS[language], variant)
    finally:
        terminal.close()


def _walk(
    terminal: Terminal, size: tuple[int, int], signs: dict[str, str], variant: str
) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, name in SCREENS.items():
        terminal.press(key) if found else None
        text = terminal.until(
            name,
            lambda text, name=name: signs[name] in text and _is_whole(text, size),  # type: ignore[misc]
        )
        if STUB.search(text):
            raise Problem(f"a heading is cut on {name}:\n{text}")
        found[f"{name}_{size[0]}x{size[1]}_{variant}"] = text
    terminal.press("q")  # closes the help page
    terminal.until("fleet", lambda text: signs["fleet"] in text)
    terminal.press("1")
    first = terminal.until("live", lambda text: signs["live"] in text)
    terminal.until("a moving chart", lambda text: _curve(text) not in {"", _curve(first)})
    if variant == "no_color" and re.search(r"\x1b\[[0-9;]*(?:3|4)8;", terminal.colours()):
        raise Problem("NO_COLOR=1 and yet a colour")
    for width, height in ((50, 12), (132, 40), size):
        terminal.resize(width, height)
        terminal.until(
            f"{width}x{height}",
            lambda text, h=height: "memplan" in text and len(text.splitlines()) <= h,  # type: ignore[misc]
        )
    terminal.press("q")
    return found


def _is_whole(text: str, size: tuple[int, int]) -> bool:
    """Tell whether the last row is there: a terminal is also seen in the middle of a picture."""
    return len(text.rstrip().splitlines()) == size[1]


def _curve(text: str) -> str:
    """Return the curve and the times under it."""
    return "".join(re.findall(r"[\u2801-\u28ff]|\d\d:\d\d:\d\d", text))


def stage(folder: Path) -> tuple[str, list[subprocess.Popen[bytes]]]:
    """Start a daemon, make a plan, and run a program under it; return the database."""
    database = str(folder / "m.db")
    env = {**os.environ, "MEMPLAN_DATABASE": database, "MEMPLAN_CACHE": str(folder / "cache")}
    memplan = [sys.executable, "-m", "memplan"]
    script = folder / "program.py"
    script.write_text(PROGRAM, encoding="utf-8")
    daemon = subprocess.Popen([*memplan, "daemon", "run"], env=env, stderr=subprocess.DEVNULL)
    plan = [*memplan, "plan", "llama-3.1-8b", "--device", "cpu", "--host-memory", "64GiB", "--save"]
    subprocess.run([*plan, "--disk", "0"], env=env, stdout=subprocess.DEVNULL, check=False)
    command = [*memplan, "run", "--plan", "last", "--", sys.executable, str(script)]
    run = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    return database, [run, daemon]


def _until_sampled(database: str) -> None:
    """Wait until the run has samples: the first capture must not be one of a machine without it."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        with contextlib.suppress(StoreError), StoreReader(database) as reader:
            if any(reader.columns(run.id).columns for run in reader.runs(1)):
                return
        time.sleep(0.2)
    raise Problem("the run was never sampled")


def main() -> int:
    """Capture, or check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        database, processes = stage(Path(name))
        try:
            _until_sampled(database)
            found: dict[str, str] = {}
            for size in SIZES:
                for variant in VARIANTS:
                    found |= capture(size, variant, database)
        except Problem as problem:
            sys.stderr.write(f"{problem}\n")
            return 1
        finally:
            for process in processes:
                process.terminate()
                process.wait()
    return _settle(found, arguments.folder, check=arguments.check)


def _settle(found: dict[str, str], folder: Path, *, check: bool) -> int:
    """Write the captures, or compare their words with what is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    wrong = 0
    for name, text in found.items():
        path = folder / f"{name}.txt"
        if not check:
            path.write_text(skeleton(text), encoding="utf-8")
            continue
        lost = words(path.read_text(encoding="utf-8")) - words(skeleton(text))
        if lost:
            wrong += 1
            sys.stderr.write(f"{name}: no longer there: {', '.join(sorted(lost))}\n")
    sys.stdout.write(f"{len(found)} screens, {wrong} of them changed\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
