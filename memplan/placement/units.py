"""Cuts a model into the smallest pieces that a device map can name.

A unit is a module that owns tensors directly. Three rules make units larger: a module that owns
tensors *and* has children that do is one piece (a map must not name a module and its parent);
tensors that share one storage stay together; and where only a file's names are known, a whole
decoder layer is one piece, since a loader may rename or fuse what is inside.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from memplan.types import ModelSpec, Tensor

__all__ = ["Unit", "cut", "is_routed"]

_LAYER = re.compile(r"^(.*?\b(?:layers|h|blocks|block|blk))\.(\d+)\.")

PLAIN_NAMES = frozenset(
    {"gemma", "gemma2", "gemma3_text", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3"}
)
"""Model types whose files name every module as the built model does (held against meta builds)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One piece of a model."""

    names: tuple[str, ...]
    """Keys in a device map: one, or several for modules that share a tensor."""
    layer: int | None
    """Index of its decoder layer; None = before, between or after the layers."""
    block: str | None = None
    """Path of the layer that it is part of, in any stack; its parts run on one device."""
    position: int
    """Order in the model."""
    weight_bytes: int
    """Parameters."""
    buffer_bytes: int
    """Buffers, which stay on the computing device."""
    reload_bytes: int
    """Largest part that is copied at once when the piece is streamed."""
    away_bytes: int = -1
    """Parameters as they are kept in host memory or on disk: bitsandbytes packs on a GPU alone."""
    active_bytes: int = -1
    """Of `weight_bytes`, what one token passes through: a few of the experts, else all."""
    resaved_bytes: int = 0
    """Of `away_bytes`, what a loader writes anew for the disk: experts that it fuses, and all of a
    model that has no file."""
    lookup: bool = False
    """True for an embedding that nothing else shares: one token reads one row of it."""
    tensors: tuple[Tensor, ...]
    """Its own parameters, tied ones left out."""

    def __post_init__(self) -> None:
        """Fill in what is the same as the weights unless something else is said."""
        for name in ("away_bytes", "active_bytes"):
            if getattr(self, name) < 0:
                object.__setattr__(self, name, self.weight_bytes)

    @property
    def active_share(self) -> float:
        """Part of the weights that one token passes through, 0 to 1."""
        return self.active_bytes / self.weight_bytes if self.weight_bytes else 1.0


_CUT: dict[int, tuple[ModelSpec, tuple[Unit, ...]]] = {}
"""Models that were cut lately, by identity: one plan cuts the same model several times, and who
changes quantizations by keys comes back to each. The models are kept, so that no id is used twice.
"""

_KEPT = 8


def cut(spec: ModelSpec) -> tuple[Unit, ...]:
    """Return the units of a model in definition order; together they cover every tensor."""
    known = _CUT.pop(id(spec), None) or (spec, _cut(spec))
    _CUT[id(spec)] = known
    for old in list(_CUT)[:-_KEPT]:
        _CUT.pop(old, None)
    return known[1]


def _cut(spec: ModelSpec) -> tuple[Unit, ...]:
    owner = _owners(spec)
    groups: dict[str, list[Tensor]] = {}
    for tensor in spec.tensors:
        groups.setdefault(owner(tensor.name), []).append(tensor)
    whole_layers = not _leaves_known(spec)
    stack = _decoder_stack(spec)
    cutter = _Cutter(spec, stack, whole_layers=whole_layers)
    units = [
        cutter.unit(names, [groups[name] for name in names]) for names in _tied_together(groups)
    ]
    if not spec.exact_modules:
        units += _unstored(stack) if not whole_layers else ()
        units.sort(key=_place)
    return tuple(replace(unit, position=i) for i, unit in enumerate(units))


@lru_cache(maxsize=200_000)
def _layer_match(name: str) -> re.Match[str] | None:
    return _LAYER.match(name)


def _leaves_known(spec: ModelSpec) -> bool:
    return spec.exact_modules or spec.model_type in PLAIN_NAMES


def _owners(spec: ModelSpec) -> Callable[[str], str]:
    """Return the function from a tensor's name to its unit's."""
    if not _leaves_known(spec):
        return _layer_or_module
    modules = {_module(tensor.name) for tensor in spec.tensors}

    def highest(name: str) -> str:
        module = _module(name)
        parts = module.split(".")
        for depth in range(1, len(parts)):
            ancestor = ".".join(parts[:depth])
            if ancestor in modules:
                return ancestor
        return module

    return highest


def _module(name: str) -> str:
    """Return the module that owns a tensor; a tensor of the root is its own unit."""
    return name.rpartition(".")[0] or name


def _layer_or_module(name: str) -> str:
    match = _layer_match(name)
    return f"{match[1]}.{match[2]}" if match else _module(name)


def _tied_together(groups: Mapping[str, list[Tensor]]) -> list[tuple[str, ...]]:
    """Return the groups' names, those that share a tensor in one tuple."""
    home = {tensor.name: name for name, tensors in groups.items() for tensor in tensors}
    leader = {name: name for name in groups}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for name, tensors in groups.items():
        for tensor in tensors:
            if tensor.tied_to in home:
                leader[find(name)] = find(home[tensor.tied_to])
    bundles: dict[str, list[str]] = {}
    for name in groups:
        bundles.setdefault(find(name), []).append(name)
    return [tuple(names) for names in bundles.values()]


def _decoder_stack(spec: ModelSpec) -> str | None:
    """Return the path of the list of decoder layers: of all stacks the one with most bytes."""
    sizes: Counter[str] = Counter()
    for tensor in spec.tensors:
        if match := _layer_match(tensor.name):
            sizes[match[1]] += tensor.bytes
    return sizes.most_common(1)[0][0] if sizes else None


_ROUTED = (".experts.", "_exps.")
"""Marks of the tensors of routed experts, of which a token passes through a few."""

_TABLE = re.compile(r"(^|\.)(shared|wte|token_embd|\w*embed\w*)$")
"""Modules whose matrix is looked up row by row, unless the output shares it."""

_SIXTEEN_ON_HOST = ("int8", "nf4", "fp4", "nf4-dq", "fp4-dq")
"""Schemes of bitsandbytes: off the GPU a module keeps the dtype that it had."""


class _Cutter:
    """What all units of one model have in common."""

    def __init__(self, spec: ModelSpec, stack: str | None, *, whole_layers: bool) -> None:
        self._stack, self._whole = stack, whole_layers
        self._share = _active_share(spec)
        self._vocab = spec.vocab
        self._packed = spec.weight_format in _SIXTEEN_ON_HOST
        self._unsaved = spec.source == "module"

    def unit(self, names: tuple[str, ...], parts: list[list[Tensor]]) -> Unit:
        """Return the unit of modules that share tensors, or of one."""
        tensors = [tensor for part in parts for tensor in part]
        own = tuple(t for t in tensors if t.kind == "parameter" and not t.tied_to)
        found = [match for t in tensors if (match := _layer_match(t.name))]
        layers = {int(match[2]) for match in found if match[1] == self._stack}
        blocks = {f"{match[1]}.{match[2]}" for match in found}
        routed = sum(t.bytes for t in own if is_routed(t.name))
        away = tuple(self._away(t) for t in own)
        buffers = (t for t in tensors if t.kind == "buffer" and not t.tied_to)
        return Unit(
            names=names,
            layer=layers.pop() if len(layers) == 1 else None,
            block=blocks.pop() if len(blocks) == 1 else None,
            position=0,
            weight_bytes=sum(t.bytes for t in own),
            buffer_bytes=sum(t.bytes for t in buffers),
            reload_bytes=_reload(names, away, whole_layers=self._whole),
            away_bytes=sum(t.bytes for t in away),
            active_bytes=sum(t.bytes for t in own) - routed + int(routed * self._share),
            resaved_bytes=sum(t.bytes for t in away if self._unsaved or is_routed(t.name)),
            lookup=self._is_lookup(names, own),
            tensors=own,
        )

    def _away(self, tensor: Tensor) -> Tensor:
        """Return a tensor as host memory keeps it (transformers 5.23, measured: 16.0 bits)."""
        if not self._packed or tensor.dtype not in _SIXTEEN_ON_HOST:
            return tensor
        return replace(tensor, bytes=2 * math.prod(tensor.shape))

    def _is_lookup(self, names: tuple[str, ...], own: tuple[Tensor, ...]) -> bool:
        tables = all(len(t.shape) == 2 and t.shape[0] >= self._vocab for t in own)
        return bool(own) and tables and all(_TABLE.search(name) for name in names)


def is_routed(name: str) -> bool:
    """Say whether a tensor belongs to routed experts."""
    return any(mark in name for mark in _ROUTED)


def _active_share(spec: ModelSpec) -> float:
    """Return the part of the routed experts that one token passes through: chosen / all."""
    if spec.active_parameters is None:
        return 1.0
    own = (t for t in spec.tensors if t.kind == "parameter" and not t.tied_to)
    routed = sum(math.prod(t.shape) for t in own if is_routed(t.name))
    asleep = spec.parameters - spec.active_parameters
    return min(max(1 - asleep / routed, 0.0), 1.0) if routed else 1.0


def _reload(names: tuple[str, ...], own: tuple[Tensor, ...], *, whole_layers: bool) -> int:
    """Return the bytes that are on the computing device at once while the unit is streamed.

    accelerate's hooks copy one module with direct tensors at a time; the tensors of a parent stay
    while its children run. Of a layer whose inside is unknown, everything may be fused.
    """
    if whole_layers:
        return sum(t.bytes for t in own)
    direct: dict[str, int] = {}
    for tensor in own:
        module = _module(tensor.name)
        direct[module] = direct.get(module, 0) + tensor.bytes
    parents = sum(size for module, size in direct.items() if module in names)
    children = [size for module, size in direct.items() if module not in names]
    return parents + max(children, default=0)


def _unstored(stack: str | None) -> tuple[Unit, ...]:
    """Return the rotary module that a file does not store, so that a map covers its buffers."""
    if stack is None or not stack.endswith("layers"):
        return ()
    parent = stack.rpartition(".")[0]
    name = f"{parent}.rotary_emb" if parent else "rotary_emb"
    return (
        Unit(
            names=(name,),
            layer=None,
            position=0,
            weight_bytes=0,
            buffer_bytes=0,
            reload_bytes=0,
            tensors=(),
        ),
    )


def _place(unit: Unit) -> tuple[int, int, str]:
    """Return where a unit stands in the model, by its name: a file does not say.

    Embeddings and vision towers come before the layers, norms and heads after them.
    """
    if unit.layer is not None:
        return 1, unit.layer, unit.names[0]
    name = unit.names[0].lower()
    before = any(word in name for word in ("embed", "wte", "wpe", "vis", "rotary"))
    return (0 if before else 2), 0, name
