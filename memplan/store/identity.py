"""Which machine this is: a name for people, and a key that stays when the name changes."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

__all__ = ["host_identity"]

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
