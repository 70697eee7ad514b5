"""Writes the generated parts of README.md anew: commands, accuracy, and the picture.

    make docs

The demo's output in README.md is pasted by hand: its figures are one machine's.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from memplan.cli.main import COMMANDS
from memplan.validate.cases import read_cases
from memplan.validate.predict import predict
from memplan.validate.table import Row, rows

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
REFERENCE = ROOT / "tests" / "reference" / "inference.jsonl"
_BLOCK = re.compile(r"(<!-- (commands|accuracy) -->\n).*?(<!-- end -->)", re.DOTALL)


def command_table() -> str:
    """Return the commands as a Markdown table."""
    rows = ["| command | does |", "|---|---|"]
    rows += [f"| `memplan {name}` | {text} |" for name, (_, text) in COMMANDS.items()]
    return "\n".join(rows) + "\n"


def accuracy_table(rows: Sequence[Row]) -> str:
    """Return the rows of `memplan validate` as a Markdown table."""
    lines = ["| quantity | runtime | cases | median error | p90 | in band | unsafe |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|")
    for row in rows:
        shares = (f"{100 * (value or 0.0):.1f} %" for value in (row.median, row.p90, row.in_band))
        cells = (row.quantity, row.runtime, str(row.cases), *shares, str(row.unsafe))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def readme(text: str, accuracy: str) -> str:
    """Return README.md with its generated blocks renewed."""
    blocks = {"commands": command_table(), "accuracy": accuracy}
    return _BLOCK.sub(lambda match: match[1] + blocks[match[2]] + match[3], text)


def main() -> None:
    """Renew the table, then the picture."""
    accuracy = accuracy_table(rows([predict(case) for case in read_cases(REFERENCE)]))
    README.write_text(readme(README.read_text(encoding="utf-8"), accuracy), encoding="utf-8")
    subprocess.run([sys.executable, str(ROOT / "docs" / "screenshot.py")], check=True)


if __name__ == "__main__":
    main()
