"""README and docs: every command is there, and what they show is real."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from memplan.cli.main import COMMANDS, run

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_readme_or_the_docs(command):
    """Nothing that only the source knows."""
    assert re.search(rf"memplan {command}\b", TEXT)


def test_the_table_of_commands_is_the_programs_own():
    """`make docs` renews it."""
    found = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(found)
    found.loader.exec_module(generate)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert generate.command_table() in text


def commands():
    """Return each line of the pages that calls memplan, its options up to the first `--`."""
    found = set()
    for line in TEXT.splitlines():
        match = re.match(r"^\s*\$?\s*(memplan [a-z].*?)(?:  .*|#.*|\|.*|>.*)?$", line)
        if match and match[1].split()[1] in COMMANDS:
            found.add(match[1].strip())
    return sorted(found)


@pytest.mark.parametrize("line", commands())
def test_every_option_that_the_docs_use_exists(line, capsys):
    """Each word that looks like an option is in the help of its command."""
    words = shlex.split(line)[1:]
    words = words[: words.index("--")] if "--" in words else words
    name = words[0]
    assert name in COMMANDS
    path = [name]
    if name in {"daemon", "config", "db"} and len(words) > 1 and not words[1].startswith("-"):
        path.append(words[1])
    assert run([*path, "--help"]) == 0
    text = capsys.readouterr().out
    for word in words:
        if word.startswith("--"):
            assert re.search(rf"{word}\b", text), (
                f"{word} is not in memplan {' '.join(path)} --help"
            )


def test_every_file_that_a_page_links_to_exists():
    """Pictures and pages."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_no_page_and_no_source_names_a_place_of_one_machine():
    """Paths of whoever wrote it have no business here."""
    pattern = re.compile(r"/(?:work|home|root)/\w")
    folders = ("memplan", "daemon", "tui", "migrations", "docs", "tests", "benchmarks")
    files = [*PAGES, *(p for f in folders for p in (ROOT / f).rglob("*.py"))]
    for path in files:
        assert not pattern.search(path.read_text(encoding="utf-8")), path
