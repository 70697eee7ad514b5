"""Versions of installed packages, without importlib.metadata's 30 ms of imports."""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path

__all__ = ["installed_version"]


@lru_cache(maxsize=32)
def installed_version(package: str) -> str | None:
    """Return a package's version by the name of its dist-info folder, or None.

    Args:
        package: its name as installed, such as "torch".
    """
    for entry in sys.path:
        folder = Path(entry or ".")
        found = sorted(folder.glob(f"{package}-*.dist-info")) if folder.is_dir() else []
        if found:
            return found[-1].name.removeprefix(f"{package}-").removesuffix(".dist-info")
    return None
