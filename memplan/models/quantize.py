"""A model -> the same model with its linears in a quantized layout, skip rules included.

What stays: embeddings, norms, 1-D tensors and, by default, the output matrix, the module that
owns the last parameter, and every tied weight on both sides (`memplan.models.skips`). A user's
list replaces that default; AWQ adds to it. Fused experts are 3-D parameters and no nn.Linear:
what quantizes while loading leaves them alone (only fine-grained FP8 takes them), while
checkpoints made offline hold each expert quantized and routers plain. Source: transformers 5.23,
quantizers/ and integrations/.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from memplan.errors import UnsupportedModelError
from memplan.formats.quantized import Scheme, bytes_of
from memplan.models.linears import LinearKind, is_router, linear_kind, module_of, output_matrix
from memplan.models.skips import ModuleNames, always_skipped, default_skips
from memplan.types import ModelSpec, Tensor

__all__ = ["quantize"]

_EXACT: frozenset[LinearKind] = frozenset({"linear"})
_ANY: frozenset[LinearKind] = frozenset({"linear", "subclass", "grouped"})
_OFFLINE: frozenset[LinearKind] = _ANY | {"experts"}
_BNB: frozenset[LinearKind] = _EXACT | {"conv1d"}
_FP8: frozenset[LinearKind] = frozenset({"linear", "grouped", "experts"})

_TAKES: Mapping[str, frozenset[LinearKind]] = {
    "int8": _BNB,
    "bnb4": _BNB,
    "fp8": _FP8,
    "fp8-tensor": _FP8,
    "fp8-channel": _OFFLINE,
    "gptq": _OFFLINE | {"conv1d"},
    "awq": _OFFLINE,
    "nvfp4": _OFFLINE,
    "packed": _OFFLINE,
    "mx-packed": _OFFLINE,
    "exl3": _OFFLINE,
    "mxfp4": frozenset({"experts"}),
}
"""Kinds of linears that a family replaces; the others take every nn.Linear and no experts."""

_MADE_OFFLINE = ("gptq", "awq", "nvfp4", "packed", "mx-packed", "exl3", "fp8-channel")
"""Families of checkpoints, which keep routers plain."""

_BLOCKS_ONLY = ("gptq", "awq", "exl3")
"""Families that quantize only what is inside the decoder layers."""

_MULTIPLE = {"gptq": 32, "awq": 32, "exl3": 16, "nvfp4-online": 16}
"""Both sizes of a linear must be multiples of this, else it stays."""

_MODEL_SCALES = ("hqq", "quanto", "quanto-int8", "bitnet", "packed")
"""Families whose scales have the dtype of the weight."""

_EXL3_HEAD_BITS = 6
_LAYER = re.compile(r"\b(?:layers|layer|h|blocks|block)\.\d+\.")
_VISION = re.compile(r"(vision|visual|image|multi_modal_projector|mm_projector|audio)")


def quantize(
    spec: ModelSpec,
    config: Mapping[str, Any] | None,
    scheme: Scheme,
    *,
    skip: Sequence[str] | None = None,
) -> ModelSpec:
    """Return the model as it is stored in a scheme; names and logical shapes stay.

    The bytes of a quantized tensor are those of all that is stored for it: values, scales, zero
    points, indices. Biases, which no scheme touches, stay tensors of their own.

    Args:
        spec: the model with plain weights.
        config: its config.json; not needed.
        scheme: the layout; "none" changes nothing.
        skip: patterns of modules that stay, see `memplan.models.skips`; None = the scheme's own
            list, or else the default one.

    Raises UnsupportedModelError when nothing in the model can be quantized so.
    """
    del config
    if scheme.family == "none":
        return spec
    given = skip if skip is not None else scheme.skip
    kept = (*default_skips(spec), *(given or ()))
    if given is not None and scheme.family != "awq":
        kept = tuple(given)
    work = _Work(spec, scheme, kept)
    tensors = tuple(work.stored(tensor) for tensor in spec.tensors)
    if tensors == spec.tensors:
        raise UnsupportedModelError(
            f"{spec.name} has no module that {scheme.name} quantizes",
            hint="its experts or layers are not nn.Linear; use another --quant",
        )
    return replace(spec, tensors=tensors, weight_format=scheme.name, dtype=_main(tensors))


def _main(tensors: Sequence[Tensor]) -> str:
    sizes: dict[str, int] = {}
    for tensor in tensors:
        if tensor.kind == "parameter" and not tensor.tied_to:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.bytes
    return max(sizes, key=lambda name: sizes[name])


def _parts(scheme: Scheme) -> tuple[tuple[ModuleNames, Scheme], ...]:
    """Return the parts of a mixed scheme, patterns of the same one together."""
    together: dict[Scheme, list[str]] = {}
    for pattern, part in scheme.parts:
        together.setdefault(part, []).append(pattern)
    return tuple((ModuleNames(patterns), part) for part, patterns in together.items())


class _Work:
    """One model and one scheme: says for each tensor how it is stored."""

    def __init__(self, spec: ModelSpec, scheme: Scheme, skip: Sequence[str]) -> None:
        self.spec = spec
        self.scheme = scheme
        self.skip = ModuleNames((*skip, *always_skipped(spec.model_type)))
        self.parts = _parts(scheme)
        self.biased = {module_of(t.name) for t in spec.tensors if t.name.endswith(".bias")}

    def stored(self, tensor: Tensor) -> Tensor:
        """Return a tensor as the scheme stores it, itself when it stays."""
        head = self._exl3_head(tensor)
        if head is not None:
            return head
        if tensor.kind != "parameter" or tensor.tied_to:
            return tensor
        if self.scheme.family == "mxfp4" and self._expert_bias(tensor):
            return replace(tensor, dtype="float32", bytes=4 * tensor.shape[0] * tensor.shape[1])
        scheme = self._scheme(tensor)
        if scheme is None:
            return tensor
        kind = linear_kind(tensor, self.spec.model_type)
        if not self._eligible(tensor, kind, scheme):
            return tensor
        shape = self._logical(tensor, kind, scheme)
        if scheme.family in _MODEL_SCALES and tensor.dtype == "float32":
            scheme = replace(scheme, scale_bytes=4)
        return replace(tensor, bytes=bytes_of(scheme, shape), dtype=scheme.name)

    def _scheme(self, tensor: Tensor) -> Scheme | None:
        if self.skip.hold(tensor.name):
            return None
        for names, part in self.parts:
            if names.hold(tensor.name):
                return part
        return self.scheme if self.scheme.default else None

    def _eligible(self, tensor: Tensor, kind: LinearKind, scheme: Scheme) -> bool:
        """Say whether a tensor is the weight of a module that the scheme replaces."""
        family = scheme.family
        if kind not in _TAKES.get(family, _EXACT if family == "fp8" else _ANY):
            return False
        if family == "mxfp4" and self.spec.model_type not in (None, "gpt_oss"):
            return False
        module = module_of(tensor.name)
        if family in _MADE_OFFLINE and is_router(module):
            return False
        if family == "nvfp4-online" and module in self.biased:
            return False
        if family in _BLOCKS_ONLY and not self._in_block(tensor.name):
            return False
        rows, columns = self._logical(tensor, kind, scheme)[-2:]
        if family == "torchao-int4":
            return columns % scheme.group == 0
        multiple = _MULTIPLE.get(family, 1)
        return rows % multiple == 0 and columns % multiple == 0

    def _in_block(self, name: str) -> bool:
        return bool(_LAYER.search(name)) and not _VISION.search(name)

    def _expert_bias(self, tensor: Tensor) -> bool:
        """Say whether a tensor is a bias of gpt-oss's experts, which MXFP4 keeps in float32."""
        is_bias = ".experts." in tensor.name and tensor.name.endswith("_bias")
        return is_bias and len(tensor.shape) == 2

    def _exl3_head(self, tensor: Tensor) -> Tensor | None:
        """Return EXL3's output matrix: 6 bits unless more are asked, and its own when tied."""
        if self.scheme.family != "exl3" or len(tensor.shape) != 2:
            return None
        if not tensor.name.endswith(".weight") or not output_matrix(module_of(tensor.name)):
            return None
        head = replace(self.scheme, bits=max(_EXL3_HEAD_BITS, self.scheme.bits))
        size = bytes_of(head, tensor.shape)
        return replace(tensor, bytes=size, dtype=self.scheme.name, tied_to=None)

    def _logical(self, tensor: Tensor, kind: LinearKind, scheme: Scheme) -> tuple[int, ...]:
        """Return (out, in), with the experts of a stack in front.

        Gate and up of an expert are one matrix for fine-grained FP8 and two elsewhere.
        """
        if kind == "conv1d":
            return tensor.shape[::-1]
        if kind != "experts":
            return tensor.shape
        experts, first, second = tensor.shape
        hidden = self.spec.hidden
        down = "down_proj" in tensor.name or "output_linear" in tensor.name
        rows, columns = first, second
        if hidden and first != second and (first if not down else second) == hidden:
            rows, columns = second, first
        if "gate_up" in tensor.name and scheme.family not in ("fp8", "mxfp4") and rows % 2 == 0:
            return (experts, 2, rows // 2, columns)
        return (experts, rows, columns)
