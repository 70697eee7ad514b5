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
from memplan.validate.predict import predict_all
from memplan.validate.table import Row, rows

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
REFERENCE = ROOT / "tests" / "reference"
_BLOCK = re.compile(r"(<!-- (commands|accuracy|training) -->\n).*?(<!-- end -->)", re.DOTALL)


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
        quantity = f"{row.quantity} ({row.group})" if row.group else row.quantity
        cells = (quantity, row.runtime, str(row.cases), *shares, str(row.unsafe))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def readme(text: str, accuracy: str, training: str | None = None) -> str:
    """Return README.md with its generated blocks renewed; None leaves a block as it is."""
    blocks = {"commands": command_table(), "accuracy": accuracy, "training": training}

    def renewed(match: re.Match[str]) -> str:
        block = blocks[match[2]]
        return match[0] if block is None else match[1] + block + match[3]

    return _BLOCK.sub(renewed, text)


def table_of(*names: str) -> str:
    """Return the accuracy of files of measurements."""
    cases = [case for name in names for case in read_cases(REFERENCE / name)]
    predictions = list(predict_all(cases))
    if any(prediction.skipped for prediction in predictions):
        sys.exit(f"{names[-1]}: run `make reference` first, which installs what its models need")
    return accuracy_table(rows(predictions))


def main() -> None:
    """Renew the table, then the picture."""
    text = readme(
        README.read_text(encoding="utf-8"),
        table_of("inference.jsonl"),
        table_of("litgpt.jsonl", "training.jsonl"),
    )
    README.write_text(text, encoding="utf-8")
    subprocess.run([sys.executable, str(ROOT / "docs" / "screenshot.py")], check=True)


if __name__ == "__main__":
    main()
