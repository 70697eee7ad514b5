"""Writes the generated parts of README.md anew: the list of commands, and the picture.

    make docs

The demo's output in README.md is pasted by hand: its figures are one machine's.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from memplan.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
_BLOCK = re.compile(r"(<!-- commands -->\n).*?(<!-- end -->)", re.DOTALL)


def command_table() -> str:
    """Return the commands as a Markdown table."""
    rows = ["| command | does |", "|---|---|"]
    rows += [f"| `memplan {name}` | {text} |" for name, (_, text) in COMMANDS.items()]
    return "\n".join(rows) + "\n"


def readme(text: str) -> str:
    """Return README.md with its generated block renewed."""
    return _BLOCK.sub(lambda match: match[1] + command_table() + match[2], text)


def main() -> None:
    """Renew the table, then the picture."""
    README.write_text(readme(README.read_text(encoding="utf-8")), encoding="utf-8")
    subprocess.run([sys.executable, str(ROOT / "docs" / "screenshot.py")], check=True)


if __name__ == "__main__":
    main()
