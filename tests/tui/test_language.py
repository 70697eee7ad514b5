"""The catalogue: complete, nothing unused, compiled; the language is chosen by setting or LANG."""

from __future__ import annotations

import ast
import importlib.util
import re
import string
from pathlib import Path

import pytest
from memplan_tui import text

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def messages():
    pytest.importorskip("babel")
    found = importlib.util.spec_from_file_location("messages", ROOT / "scripts" / "messages.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_portuguese_is_complete_and_compiled(messages):
    """`make messages` renews it; what is new waits for a translation."""
    assert messages.problems("pt_BR") == []


def test_each_translation_has_the_same_places(messages):
    """{n} and {size} are filled in every language."""
    for message in messages.catalogue("pt_BR"):
        if message.id:
            places = [
                sorted(name for _, name, _, _ in string.Formatter().parse(words) if name)
                for words in (message.id, message.string)
            ]
            assert places[0] == places[1], message.id


def test_no_text_is_hidden_from_the_catalogue():
    """`tr` takes a plain text, or a title that was marked; inside f-strings nobody finds it."""
    for path in (ROOT / "tui").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                for inner in ast.walk(node):
                    hidden = (
                        isinstance(inner, ast.Call)
                        and getattr(inner.func, "id", "") == "tr"
                        and isinstance(inner.args[0], ast.Constant)
                    )
                    assert not hidden, f"{path.name}:{node.lineno}"


def test_no_screen_says_english_words_past_the_catalogue():
    """A constant with two words in the views is a message, a command or a source of data."""
    allowed = re.compile(r"^[a-z.:%{}\-+ ]*$|^memplan |^MEMPLAN_|^▏·*$")
    for path in (ROOT / "tui" / "views").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        translated = {
            id(node.args[0])
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "tr" and node.args
        }
        docs = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                known = id(node) in translated | docs
                words = re.search(r"[A-Za-z]{3,} [A-Za-z]{2,}", node.value)
                assert known or not words or allowed.match(node.value), (path.name, node.value)


@pytest.mark.parametrize(
    ("setting", "environ", "language"),
    [
        ("auto", {"LANG": "pt_BR.UTF-8"}, "pt_BR"),
        ("auto", {"LANG": "pt_PT"}, "pt_BR"),
        ("auto", {"LC_ALL": "C", "LANG": "pt_BR.UTF-8"}, "en"),
        ("auto", {"LC_ALL": "", "LANG": "pt_BR.UTF-8"}, "pt_BR"),
        ("auto", {}, "en"),
        ("pt-BR", {"LANG": "en_US.UTF-8"}, "pt_BR"),
        ("en", {"LANG": "pt_BR.UTF-8"}, "en"),
        ("auto", {"LANG": "de_DE.UTF-8"}, "en"),
    ],
)
def test_the_language_is_chosen(setting, environ, language):
    """The setting, else the first locale variable that is not empty."""
    assert text.choose(setting, environ) == language
    assert language in text.LANGUAGES
