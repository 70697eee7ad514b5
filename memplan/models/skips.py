"""Which modules a quantizer leaves alone: default lists, and the patterns of a config's list.

Three notations meet here, and one matcher reads them all:
names    transformers quantizers_utils.py, should_convert_module: a regular expression from the
         start of a module's name to the end of a part of it, or the end of the name
"re:..." compressed-tensors: a regular expression from the start
"a*"     modelopt: a glob, which also holds for what is below the module that it names
Checkpoints write names with other first parts than the modules of transformers 5 have
("language_model.model.layers" and "model.language_model.layers") and DeepSeek-V4's own words
("attn", "ffn"), so all are tried.
"""

from __future__ import annotations

import contextlib
import fnmatch
import re
import time
from collections.abc import Iterable
from typing import Any

from memplan.errors import BadModelError
from memplan.models.linears import FP32_MODULES, module_of, output_matrix
from memplan.types import ModelSpec

__all__ = ["ModuleNames", "always_skipped", "default_skips"]

BUDGET_S = 2.0
"""Seconds for all matches of one list."""
MAX_PATTERN = 4096
"""Longest pattern that is read, characters."""
_PLAIN = re.compile(r"[\w.\-]+")
_ONLY_REGEX = re.compile(r"[\\^$+()|{}\[\]]")
"""What no file name pattern has: "model.layers.0*" is one, and read as an expression it meant every
layer."""
_FIRST = re.compile(r"^(?:(?:model|language_model|text_model)\.)+")
_PREFIXES = ("", "model.", "language_model.model.", "model.language_model.")
_EXPERTS = re.compile(r"(\.|^)experts$")
_PROJECTIONS = {"down_proj": ("0.down_proj",), "up_proj": ("0.up_proj",)}
_FUSED = ("0.gate_proj", "0.up_proj")


def default_skips(spec: ModelSpec) -> tuple[str, ...]:
    """Return what transformers leaves alone when no list is given.

    The output embedding, the module of the last parameter (known only when the tensors are in
    definition order) and both sides of every tie. Source: quantizers/base.py,
    get_keys_to_not_convert.
    """
    parameters = [tensor for tensor in spec.tensors if tensor.kind == "parameter"]
    names = {module_of(t.name) for t in parameters if output_matrix(module_of(t.name))}
    for tensor in parameters:
        if tensor.tied_to:
            names |= {module_of(tensor.name), module_of(tensor.tied_to)}
    owned = [tensor.name for tensor in parameters if not tensor.tied_to]
    if owned and spec.exact_modules:
        names.add(owned[-1].removesuffix(".weight"))
    return tuple(sorted(names))


def always_skipped(model_type: str | None) -> tuple[str, ...]:
    """Return the modules that transformers keeps in float32, whatever a list says."""
    return FP32_MODULES.get(model_type or "", ())


class ModuleNames:
    """A list of modules in any of the three notations, read once and asked often.

    A pattern that is no valid expression means nothing. Patterns come from a file, so all of them
    together have two seconds for a model.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._plain: set[str] = set()
        self._expressions: list[Any] = []
        self._left_s = BUDGET_S
        for pattern in dict.fromkeys(patterns):
            self._add(pattern)
        self._ends = tuple(sorted(self._plain))

    def _add(self, pattern: str) -> None:
        if pattern.startswith("re:"):
            self._compile(pattern[3:])
        elif _PLAIN.fullmatch(pattern):
            self._plain |= {pattern, _short(pattern)} - {""}
        else:
            for glob in dict.fromkeys((pattern, f"{pattern}.*", _short(pattern))):
                self._compile(fnmatch.translate(glob))
            if pattern.startswith(".") or _ONLY_REGEX.search(pattern):
                self._compile(rf"(?:{pattern})(?:(?<=\.)|(?=\.|$))")

    def _compile(self, expression: str) -> None:
        import regex  # has a time limit, which re has not

        with contextlib.suppress(regex.error, RecursionError, OverflowError, MemoryError):
            if len(expression) <= MAX_PATTERN:
                self._expressions.append(regex.compile(expression))

    def hold(self, name: str) -> bool:
        """Say whether the module of a tensor is meant; of fused experts also a single one's."""
        return any(self._means(module) for module in _modules(name))

    def _means(self, module: str) -> bool:
        if self._ends and module.endswith(self._ends):
            return True
        parts = module.split(".")
        if any(".".join(parts[:count]) in self._plain for count in range(1, len(parts))):
            return True
        return any(self._matches(expression, module) for expression in self._expressions)

    def _matches(self, expression: Any, module: str) -> bool:
        start = time.perf_counter()
        try:
            found = expression.match(module, timeout=max(self._left_s, 0.001))
        except TimeoutError as error:
            raise BadModelError(
                f"config.json: the pattern {expression.pattern[:60]!r} takes forever to match",
                hint="check the list of modules that are not quantized",
            ) from error
        self._left_s -= time.perf_counter() - start
        return found is not None


def _short(name: str) -> str:
    return _FIRST.sub("", name)


def _modules(name: str) -> list[str]:
    """Return the names under which a list may know the module of a tensor."""
    module = module_of(name)
    inner = [module]
    if _EXPERTS.search(module):
        last = name.rpartition(".")[2]
        inner += [f"{module}.{path}" for path in _PROJECTIONS.get(last, _FUSED)]
    short = [_short(path) for path in inner]
    short += [path.replace(".self_attn", ".attn").replace(".mlp", ".ffn") for path in short]
    found = [*inner, *(prefix + path for path in short for prefix in _PREFIXES)]
    return list(dict.fromkeys(found))
