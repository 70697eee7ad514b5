"""Fixtures of the store's tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from postgres import new_database


@pytest.fixture(params=["sqlite", "postgresql"])
def anywhere(request, tmp_path):
    """A database that does not exist yet, once of each kind."""
    if request.param == "sqlite":
        return tmp_path / "m.db"
    return new_database(request.getfixturevalue("postgresql"))
