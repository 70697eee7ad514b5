"""The image code of the installed transformers, out of modules that need torchvision or PIL."""

from __future__ import annotations

import ast
import importlib.util
import math
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any

MAX_IMAGE_SIZE = 4096


def real_functions(module: str, *names: str) -> dict[str, Any]:
    """Return functions and methods by name, compiled from the library's own source.

    Args:
        module: path below transformers/models without the suffix.
        names: what to take; a name that several classes share is taken from the first.
    """
    import numpy as np
    import torch

    spec = importlib.util.find_spec("transformers")
    assert spec
    assert spec.origin
    path = Path(spec.origin).parent / "models" / f"{module}.py"
    tree = ast.parse(path.read_text("utf-8"))
    found: dict[str, ast.FunctionDef] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            found.setdefault(node.name, node)
    assert set(names) == set(found)
    for node in found.values():
        node.returns = None
        for argument in [*node.args.args, *node.args.kwonlyargs]:
            argument.annotation = None
    space: dict[str, Any] = {
        "math": math,
        "np": np,
        "torch": torch,
        "lru_cache": lru_cache,
        "defaultdict": defaultdict,
        "MAX_IMAGE_SIZE": MAX_IMAGE_SIZE,
        "get_image_size": lambda image, _format=None: image.shape[:2],
    }
    code = ast.Module(body=list(found.values()), type_ignores=[])
    exec(compile(ast.fix_missing_locations(code), str(path), "exec"), space)
    return {name: space[name] for name in names}
