"""Engines' own programs and parsers: each test skips, with what installs it, where one is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import save_tiny

QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """Return the folder of a tiny Llama with random weights."""
    return save_tiny(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture
def run_program(tmp_path):
    """Run a program in a folder of its own; programs of this environment come first."""

    def run(*words, check=True, cwd=None, environment=()):
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        done = subprocess.run(
            [str(word) for word in words],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
            cwd=cwd or tmp_path,
            env={**os.environ, **QUIET, "PATH": path, **dict(environment)},
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    return run
