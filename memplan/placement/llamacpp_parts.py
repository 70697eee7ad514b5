"""Cuts a model into what llama.cpp can put on a device of its own.

A decoder layer goes to a device with its cache; what is large inside, the matrices of the
feed-forward part or of all experts, can stay in host memory by --override-tensor. The embedding
is looked up by the host whatever is asked for. The output matrix counts as one more layer, the
last; where it is the embedding itself, the device that has it holds a second copy.

Source: llama.cpp 0c1e570, llama-model.cpp (load_tensors), llama-arch.cpp, common/common.h.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from memplan.placement.units import Unit
from memplan.runtimes.llamacpp import layer_cache_bytes, layer_state_bytes
from memplan.types import Layer, ModelSpec, Tensor, Workload

__all__ = ["Block", "Group", "Parts", "module_of", "parts_of"]

EXPERTS = re.compile(r"\.ffn_(up|down|gate|gate_up)_(ch|)exps|\.experts\.")
"""Tensors of routed experts: llama.cpp's own pattern, and the names of other checkpoints."""

DENSE = re.compile(r"\.ffn_(up|down|gate)\.")
"""Matrices of a dense feed-forward part: llama.cpp's own pattern."""

_LOOKUP = re.compile(
    r"(^|\.)(token_embd|position_embd|token_types|per_layer_token_embd|shared|wte|wpe"
    r"|\w*embed_(tokens|in|positions)\w*|\w*word_embeddings)$"
)
_TOKENS = re.compile(r"(^|\.)(token_embd|shared|wte|embed_(tokens|in)|word_embeddings)$")
_OUTPUT = re.compile(r"(^|\.)(output|lm_head|embed_out)$")
_PROJECTION = re.compile(r"\.(\w+)\.(?:weight|bias|scale|input_scale)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Tensors that stay together."""

    modules: tuple[str, ...]
    """Their names without ".weight": keys of a device map."""
    bytes: int
    """All of them."""
    active_bytes: int
    """What one token reads of them."""
    largest_bytes: int
    """The largest tensor: what a copy for a large batch takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One decoder layer, or the output."""

    kept: Group
    """What follows the layer: attention, norms, router, shared experts."""
    moved: tuple[Group, ...]
    """What may stay in host memory alone, one matrix of all experts or of the feed-forward part
    each."""
    kv_bytes: int = 0
    """KV cache of the layer."""
    state_bytes: int = 0
    """Its recurrent state."""
    layer: Layer | None
    """Its shapes; None = the output."""

    @property
    def bytes(self) -> int:
        """All weights."""
        return self.kept.bytes + self.moved_bytes

    @property
    def cache_bytes(self) -> int:
        """What the layer keeps of the tokens."""
        return self.kv_bytes + self.state_bytes

    @property
    def moved_bytes(self) -> int:
        """Weights that may stay in host memory alone."""
        return sum(group.bytes for group in self.moved)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A model as llama.cpp places it."""

    lookup: Group
    """Embeddings: always in host memory, one row a token is read."""
    blocks: tuple[Block, ...]
    """Decoder layers in order, then the output."""
    routed: bool
    """True when the parts that may stay behind are experts, of which a token reads a few."""
    copied_output: bool
    """True when the output matrix is a second copy of the embedding."""

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return len(self.blocks) - 1


def parts_of(spec: ModelSpec, workload: Workload, units: Sequence[Unit]) -> Parts:
    """Return the model's parts.

    Args:
        spec: the model.
        workload: gives the caches their sizes.
        units: `memplan.placement.units.cut(spec)`.
    """
    layered: dict[int, list[Unit]] = {}
    outside: list[Tensor] = []
    for unit in units:
        if unit.layer is not None and unit.layer < len(spec.layers):
            layered.setdefault(unit.layer, []).append(unit)
        elif unit.layer is None:
            outside += unit.tensors
    lookup = [tensor for tensor in outside if _LOOKUP.search(module_of(tensor))]
    rest = [tensor for tensor in outside if tensor not in lookup]
    routed = any(EXPERTS.search(tensor.name) for tensor in spec.tensors)
    blocks = [
        _block(spec, workload, i, layered.get(i, []), routed=routed)
        for i in range(len(spec.layers))
    ]
    copied = not any(_OUTPUT.search(module_of(tensor)) for tensor in rest) and bool(spec.vocab)
    copied = copied and any(layer.kind != "encoder_only" for layer in spec.layers)
    tokens = [tensor for tensor in lookup if _TOKENS.search(module_of(tensor))] if copied else []
    end = replace(_group((*rest, *tokens), 1.0), modules=_group(rest, 1.0).modules)
    output = Block(kept=end, moved=(), layer=None)
    table = _group(lookup, 0.0)
    return Parts(lookup=table, blocks=(*blocks, output), routed=routed, copied_output=bool(tokens))


def module_of(tensor: Tensor) -> str:
    """Return a tensor's name without its last part: the key of a device map."""
    return tensor.name.rpartition(".")[0] or tensor.name


def _block(
    spec: ModelSpec, workload: Workload, index: int, units: Sequence[Unit], *, routed: bool
) -> Block:
    tensors = [tensor for unit in units for tensor in unit.tensors]
    pattern = EXPERTS if routed else DENSE
    moved: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        if pattern.search(tensor.name):
            match = _PROJECTION.search(tensor.name)
            moved.setdefault(match[1] if match else tensor.name, []).append(tensor)
    away = {tensor.name for group in moved.values() for tensor in group}
    share = _share(units, away) if routed else 1.0
    layer = spec.layers[index]
    state = layer_state_bytes(layer, workload)
    return Block(
        kept=_group([tensor for tensor in tensors if tensor.name not in away], 1.0),
        moved=tuple(_group(group, share) for group in moved.values()),
        kv_bytes=layer_cache_bytes(spec, layer, workload) - state,
        state_bytes=state,
        layer=layer,
    )


def _share(units: Sequence[Unit], away: set[str]) -> float:
    """Return the part of the experts' bytes that one token reads."""
    routed = sum(t.bytes for unit in units for t in unit.tensors if t.name in away)
    asleep = sum(unit.weight_bytes - unit.active_bytes for unit in units)
    return min(max(1.0 - asleep / routed, 0.0), 1.0) if routed else 1.0


def _group(tensors: Sequence[Tensor], share: float) -> Group:
    size = sum(tensor.bytes for tensor in tensors)
    return Group(
        modules=tuple(dict.fromkeys(module_of(tensor) for tensor in tensors)),
        bytes=size,
        active_bytes=int(size * share),
        largest_bytes=max((tensor.bytes for tensor in tensors), default=0),
    )
