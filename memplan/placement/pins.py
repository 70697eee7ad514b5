"""What the user fixed: `--pin MODULE=DEVICE` -> the device of each unit below that module."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.errors import UsageError
from memplan.placement.units import Unit
from memplan.types import Device

__all__ = ["pinned"]


def pinned(units: Sequence[Unit], pins: Sequence[str], devices: Sequence[Device]) -> dict[int, str]:
    """Return unit position -> device name for all that is pinned; the longest name wins.

    Args:
        units: the model's pieces.
        pins: "MODULE=DEVICE", MODULE being a module's path or the path of one above it.
        devices: of the plan.

    Raises UsageError for a pin without "=", a device that is not there, and a module that holds
    nothing: a constraint that cannot be kept is never dropped.
    """
    known = [device.name for device in devices]
    result: dict[int, str] = {}
    for pin in sorted(pins, key=lambda text: len(text.partition("=")[0])):
        module, equals, name = pin.partition("=")
        place = f"cuda:{name}" if name.isdigit() else name
        if not module or not equals or place not in known:
            raise UsageError(
                f"--pin {pin} does not name a module and a device of the plan",
                hint=f"such as --pin {units[0].names[0]}={known[0]}; devices: {', '.join(known)}",
            )
        found = [unit for unit in units if any(_below(n, module) for n in unit.names)]
        if not found:
            raise UsageError(_missing(units, pin, module), hint=_close(units, module))
        result |= dict.fromkeys((unit.position for unit in found), place)
    return result


def _below(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _missing(units: Sequence[Unit], pin: str, module: str) -> str:
    above = next((n for u in units for n in u.names if _below(module, n)), None)
    if above is not None:
        return f"--pin {pin}: {module} moves with all of {above}"
    return f"--pin {pin}: the model has no module {module}"


def _close(units: Sequence[Unit], module: str) -> str:
    import difflib

    above = next((n for u in units for n in u.names if _below(module, n)), None)
    names = [name for unit in units for name in unit.names]
    near = difflib.get_close_matches(module, names, n=3, cutoff=0.0)
    return f"pin {above}" if above else f"such as {', '.join(near)}"
