"""What things are called: this machine by a name and a key that stays, what is stored by ids."""

from __future__ import annotations

import hashlib
import platform
import secrets
import time
from pathlib import Path

__all__ = ["host_identity", "new_id"]

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Digits and letters without i, l, o and u: nothing that reads like something else."""

_EPOCH_S = 1_735_689_600
"""Start of 2025: keeps ids short for a thousand years."""

_PLACES = ("etc/machine-id", "var/lib/dbus/machine-id")


def host_identity(root: Path = Path("/")) -> tuple[str, str]:
    """Return (key, name) of this machine.

    The key is a hash of the machine id, which is to be kept secret itself; where there is none (a
    container), it is a hash of the name.

    Args:
        root: folder in which etc/machine-id is looked for.
    """
    name = platform.node() or "localhost"
    secret = name
    for place in _PLACES:
        try:
            secret = (root / place).read_text(encoding="ascii").strip() or secret
        except (OSError, UnicodeDecodeError):
            continue
        break
    return hashlib.sha256(b"memplan:" + secret.encode()).hexdigest()[:24], name


def new_id(prefix: str) -> str:
    """Return a short id that sorts by time: prefix, seconds since 2025, 15 random bits."""
    number = ((int(time.time()) - _EPOCH_S) << 15) | secrets.randbits(15)
    digits = ""
    while number:
        number, rest = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[rest] + digits
    return f"{prefix}-{digits.rjust(9, '0')}"
