"""The tensors of a packed checkpoint -> one tensor per weight, logical shape, exact bytes.

A quantized file stores a linear as several tensors: packed integers, scales, zero points, indices.
`logical` folds them into "X.weight" of the shape that the model has, so that parameters are
counted as parameters and no byte is lost. Sources: AutoGPTQ, AutoAWQ, bitsandbytes,
compressed-tensors, modelopt, hqq, optimum-quanto, torchao, exllamav3, and transformers 5.23.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from memplan.formats.quantized import Scheme
from memplan.types import Tensor

__all__ = ["has_companions", "logical"]

_PRIMARY = (
    "qweight",
    "weight_packed",
    "trellis",
    "W_q",
    "weight_qdata",
    "_weight_qdata",
    "weight._data._data",
    "weight._data",
    "weight",
)
"""Where the values of a linear are, by the last part of the tensor's name."""

_BESIDE = re.compile(
    r"qzeros|scales|g_idx|weight_(scale|scale_inv|scale_2|scales|shape|zero_point|global_scale"
    r"|g_idx)|(input|output|activation)_scale|input_global_scale|_weight_(scale|zero_point)"
    r"|weight\._(scale|shift)|weight\.(absmax|quant_map|nested_absmax|nested_quant_map)"
    r"|weight\.quant_state\.\w+|SCB|weight_format|scale|su|sv|suh|svh|mcg|mul1|pre_quant_scale"
)
"""What is stored beside the values."""

_HQQ = re.compile(
    r"zero|axis|channel_wise|compute_dtype|encoded_state_dict|group_size|nbits|offload_meta"
    r"|optimize|packing|quant_scale|quant_zero|round_zero|shape|stores_quant_config"
    r"|unpack_view_dtype|view_as_float"
)
_FUSED = re.compile(r"(?P<stem>.*experts\.\w*?_proj)_(?P<role>\w+)")
_FUSED_ROLES = (
    "blocks",
    "scales",
    "scale_inv",
    "scale",
    "scale_2",
    "weight_scale",
    "weight_scale_2",
    "input_scale",
    "activation_scale",
)
_MATRIX = 2
_AXES = {"trellis": 3, "blocks": 3}
"""Fewest axes that a rule can read; one for the others."""


@dataclass(slots=True, kw_only=True)
class _Group:
    """All tensors of one weight."""

    name: str
    """Of the tensor that stands for them."""
    parts: dict[str, Tensor] = field(default_factory=dict)
    """By the part of the name after the stem."""

    @property
    def primary(self) -> str | None:
        """Role of the tensor that holds the values."""
        roles = ("blocks", "", *_PRIMARY)
        return next((role for role in roles if role in self.parts), None)

    def find(self, *roles: str) -> Tensor | None:
        """Return the first of some companions that is there."""
        return next((self.parts[role] for role in roles if role in self.parts), None)


def logical(tensors: Sequence[Tensor], scheme: Scheme | None = None) -> tuple[Tensor, ...]:
    """Return the tensors of a file with each packed weight as one tensor.

    Args:
        tensors: of safetensors headers.
        scheme: of the file's config; its bits tell integer widths that no shape shows (AutoGPTQ
            without g_idx, pack-quantized), and its name becomes the dtype. None = 4 bits.

    Order is that of the first tensor of each weight. Bytes are the sums, whatever the format;
    where only the file's data hold the shape (bitsandbytes 4-bit, HQQ, quanto below 8 bits) the
    shape is one of the same number of elements. Unknown names stay as they are.
    """
    lasts = {tensor.name.rpartition(".")[2] for tensor in tensors}
    deep = any("_proj_" in last for last in lasts)
    deep = deep or any(".weight." in tensor.name for tensor in tensors)
    if not deep and _SCALES & lasts and {last for last in lasts if _kind(last)} <= _SCALED:
        folded = _with_scales(tensors, scheme)
        if folded is not None:
            return folded
    groups: dict[str, _Group] = {}
    keys = [_place(tensor.name) for tensor in tensors]
    for tensor, (stem, role, name) in zip(tensors, keys, strict=True):
        groups.setdefault(stem, _Group(name=name)).parts[role] = tensor
    result: list[Tensor] = []
    done: set[str] = set()
    for tensor, (stem, role, _) in zip(tensors, keys, strict=True):
        group = groups[stem]
        if not _packed(group) or role == "?":
            result.append(tensor)
        elif stem not in done:
            done.add(stem)
            result.append(_fold(group, scheme))
    return tuple(result)


def has_companions(tensors: Sequence[Tensor]) -> bool:
    """Say whether a file holds anything but plain weights and biases."""
    return any(_kind(tensor.name.rpartition(".")[2]) == "beside" for tensor in tensors) or any(
        _place(tensor.name)[1] not in ("weight", "?") for tensor in tensors[:64]
    )


@lru_cache(maxsize=1024)
def _kind(last: str) -> str:
    """Return what the last part of a name says: "values", "beside" or nothing."""
    if last in _PRIMARY:
        return "values"
    return "beside" if _BESIDE.fullmatch(last) or _HQQ.fullmatch(last) else ""


def _place(name: str) -> tuple[str, str, str]:
    """Return (stem, role, name of the weight) of a tensor's name; role "?" stands alone."""
    stem, _, last = name.rpartition(".")
    if stem and _kind(last):
        return stem, last, f"{stem}.weight"
    if "_proj_" in last:
        fused = _FUSED.fullmatch(name)
        if fused and fused["role"] in _FUSED_ROLES:
            return fused["stem"], fused["role"], fused["stem"]
    if "weight." in name:
        for role in _PRIMARY:
            if name.endswith(f".{role}"):
                stem = name.removesuffix(f".{role}")
                return stem, role, f"{stem}.weight"
        for depth in (2, 3):
            parts = name.rsplit(".", depth)
            role = ".".join(parts[1:])
            if len(parts) == depth + 1 and _BESIDE.fullmatch(role):
                return parts[0], role, f"{parts[0]}.weight"
    if last.endswith("_proj") and "experts." in name:
        return name, "", name
    return name, "?", name


_SCALES = {"weight_scale_inv", "weight_scale", "input_scale"}
_SCALED = {"weight", *_SCALES}
_SAME_SHAPE = ("float8", "bfloat16", "float16", "float32", "int8")


def _with_scales(tensors: Sequence[Tensor], scheme: Scheme | None) -> tuple[Tensor, ...] | None:
    """Add the scales of FP8 and int8 files to their weights, whose shape is the logical one.

    The short way for checkpoints of 90,000 tensors; None where a weight is packed.
    """
    scales: dict[str, int] = {}
    weights = []
    for tensor in tensors:
        name = tensor.name
        if "scale" in name and name.rpartition(".")[2] in _SCALES:
            stem = name.rpartition(".")[0]
            scales[stem] = scales.get(stem, 0) + tensor.bytes
        else:
            weights.append(tensor)
    label = scheme.name if scheme else None
    result = []
    for tensor in weights:
        name = tensor.name
        extra = scales.pop(name[:-7], 0) if name.endswith(".weight") else 0
        if not extra:
            result.append(tensor)
        elif tensor.dtype.startswith(_SAME_SHAPE):
            kind, size = label or tensor.dtype, tensor.bytes + extra
            result.append(Tensor(name=name, shape=tensor.shape, dtype=kind, bytes=size))
        else:
            return None
    return None if scales else tuple(result)


def _packed(group: _Group) -> bool:
    """Say whether a group is a weight with companions (a plain weight stands alone)."""
    return group.primary is not None and (len(group.parts) > 1 or group.primary == "qweight")


def _fold(group: _Group, scheme: Scheme | None) -> Tensor:
    role = group.primary
    assert role is not None
    first = group.parts[role]
    rule = _SHAPES.get(role, _plain) if len(first.shape) >= _AXES.get(role, 1) else _as_stored
    shape = rule(group, first, scheme)
    return Tensor(
        name=group.name,
        shape=shape,
        dtype=scheme.name if scheme else first.dtype,
        bytes=sum(tensor.bytes for tensor in group.parts.values()),
    )


def _bits(scheme: Scheme | None) -> int:
    return max(int(scheme.bits), 1) if scheme else 4


def _as_stored(group: _Group, first: Tensor, scheme: Scheme | None) -> tuple[int, ...]:
    """A shape that no rule expects stays what it is."""
    del group, scheme
    return first.shape


def _qweight(group: _Group, first: Tensor, scheme: Scheme | None) -> tuple[int, ...]:
    """GPTQ packs the input axis, AWQ the output axis; the scales' width tells which."""
    scales = group.find("scales")
    if len(first.shape) != _MATRIX or scales is None or len(scales.shape) != _MATRIX:
        return (first.bytes * 8 // _bits(scheme),)
    if scales.shape[1] != first.shape[1]:
        return (scales.shape[1], first.shape[0])
    index = group.find("g_idx")
    columns = index.shape[0] if index else first.shape[0] * 32 // _bits(scheme)
    return (first.shape[1], columns)


def _weight_packed(group: _Group, first: Tensor, scheme: Scheme | None) -> tuple[int, ...]:
    """compressed-tensors: int32 holds 32 / bits values, uint8 two."""
    del group
    each = 32 // _bits(scheme) if first.dtype == "int32" else 2
    return (*first.shape[:-1], first.shape[-1] * each)


def _trellis(group: _Group, first: Tensor, scheme: Scheme | None) -> tuple[int, ...]:
    """EXL3: tiles of 16 x 16, input axis first."""
    del group, scheme
    return (first.shape[1] * 16, first.shape[0] * 16)


def _blocks(group: _Group, first: Tensor, scheme: Scheme | None) -> tuple[int, ...]:
    """MXFP4 of gpt-oss: (experts, rows, columns / 32, 16 bytes)."""
    del group, scheme
    return (*first.shape[:-2], first.shape[-2] * first.shape[-1] * 2)


def _hqq(group: _Group, first: Tensor, scheme: Scheme | None) -> tuple[int, ...]:
    """HQQ: one row per group; the number of scales is that of groups."""
    scale = group.find("scale")
    if scale is None:
        return (first.bytes * 8 // _bits(scheme),)
    return (math.prod(scale.shape), first.shape[-1])


def _quanto(group: _Group, first: Tensor, scheme: Scheme | None) -> tuple[int, ...]:
    """Quanto below 8 bits: packed down the rows of groups, a scale per group."""
    count = first.bytes * 8 // _bits(scheme)
    scale = group.find("weight._scale")
    groups = math.prod(scale.shape) if scale is not None else 1
    return (groups, count // groups) if groups and count % groups == 0 else (count,)


def _torchao(group: _Group, first: Tensor, scheme: Scheme | None) -> tuple[int, ...]:
    """int8 and e4m3 one byte a value, int4 two values a byte."""
    del group, scheme
    each = 2 if first.dtype == "uint8" else 1
    return (*first.shape[:-1], first.shape[-1] * each)


def _plain(group: _Group, first: Tensor, scheme: Scheme | None) -> tuple[int, ...]:
    """Values under the plain name: bitsandbytes, FP8, NVFP4, MXFP4, BitNet, EETQ."""
    if group.find("weight.absmax"):
        return (2 * first.bytes, 1)
    if group.find("weight_scales") and len(first.shape) == _MATRIX:
        return first.shape[::-1]
    if first.dtype not in ("uint8", "int8") or not first.shape:
        return first.shape
    scale = group.find("weight_scale", "scale", "weight_scale_inv", "scale_inv")
    if first.dtype == "uint8" and _one(scale) and not group.find("weight_scale_2", "scale_2"):
        return (first.shape[0] * 4, *first.shape[1:])
    two = group.find("weight_scale_2", "scale_2") is not None or _halved(first, scale)
    del scheme
    return (*first.shape[:-1], first.shape[-1] * 2) if two else first.shape


def _one(scale: Tensor | None) -> bool:
    return scale is not None and math.prod(scale.shape) == 1


def _halved(first: Tensor, scale: Tensor | None) -> bool:
    """Say whether a scale per 16 or 32 values shows that a byte holds two."""
    if scale is None or len(scale.shape) != len(first.shape) or scale.dtype == "float32":
        return False
    return scale.shape[:-1] == first.shape[:-1] and scale.shape[-1] in (
        first.shape[-1] * 2 // 16,
        first.shape[-1] * 2 // 32,
    )


_SHAPES: Mapping[str, Callable[[_Group, Tensor, Scheme | None], tuple[int, ...]]] = {
    "qweight": _qweight,
    "weight_packed": _weight_packed,
    "trellis": _trellis,
    "blocks": _blocks,
    "W_q": _hqq,
    "weight_qdata": _torchao,
    "_weight_qdata": _torchao,
    "weight._data._data": _quanto,
}
