"""What a config.json says about how its checkpoint is already quantized.

Keys: transformers 5.23 utils/quantization_config.py, compressed-tensors 0.20, modelopt's
hf_quant_config, and published config.json files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from memplan.errors import BadModelError, UnsupportedModelError
from memplan.formats.quantized import Scheme, parse_scheme
from memplan.models.numbers import number

__all__ = ["stored_scheme"]

_SKIP_KEYS = ("modules_to_not_convert", "ignore", "exclude_modules", "llm_int8_skip_modules")
_BYTE = 8


def stored_scheme(config: Mapping[str, Any]) -> tuple[Scheme, tuple[str, ...]] | None:
    """Return the scheme of a checkpoint and the modules it leaves alone; None for a plain one.

    Module names may be prefixes, globs, or regular expressions after "re:".
    Raises UnsupportedModelError for a method whose sizes follow from its files only, and
    BadModelError for numbers that make no sense.
    """
    quantization = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(quantization, Mapping) or not quantization:
        return None
    method = str(quantization.get("quant_method") or "").lower().replace("_", "-")
    rule = _RULES.get(method)
    if rule is None:
        raise UnsupportedModelError(
            f"the sizes of {method or 'this'} checkpoints are only in their files",
            hint="name a folder with the safetensors files (headers suffice)",
        )
    scheme = rule(quantization)
    return None if scheme is None else (scheme, _skips(quantization))


def _skips(quantization: Mapping[str, Any]) -> tuple[str, ...]:
    names = ["lm_head"] if not quantization.get("lm_head") else []
    for key in _SKIP_KEYS:
        value = quantization.get(key)
        if isinstance(value, list):
            names += [item for item in value if isinstance(item, str)]
    return tuple(names)


def _fp8(quantization: Mapping[str, Any]) -> Scheme:
    block = quantization.get("weight_block_size")
    if isinstance(block, list) and block and isinstance(block[0], int) and block[0] > 0:
        scale = 1 if quantization.get("scale_fmt") == "ue8m0" else 4
        return replace(parse_scheme("fp8"), group=block[0], scale_bytes=scale)
    return parse_scheme("fp8-tensor")


def _fbgemm(quantization: Mapping[str, Any]) -> Scheme:
    del quantization
    return parse_scheme("fp8-channel")


def _integer(family: str, quantization: Mapping[str, Any]) -> Scheme:
    bits = number(quantization, "bits", "w_bit", default=4)
    group = quantization.get("group_size", quantization.get("q_group_size", 128))
    if bits not in (2, 3, 4, 8) or not isinstance(group, int) or not -1 <= group < 2**20:
        raise BadModelError(f"config.json: {family} of {bits!r} bits, group {group!r}")
    suffix = f"-g{group}" if group > 0 else ""
    return Scheme(
        name=f"{family}-{bits}bit{suffix}",
        family=family,
        bits=bits,
        group=max(group, 0),
        symmetric=False,
    )


def _gptq(quantization: Mapping[str, Any]) -> Scheme:
    return _integer("gptq", quantization)


def _awq(quantization: Mapping[str, Any]) -> Scheme:
    return _integer("awq", quantization)


def _bitsandbytes(quantization: Mapping[str, Any]) -> Scheme:
    if quantization.get("load_in_8bit") or quantization.get("_load_in_8bit"):
        return parse_scheme("int8")
    kind = "nf4" if quantization.get("bnb_4bit_quant_type") == "nf4" else "fp4"
    double = "-dq" if quantization.get("bnb_4bit_use_double_quant") else ""
    return parse_scheme(kind + double)


def _mxfp4(quantization: Mapping[str, Any]) -> Scheme:
    del quantization
    return parse_scheme("mxfp4")


def _modelopt(quantization: Mapping[str, Any]) -> Scheme | None:
    algorithm = str(quantization.get("quant_algo") or "").upper()
    if "NVFP4" in algorithm:
        return parse_scheme("nvfp4")
    if "FP8" in algorithm:
        return parse_scheme("fp8-tensor")
    return _compressed(quantization)


def _compressed(quantization: Mapping[str, Any]) -> Scheme | None:
    """Take the first group's weights; groups of one checkpoint differ in targets, not in bits."""
    groups = quantization.get("config_groups")
    group = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        return None
    bits = number(weights, "num_bits", default=8)
    strategy = str(weights.get("strategy") or "")
    size = weights.get("group_size")
    size = size if isinstance(size, int) and size > 0 else 0
    if weights.get("type") == "float":
        if bits < _BYTE:
            return parse_scheme("nvfp4" if size == 16 else "mxfp4")
        if strategy == "block":
            return replace(parse_scheme("fp8"), scale_bytes=2)
        return parse_scheme("fp8-tensor" if strategy == "tensor" else "fp8-channel")
    return Scheme(
        name=f"w{bits}a16-g{size}" if size else f"w{bits}a16",
        family="packed",
        bits=bits,
        group=size,
        symmetric=bool(weights.get("symmetric", True)),
    )


_RULES = {
    "fp8": _fp8,
    "fbgemm-fp8": _fbgemm,
    "gptq": _gptq,
    "awq": _awq,
    "bitsandbytes": _bitsandbytes,
    "mxfp4": _mxfp4,
    "modelopt": _modelopt,
    "modelopt-fp4": _modelopt,
    "compressed-tensors": _compressed,
}
