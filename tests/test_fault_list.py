"""docs/faults.md: every fault is there, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "faults.md").read_text(encoding="utf-8")
ROWS = [
    (int(number), text, re.findall(r"`([\w/]+\.py::\w+)`", tests))
    for number, text, tests in re.findall(r"^\| (\d+) \| (.*) \|(.*)\|$", PAGE, re.MULTILINE)
]


@cache
def functions(name):
    """Return the tests of a file."""
    tree = ast.parse((TESTS / name).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("number", range(1, 31))
def test_every_fault_has_a_test(number):
    """At least one; and what is not tried says so."""
    mine = [(text, tests) for found, text, tests in ROWS if found == number]
    assert any(tests for _, tests in mine)
    for text, tests in mine:
        assert tests or text.startswith("not tried: "), text


def test_every_test_that_is_named_exists():
    """A test that was renamed or deleted takes its row with it."""
    for _, _, tests in ROWS:
        for test in tests:
            file, _, name = test.partition("::")
            assert name in functions(file), test


@pytest.mark.parametrize("file", ["daemon/test_faults_life.py", "store/test_faults.py"])
def test_every_numbered_test_is_in_its_faults_row(file):
    """Those that bear a fault's number in their names."""
    for name in functions(file):
        if match := re.match(r"test_(\d+)_", name):
            rows = [tests for number, _, tests in ROWS if number == int(match[1])]
            assert any(f"{file}::{name}" in tests for tests in rows), name
