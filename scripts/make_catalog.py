"""Make memplan/models/catalog.jsonl from config.json files.

    python scripts/make_catalog.py FOLDER [FOLDER/SOURCES.md]

FOLDER holds files named ORG--NAME.json (or NAME.json). Each is built by transformers on the meta
device; what it cannot build is left out and named. SOURCES.md is a table whose first column is the
file and whose fourth is where it was published.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

from memplan.errors import MemplanError
from memplan.models.catalog import entry_of, plain_name
from memplan.models.load import load_model

TARGET = Path(__file__).parent.parent / "memplan" / "models" / "catalog.jsonl"
SKIP = re.compile(r"^(neuron-|clip-|vit-|ktransformers|.*-unit$|.*layer$)")
PREFIX = re.compile(r"^(mlcpreset-|transcribed-|servingsim-)")
SUFFIX = re.compile(r"-(instruct|hf|it|base|chat)(-|$)")


def sources(path: Path) -> dict[str, str]:
    """Return file -> where it was published."""
    table = {}
    for line in path.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) > 3 and cells[0].endswith(".json"):
            table[cells[0]] = cells[3]
    return table


def names_of(stem: str) -> tuple[list[str], str | None]:
    """Return the names people use, and the Hub id where the file says it."""
    org, _, rest = stem.rpartition("--")
    hub = f"{org}/{rest}" if org else None
    own = plain_name(PREFIX.sub("", rest)).replace("meta-llama-", "llama-")
    short = SUFFIX.sub(r"\2", own)
    names = [short, own, hub.lower() if hub else own]
    return list(dict.fromkeys(names)), hub


def main(folder: Path, table: dict[str, str]) -> None:
    """Write the catalogue."""
    lines, taken = [], set()
    for path in sorted(folder.glob("*.json"), key=lambda p: ("--" not in p.name, p.name.lower())):
        if SKIP.match(path.stem):
            continue
        names, hub = names_of(path.stem)
        names = [name for name in names if name not in taken]
        config = json.loads(path.read_text("utf-8"))
        dtype = None if config.get("dtype") or config.get("torch_dtype") else "bfloat16"
        with tempfile.TemporaryDirectory() as place:
            shutil.copy(path, Path(place) / "config.json")
            try:
                spec = load_model(f"{place}/config.json", dtype=dtype, options={})
            except MemplanError as error:
                sys.stderr.write(f"{path.name}: {error}\n")
                continue
        if not names or not spec.layers:
            sys.stderr.write(f"{path.name}: its name is taken, or it has no layers\n")
            continue
        source = table.get(path.name, path.name)
        entry = entry_of(spec, names=names, hub=hub, source=source)
        taken.update(names)
        lines.append(json.dumps(entry, separators=(",", ":")))
    TARGET.write_text("\n".join(lines) + "\n", "utf-8")
    sys.stderr.write(f"{len(lines)} models, {TARGET.stat().st_size} bytes\n")


if __name__ == "__main__":
    given = Path(sys.argv[1])
    main(given, sources(Path(sys.argv[2])) if len(sys.argv) > 2 else {})
