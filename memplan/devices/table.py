"""Devices that are on the market: what the makers say and what the drivers report, from table.json.

Sizes are bytes (a maker's "24 GB" is 24 * 2**30, as the chips have it), rates are bytes a second.
Each entry names where it was read. None means "not publicly known", never a guess.
"""

from __future__ import annotations

import difflib
import importlib.resources
import json
import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

__all__ = ["KnownDevice", "KnownKind", "closest", "find", "known", "matching", "normalised"]

KnownKind = Literal["gpu", "unified", "accelerator"]

_BRANDS = ("nvidia", "geforce", "tesla", "amd", "radeon", "instinct", "intel", "apple", "google")
"""Left out at the beginning of a name: people and drivers write them or not."""

_ENDINGS = ("generation", "gpu")
"""Left out at the end of a name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownDevice:
    """One product of the table. What has several dies that a program sees one by one is one die."""

    name: str
    """What people type: "rtx4090", "a100-80gb", "m3-max-128gb"."""
    label: str
    """The product's name."""
    vendor: str
    """Who makes it."""
    kind: KnownKind
    """"gpu" (memory of its own), "unified" (one memory for CPU and GPU) or "accelerator"."""
    memory_bytes: int
    """What the maker calls the size, in bytes."""
    usable_bytes: int | None
    """What the driver reports as total (nvidia-smi, rocm-smi), in bytes, where it is public."""
    usable_share: float | None
    """Share of the memory that the GPU may take, 0 to 1, where the system sets one."""
    bandwidth: int | None
    """Of its own memory, bytes a second."""
    pcie: str | None
    """Generation and lanes, such as "4.0 x16"."""
    host_bandwidth: int | None
    """From the host's memory at best, one way, bytes a second: what the link can carry."""
    nvlink_bandwidth: int | None
    """NVLink of one GPU, all links, both ways together, bytes a second."""
    compute_capability: str | None
    """CUDA's "8.9"; for AMD the gfx name."""
    year: int
    """When it came out."""
    source: str
    """Where the numbers were read: the maker's page or document."""
    note: str
    """What one has to know about the numbers; often empty."""
    aliases: tuple[str, ...]
    """Other names, besides `name` and `label`."""

    @property
    def capacity_bytes(self) -> int:
        """What a plan may count on: the driver's total, else the GPU's share, else the size."""
        if self.usable_bytes is not None:
            return self.usable_bytes
        if self.usable_share is not None:
            return int(self.memory_bytes * self.usable_share)
        return self.memory_bytes


@cache
def known() -> tuple[KnownDevice, ...]:
    """Return every device of the table, in its order; the file is read at the first call."""
    file = importlib.resources.files("memplan.devices").joinpath("table.json")
    rows: list[dict[str, Any]] = json.loads(file.read_bytes())["devices"]
    return tuple(KnownDevice(**{**row, "aliases": tuple(row["aliases"])}) for row in rows)


def normalised(text: str) -> str:
    """Return a name without what does not matter: case, spaces, signs, the maker, "GPU"."""
    name = re.sub(r"[^a-z0-9+]", "", text.lower())
    while brand := next((b for b in _BRANDS if name.startswith(b) and name != b), None):
        name = name.removeprefix(brand)
    for ending in _ENDINGS:
        name = name.removesuffix(ending) or name
    return name


@cache
def _index() -> dict[str, KnownDevice]:
    """Return the device of every normalised name; its own name wins over another's alias."""
    names: dict[str, KnownDevice] = {}
    for device in known():
        names[normalised(device.name)] = device
    for device in known():
        for text in (device.label, *device.aliases):
            names.setdefault(normalised(text), device)
    return names


def find(name: str) -> KnownDevice | None:
    """Return the device of that name ("RTX 4090", "NVIDIA GeForce RTX 4090"), or None."""
    return _index().get(normalised(name))


def closest(name: str, count: int = 3) -> tuple[str, ...]:
    """Return the names that begin with this one, then those that look most like it, best first.

    Args:
        name: what somebody typed.
        count: how many names.
    """
    index, wanted = _index(), normalised(name)
    longer = [key for key in index if wanted and key.startswith(wanted)]
    near = difflib.get_close_matches(wanted, index, n=count * 4, cutoff=0.0)
    return tuple(dict.fromkeys(index[key].name for key in (*longer, *near)))[:count]


def matching(text: str) -> tuple[KnownDevice, ...]:
    """Return the devices with this text in a name, the label, the maker or the kind."""
    wanted = _squeezed(text)
    return tuple(
        device
        for device in known()
        if any(
            wanted in _squeezed(field)
            for field in (device.name, device.label, device.vendor, device.kind, *device.aliases)
        )
    )


def _squeezed(text: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", text.lower())
