"""`memplan run --engine`: a plan's files written, its engine found, and its word checked."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memplan.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from memplan.emit.launch import Engine
    from memplan.types import Comparison, Plan

__all__ = ["ENGINE_NAMES", "Started", "started_on"]

ENGINE_NAMES = (
    *("accelerate", "transformers", "torchrun", "fsdp2", "deepspeed"),
    *("vllm", "sglang", "llama.cpp"),
)
"""Keys of `memplan.emit.launch.ENGINES`, which is not imported for --help."""

LLAMA_SERVER = "MEMPLAN_LLAMA_SERVER"
"""Names llama.cpp's llama-server where PATH has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A plan that is to run on its engine."""

    engine: Engine
    """Which one."""
    plan: Plan
    """What it is to do."""
    folder: Path
    """Where its files are."""
    command: tuple[str, ...]
    """What starts it."""

    def ignored(self, comparison: Comparison | None) -> str | None:
        """Return a sentence when the engine did something else than the plan, or None."""
        from memplan.emit import launch

        if self.engine.evidence == "report":
            return launch.ignored(self.plan, self._reports())
        if self.engine.evidence == "log":
            log = self.folder / "engine.log"
            text = log.read_text("utf-8", errors="replace") if log.is_file() else ""
            return launch.ignored_by_log(self.plan, text)
        return launch.ignored_by_peaks(comparison) if comparison is not None else None

    def _reports(self) -> list[dict[str, Any]]:
        files = sorted((self.folder / "report").glob("*.json"), key=lambda file: int(file.stem))
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]


@contextmanager
def started_on(
    name: str, plan: Plan, arguments: Sequence[str], *, folder: Path | None, force: bool
) -> Iterator[Started]:
    """Write a plan's files and give the command that starts its engine on them.

    Args:
        name: a key of `ENGINES`.
        plan: the plan.
        arguments: for the engine or its script.
        folder: for the files; None = a temporary one that is removed in the end.
        force: overwrite what is there.

    Raises UsageError where the engine cannot carry the plan out, MissingDependencyError where it
    is not installed.
    """
    from memplan.cli.emit import write_files, written_for
    from memplan.emit.launch import ENGINES

    engine = ENGINES[name]
    if name == "fsdp2" and not arguments:
        raise UsageError(
            "accelerate launch needs a training script",
            hint="memplan run --engine fsdp2 --plan PLAN -- train.py, or --engine torchrun",
        )
    files = written_for(engine.target, plan)
    _require_installed(name, engine)
    with tempfile.TemporaryDirectory(prefix="memplan-") as temporary:
        home = (folder or Path(temporary)).absolute()
        write_files(files, home, force=force)
        shutil.rmtree(home / "report", ignore_errors=True)
        (home / "engine.log").unlink(missing_ok=True)
        with _own_programs_first():
            command = _command(engine, home, arguments)
            yield Started(engine=engine, plan=plan, folder=home, command=command)


def _command(engine: Engine, folder: Path, arguments: Sequence[str]) -> tuple[str, ...]:
    words = engine.words(str(folder), arguments)
    server = os.environ.get(LLAMA_SERVER)
    if engine.program == "llama-server" and server:
        words = [server if word == "llama-server" else word for word in words]
    return tuple(sys.executable if word == "python" else word for word in words)


def _require_installed(name: str, engine: Engine) -> None:
    import importlib.util

    hint = engine.install
    if engine.module is not None and importlib.util.find_spec(engine.module) is None:
        raise MissingDependencyError(f"{name}: {engine.module} is not installed", hint=hint)
    program = engine.program
    if program == "llama-server":
        program = os.environ.get(LLAMA_SERVER) or program
    with _own_programs_first():
        if program is not None and shutil.which(program) is None:
            raise MissingDependencyError(f"{name}: there is no program {program}", hint=hint)


@contextmanager
def _own_programs_first() -> Iterator[None]:
    """Put the programs of this interpreter's environment before all others meanwhile."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), before))
    try:
        yield
    finally:
        os.environ["PATH"] = before
