"""What every target writes alike: the stamp, comments, YAML, argument lines, the model's name."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import memplan
from memplan.errors import UsageError
from memplan.types import Ledger, Plan

__all__ = [
    "HERE",
    "VERSIONS",
    "command_text",
    "comment",
    "gpu_ledgers",
    "json_text",
    "kilobytes",
    "model_and_revision",
    "refuse",
    "shell_file",
    "stamp",
    "yaml_text",
]

VERSIONS: Mapping[str, str] = {
    "accelerate": "1.15.0",
    "transformers": "5.23.0",
    "torch": "2.13.0",
    "deepspeed": "0.19.8",
    "peft": "0.21.2",
    "trl": "1.16.0",
    "vllm": "0.33.0",
    "sglang": "0.5.23",
    "ray": "2.60.0",
    "skypilot": "0.14.1",
    "kubernetes": "1.31",
}
"""The version of each engine whose options the files were written by, and held against."""

HERE = '$(dirname "$0")'
"""Folder of the script that a shell runs."""

_PLAIN = re.compile(r"^[A-Za-z_][A-Za-z0-9_./-]*$")
_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def stamp(plan: Plan, engine: str) -> dict[str, str]:
    """Return what names the plan in a key that the engine ignores."""
    return {
        "plan": plan.id or "not saved",
        "version": memplan.__version__,
        "written_for": f"{engine} {VERSIONS[engine]}",
    }


def comment(plan: Plan, engine: str, *more: str) -> str:
    """Return the same as lines that begin with "# ", then what else is to be said."""
    first = (
        f"memplan {memplan.__version__}, plan {plan.id or '(not saved)'} of "
        f"{_one_line(plan.model.name)}; written for {engine} {VERSIONS[engine]}"
    )
    return "".join(f"# {line}\n" for line in (first, *more))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def refuse(target: str, plan: Plan, why: str, *, hint: str = "", better: str = "") -> UsageError:
    """Return the error of a target that cannot express a plan; `better` is one that can."""
    if better:
        hint = f"memplan emit {plan.id or 'PLAN'} --to {better}"
    return UsageError(f"{target} cannot carry this plan out: {why}", hint=hint)


def gpu_ledgers(plan: Plan) -> tuple[Ledger, ...]:
    """Return what the plan's GPUs hold, in order."""
    return tuple(ledger for ledger in plan.devices if ledger.kind == "gpu")


def model_and_revision(plan: Plan) -> tuple[str, str]:
    """Return what from_pretrained and servers load: a folder or a Hub id, and a revision.

    Raises UsageError for a plan that does not say it, and for a model that is Python code.
    """
    path = plan.model.path
    if path is None or plan.model.source == "module":
        raise UsageError(
            "the plan does not say which folder or Hub id to load",
            hint=f"memplan emit {plan.id or 'PLAN'} --model FOLDER (or org/name) ...",
        )
    if plan.model.source in ("hub", "catalog"):
        model, _, revision = path.partition("@")
        return model, revision or "main"
    file = PurePosixPath(path)
    folder = file.parent if file.suffix in (".json", ".safetensors") else file
    return str(folder), "main"


def json_text(value: Any) -> str:
    """Return JSON as files have it."""
    return json.dumps(value, indent=2) + "\n"


def kilobytes(size: int) -> str:
    """Return a size for Kubernetes: whole Mi, rounded up."""
    return f"{-(-size // 2**20)}Mi"


def yaml_text(value: Mapping[str, Any] | Sequence[Any], *, indent: int = 0) -> str:
    """Return block YAML of nested mappings, lists and scalars; strings are quoted where needed.

    JSON's strings are YAML's double-quoted ones, so nothing else has to be escaped.
    """
    pad = "  " * indent
    if isinstance(value, Mapping):
        rows = ((f"{pad}{_scalar(key)}:", item) for key, item in value.items())
        return "".join(_row(head, item, indent + 1) for head, item in rows)
    return "".join(_item(pad, item, indent) for item in value)


def _row(head: str, item: Any, indent: int) -> str:
    if isinstance(item, Mapping | list | tuple) and item:
        return f"{head}\n{yaml_text(item, indent=indent)}"
    if isinstance(item, str) and "\n" in item:
        body = "".join(f"{'  ' * indent}{line}\n" for line in item.rstrip("\n").split("\n"))
        return f"{head} |\n{body}"
    return f"{head} {_scalar(item)}\n"


def _item(pad: str, item: Any, indent: int) -> str:
    if isinstance(item, Mapping) and item:
        return f"{pad}- {yaml_text(item, indent=indent + 1).lstrip()}"
    return f"{pad}- {_scalar(item)}\n"


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        plain = _PLAIN.match(value) and value.lower() not in _WORDS
        return value if plain else json.dumps(value)
    return json.dumps(value)


def command_text(words: Sequence[str]) -> str:
    """Return a shell command, an option with its value a line; the shell expands "$" words."""
    lines: list[str] = []
    for word in words:
        text = f'"{word}"' if word.startswith("$") else shlex.quote(word)
        value = lines and not word.startswith("-") and lines[-1].lstrip().startswith("-")
        if value and " " not in lines[-1].strip():
            lines[-1] += f" {text}"
        elif lines and not word.startswith("-") and len(lines) == 1:
            lines[0] += f" {text}"
        else:
            lines.append(text)
    return " \\\n  ".join(lines) + "\n"


def shell_file(head: str, words: Sequence[str], *, environment: Mapping[str, str] = {}) -> str:
    """Return a script that runs one command and passes its own arguments on.

    Args:
        head: comment lines.
        words: the command.
        environment: variables that it needs.
    """
    exports = "".join(f"export {name}={shlex.quote(text)}\n" for name, text in environment.items())
    return f"#!/bin/sh\n{head}{exports}exec {command_text([*words, '$@'])}"
