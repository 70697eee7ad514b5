"""The wheel: what is in it, and that it works where it is installed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "memplan": "memplan",
    "daemon": "memplan_daemon",
    "tui": "memplan_tui",
    "migrations": "memplan_migrations",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy of the tracked files, with the tools that are installed here."""
    out = tmp_path_factory.mktemp("wheel")
    copy = tmp_path_factory.mktemp("source")
    names = ["pyproject.toml", "README.md", "LICENSE", *FOLDERS]
    subprocess.run(["cp", "-r", *[str(ROOT / name) for name in names], str(copy)], check=True)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_has_exactly_our_four_names_at_the_top(wheel):
    """PyPI's python-daemon owns `daemon`; nothing of ours may leak under such a name."""
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(FOLDERS.values())


def test_every_module_of_the_folders_is_in_the_wheel(wheel):
    """The explicit list of packages forgets new ones; this does not."""
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".typed", ".tcss", ".mako"}:
                name = f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
                assert name in packed


def test_the_installed_wheel_migrates_a_database_and_plans(wheel, tmp_path):
    """Outside of the repository: the migrations are found, a plan is saved."""
    target = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import memplan, memplan_migrations\n"
        "assert memplan.__file__.startswith(sys.argv[1]), memplan.__file__\n"
        "assert memplan_migrations.__file__.startswith(sys.argv[1])\n"
        "from memplan.store.writer import LocalWriter\n"
        "LocalWriter(sys.argv[2]).close()\n"
        "from memplan.store.reader import StoreReader\n"
        "print(len(StoreReader(sys.argv[2]).runs()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(target), str(tmp_path / "m.db")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.stdout.strip() == "0", done.stderr[-2000:]
