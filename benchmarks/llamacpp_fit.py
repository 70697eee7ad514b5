"""Our arguments for llama.cpp beside those of its own --fit, both judged by its dry run.

    sh scripts/build_llamacpp.sh build/llama.cpp
    MEMPLAN_LLAMA_FIT_PARAMS=build/llama.cpp/bin/llama-fit-params python benchmarks/llamacpp_fit.py

Files are header-only and sparse, GPUs are ggml-rpc-server on 127.0.0.1, which ask for the work of
large batches as CUDA devices do. Both planners get the same budget: what the plan leaves of each
GPU beside its context, all of it (--fit-target 0).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from llamacpp_oracle import FIT_PARAMS
from llamacpp_pairs import PAIRS, Judged, judge

HEAD = (
    "pair",
    "budget MiB",
    "ours MiB",
    "unused",
    "one layer",
    "over",
    "--fit MiB",
    "dense ours / --fit",
    "our arguments",
)


def row(found: Judged) -> tuple[str, ...]:
    """Return one line of the table as cells."""
    ours, fit = (sum(map(sum, rows)) for rows in (found.ours, found.fit))
    over = any(size < 0 for size in found.unused)
    fit_over = any(sum(r) > have for r, have in zip(found.fit, found.budgets, strict=True))
    unused = "all fits" if found.whole else "+".join(map(str, found.unused))
    return (
        str(found.pair),
        "+".join(map(str, found.budgets)),
        str(ours),
        unused,
        str(found.largest),
        "OVER" if over else "-",
        f"{fit}{' OVER' if fit_over else ''}",
        f"{found.dense[0]} / {found.dense[1]}",
        " ".join(found.arguments[found.arguments.index("-ngl") :])[:70],
    )


def main() -> int:
    """Print the table; return 1 when one of our plans is over its budget, 0 without the judge."""
    if not FIT_PARAMS:
        print("skipped: llama.cpp is not built (make llamacpp)", file=sys.stderr)
        return 0
    rows = [HEAD]
    with tempfile.TemporaryDirectory() as folder:
        for pair in PAIRS:
            rows.append(row(judge(pair, Path(folder))))
            print(f"{len(rows) - 1}/{len(PAIRS)} {pair}", file=sys.stderr)
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(HEAD))]
    for cells in rows:
        print("  ".join(cell.ljust(w) for cell, w in zip(cells, widths, strict=True)).rstrip())
    return int(any(cells[5] == "OVER" for cells in rows))


if __name__ == "__main__":
    sys.exit(main())
