"""`memplan devices`: what was detected on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import click

from memplan.cli.options import chosen_unit, unit_option

__all__ = ["devices"]


@click.command("devices")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, sizes in bytes.")
@unit_option
def devices(*, as_json: bool, unit: str | None) -> None:
    """List the devices of this machine that a plan can use: GPUs, host memory, free disk."""
    from memplan.devices.detect import detect_disk, detect_gpus, detect_host, gpu_problem
    from memplan.report import table
    from memplan.serialize import to_dict
    from memplan.units import format_bytes

    found = (*detect_gpus(), detect_host(), detect_disk(Path.cwd()))
    if as_json:
        click.echo(json.dumps([to_dict(device) for device in found], indent=2))
        return
    chosen = chosen_unit(unit)
    rows = [["device", "kind", "capacity", "name", "from"]]
    rows += [
        [d.name, d.kind, format_bytes(d.capacity_bytes, chosen), d.label, d.source] for d in found
    ]
    click.echo("\n".join(table(rows, "llrll", "")))
    if not any(device.kind == "gpu" for device in found):
        reason = gpu_problem() or "NVML shows none"
        click.echo(f"no GPU: {reason}; plan for one by its size: --device 24GiB", err=True)
