"""Attaches the agent when Python starts: `memplan run --agent` puts this folder into PYTHONPATH.

Another sitecustomize, which this one hides, is run as if it were not there. Nothing that goes wrong
here may keep the program from starting.
"""

import contextlib
import os
import runpy
import sys
from importlib.machinery import PathFinder
from pathlib import Path

_HERE = str(Path(__file__).parent)


def _hidden() -> None:
    """Run the sitecustomize that would have been found without us."""
    sys.path[:] = [place for place in sys.path if place != _HERE]
    found = PathFinder.find_spec("sitecustomize")
    if found is not None and found.origin is not None:
        runpy.run_path(found.origin, run_name="sitecustomize")


def _attach() -> None:
    from memplan import measure

    measure.attach(float(os.environ["MEMPLAN_AGENT"]))


_hidden()
if "MEMPLAN_AGENT" in os.environ:
    with contextlib.suppress(Exception):
        _attach()
