"""What the interpreter itself takes: RSS of Python with torch and transformers imported, measured.

It is measured once for each set of versions, in a process of its own, and kept in the cache
folder; plans in which the host computes then use it in place of an assumed figure.
"""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from memplan.config import cache_dir
from memplan.errors import MissingDependencyError
from memplan.versions import installed_version

__all__ = ["known_baseline", "measure_baseline"]

_PROGRAM = """
import sys
import torch
from transformers import AutoModelForCausalLM, DynamicCache
AutoModelForCausalLM._model_mapping.keys()
pages = int(open("/proc/self/statm").read().split()[1])
import resource
print(pages * resource.getpagesize())
"""


def _versions() -> str:
    parts = [f"python {platform.python_version()}"]
    parts += [f"{name} {installed_version(name)}" for name in ("torch", "transformers")]
    return ", ".join(parts)


def _file() -> Path:
    return cache_dir() / "baseline.json"


def _stored() -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        data = json.loads(_file().read_bytes())
        if isinstance(data, dict):
            return data
    return {}


def known_baseline() -> int | None:
    """Return the measured bytes for the versions that are installed now, or None."""
    value = _stored().get(_versions())
    return value if isinstance(value, int) and value > 0 else None


def measure_baseline() -> int:
    """Start an interpreter, import what a program needs, and return and keep its RSS in bytes.

    Raises MissingDependencyError when torch or transformers cannot be imported.
    """
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise MissingDependencyError(
            f"cannot import torch and transformers: {reason}", hint="pip install 'memplan[models]'"
        )
    value = int(done.stdout.split()[-1])
    stored = {**_stored(), _versions(): value}
    with contextlib.suppress(OSError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        _file().write_text(json.dumps(stored, indent=2), encoding="utf-8")
    return value
