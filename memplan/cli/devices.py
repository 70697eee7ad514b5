"""`memplan devices`: what was detected on this machine, and the products that memplan knows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from memplan.cli.options import chosen_unit, unit_option

if TYPE_CHECKING:
    from memplan.devices.measure import Speed
    from memplan.devices.table import KnownDevice
    from memplan.types import Device

__all__ = ["devices"]

_SOURCE_WIDTH = 40
"""Characters of a source in the table; the JSON has all of it."""


@click.command("devices")
@click.argument("text", required=False)
@click.option("--overhead", is_flag=True, help="What a process takes beside tensors, by GPU.")
@click.option(
    "--measure", is_flag=True, help="Measure memory, disk (1 GiB is written here) and GPU copies."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, sizes in bytes.")
@unit_option
def devices(
    *, text: str | None, overhead: bool, measure: bool, as_json: bool, unit: str | None
) -> None:
    """List what a plan can use: this machine's GPUs, host memory and disk; then known products.

    With TEXT only the products whose name, maker or kind has it. Each name goes with --device.

    \b
    memplan devices
    memplan devices 4090
    memplan devices unified --json
    memplan devices --overhead
    memplan devices --measure

    --measure takes some seconds. What it finds is kept with its date, and plans for this machine
    use it: their speeds then say "measured here".
    """
    from memplan.devices.detect import detect_disk, detect_gpus, detect_host
    from memplan.devices.measure import known_speeds
    from memplan.devices.table import closest, known, matching
    from memplan.errors import DeviceError

    if measure:
        _measure(as_json=as_json)
        return
    if overhead and not as_json:
        click.echo("\n".join(_overhead_table()))
        return
    products = known() if text is None else matching(text)
    if text is not None and not products:
        raise DeviceError(
            f"no known device matches {text!r}", hint=f"close are {', '.join(closest(text))}"
        )
    if text is not None and not as_json:
        click.echo("\n".join(_known_table(products, chosen_unit(unit))))
        return
    found = (*detect_gpus(), detect_host(), detect_disk(Path.cwd()))
    if as_json:
        click.echo(_document(found, products))
        return
    _print_found(found, chosen_unit(unit))
    if speeds := known_speeds():
        click.echo("\n" + "\n".join(_speed_table(speeds)))
    click.echo("\nknown, for --device:")
    click.echo("\n".join(_known_table(products, chosen_unit(unit))))


def _measure(*, as_json: bool) -> None:
    from memplan.devices.measure import measure_speeds
    from memplan.serialize import to_dict

    found = measure_speeds(Path.cwd())
    if as_json:
        document = {"schema": "memplan.speeds/1", "speeds": [to_dict(speed) for speed in found]}
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    click.echo("\n".join(_speed_table(found)))
    if not any(speed.name.startswith("cuda") for speed in found):
        click.echo("no copies to a GPU: torch shows none here", err=True)


def _speed_table(found: Sequence[Speed]) -> list[str]:
    from memplan.report import table

    rows = [["measured", "GB/s", "from .. to", "on", "how"]]
    rows += [
        [
            speed.name,
            f"{speed.bandwidth / 10**9:.2f}",
            f"{speed.low / 10**9:.2f} .. {speed.high / 10**9:.2f}",
            speed.date,
            speed.how,
        ]
        for speed in found
    ]
    return table(rows, "lrrll", "")


def _document(found: Sequence[Device], products: Sequence[KnownDevice]) -> str:
    from memplan.devices.measure import known_speeds
    from memplan.devices.overhead import overhead_rows, table_version
    from memplan.serialize import to_dict

    document = {
        "schema": "memplan.devices/1",
        "devices": [to_dict(device) for device in found],
        "speeds": [to_dict(speed) for speed in known_speeds()],
        "known": [
            {**to_dict(product), "capacity_bytes": product.capacity_bytes} for product in products
        ],
        "overhead": {
            "version": table_version(),
            "rows": [to_dict(row) for row in overhead_rows()],
        },
    }
    return json.dumps(document, indent=2, ensure_ascii=False)


def _overhead_table() -> list[str]:
    from memplan.devices.overhead import overhead_rows, table_version
    from memplan.report import table
    from memplan.units import MIB

    rows = [["component", "GPU", "engine", "GPUs", "MiB", "band, MiB", "from"]]
    for row in overhead_rows():
        maker = row.vendor or "any"
        gpu = f"{maker} {', '.join(row.compute)}" if row.compute else maker
        band = f"{row.low_bytes / MIB:.0f} .. {row.high_bytes / MIB:.0f}"
        count = str(row.gpus or "any")
        cells = [row.component, gpu, row.runtime or "any", count, f"{row.typical_bytes / MIB:.0f}"]
        rows.append([*cells, band, row.source])
    return [f"published until {table_version()}:", *table(rows, "lllrrrl", "")]


def _print_found(found: Sequence[Device], unit: str) -> None:
    from memplan.devices.detect import gpu_problem
    from memplan.report import table
    from memplan.units import format_bytes

    rows = [["device", "kind", "capacity", "name", "from"]]
    rows += [
        [d.name, d.kind, format_bytes(d.capacity_bytes, unit), d.label, d.source] for d in found
    ]
    click.echo("\n".join(table(rows, "llrll", "")))
    if not any(device.kind == "gpu" for device in found):
        reason = gpu_problem() or "NVML shows none"
        click.echo(
            f"no GPU: {reason}; plan for one by its name or size: --device rtx4090", err=True
        )


def _known_table(products: Sequence[KnownDevice], unit: str) -> list[str]:
    from memplan.report import table
    from memplan.units import format_bytes

    rows = [["name", "memory", "a plan uses", "bandwidth", "link", "from"]]
    rows += [
        [
            product.name,
            format_bytes(product.memory_bytes, unit, 0),
            format_bytes(product.capacity_bytes, unit),
            _rate(product.bandwidth),
            _link(product),
            _short(product.source),
        ]
        for product in products
    ]
    return table(rows, "lrrrll", "")


def _rate(value: int | None) -> str:
    return "n/a" if value is None else f"{value / 10**9:.0f} GB/s"


def _link(product: KnownDevice) -> str:
    if product.kind == "unified":
        return "shared with the CPU"
    parts = [f"PCIe {product.pcie}"] if product.pcie else []
    if product.nvlink_bandwidth:
        parts.append(f"NVLink {_rate(product.nvlink_bandwidth)}")
    return ", ".join(parts) or "n/a"


def _short(source: str) -> str:
    """Return a source in one cell: a page's host, else the beginning of the document's name."""
    text = urlsplit(source).netloc.removeprefix("www.") or source
    return text if len(text) <= _SOURCE_WIDTH else text[: _SOURCE_WIDTH - 3].rstrip() + "..."
