"""What people write for a model on the Hub: "org/name[@revision][:file or quantization]"."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

__all__ = ["HubName", "endpoint", "parse_name"]

_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?"
_NAME = re.compile(
    rf"(?:(?P<forced>hf:|https://huggingface\.co/))?(?P<repo>{_PART}/{_PART})"
    r"(?:@(?P<revision>[\w./-]{1,255}))?(?::(?P<file>[^:\s]{1,512}))?"
)
_FILES = (".json", ".gguf", ".safetensors", ".bin", ".pt", ".pth", ".py", ".onnx", ".ckpt")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubName:
    """A model on the Hub."""

    repo: str
    """"org/name"."""
    revision: str
    """Branch, tag or commit; "main" when nobody names one."""
    file: str | None
    """One of its files, or part of a GGUF file's name such as "Q4_K_M"."""


def parse_name(argument: str) -> HubName | None:
    """Return the Hub id that an argument names, or None when it does not look like one.

    "hf:" or the page's address in front makes a name an id even where it looks like a file.
    """
    match = _NAME.fullmatch(argument.strip().rstrip("/"))
    if match is None:
        return None
    repo, revision = match["repo"], match["revision"]
    looks_local = repo.lower().endswith(_FILES) and not match["forced"] and not match["file"]
    if looks_local or "--" in repo or ".." in argument:
        return None
    return HubName(repo=repo, revision=revision or "main", file=match["file"])


def endpoint() -> str:
    """Return the Hub's address: HF_ENDPOINT, or the public one."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
