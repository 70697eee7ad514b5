"""Writing what is visible: curves as CSV, facts as JSON, the screen as SVG."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from memplan_tui.messages import Points, Snapshot

from memplan.serialize import to_dict
from memplan.types import FrozenMap

__all__ = ["curves_csv", "facts_json", "write"]

SCHEMA = "memplan.window/1"


def _curves(snapshot: Snapshot) -> FrozenMap[Points]:
    detail = snapshot.detail
    return detail.history if detail is not None else snapshot.machine.history


def curves_csv(snapshot: Snapshot) -> str:
    """Return the visible curves: t_ns, device, bytes; by time, then device."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["t_ns", "device", "bytes"])
    rows = [
        (t, device, value) for device, points in _curves(snapshot).items() for t, value in points
    ]
    writer.writerows(sorted(rows))
    return out.getvalue()


def facts_json(snapshot: Snapshot) -> str:
    """Return what the screens show as JSON: sizes in bytes, times in nanoseconds."""
    detail = snapshot.detail
    document = {
        "schema": SCHEMA,
        "at_ns": snapshot.now_ns,
        "comparison": to_dict(detail.comparison) if detail is not None else None,
        "phases": [to_dict(phase) for phase in detail.phases] if detail is not None else [],
        "machine": {
            "total_bytes": snapshot.machine.total_bytes,
            "available_bytes": snapshot.machine.available_bytes,
            "gpus": [
                {
                    "name": gpu.name,
                    "uuid": gpu.uuid,
                    "label": gpu.label,
                    "total_bytes": gpu.total_bytes,
                    "used_bytes": gpu.used_bytes,
                }
                for gpu in snapshot.machine.gpus
            ],
        },
        "curves": {name: [list(p) for p in points] for name, points in _curves(snapshot).items()},
    }
    return json.dumps(document, indent=2) + "\n"


def write(snapshot: Snapshot, svg: str, folder: Path, stamp: str) -> tuple[Path, ...]:
    """Write the three files; never over one that is there. Raises OSError.

    Args:
        snapshot: what is visible.
        svg: the screen.
        folder: where to.
        stamp: part of their names, such as the time.
    """
    stem = f"memplan-{stamp}"
    number = 1
    while any((folder / f"{stem}{end}").exists() for end in (".csv", ".json", ".svg")):
        number += 1
        stem = f"memplan-{stamp}-{number}"
    texts = {".csv": curves_csv(snapshot), ".json": facts_json(snapshot), ".svg": svg}
    paths = []
    for end, text in texts.items():
        path = folder / f"{stem}{end}"
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return tuple(paths)
