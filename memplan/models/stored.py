"""What a config.json says about how its checkpoint is already quantized.

Keys: transformers 5.23 utils/quantization_config.py, compressed-tensors 0.20, modelopt's
hf_quant_config, and published config.json files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from memplan.errors import BadModelError, UnsupportedModelError
from memplan.formats.quantized import Scheme, parse_scheme
from memplan.models.numbers import number, text_config, words
from memplan.models.stored_groups import compressed, modelopt

__all__ = ["stored_scheme"]

_SKIP_KEYS = (
    "modules_to_not_convert",
    "ignore",
    "exclude_modules",
    "llm_int8_skip_modules",
    "skip_modules",
)
_DEFAULT_LIST = ("gptq", "awq")
"""Methods whose list adds to the default one instead of replacing it."""

_EXPERTS = r"re:.*\.experts(\.|$)"
_MAX_GROUP = 2**20


def stored_scheme(
    config: Mapping[str, Any],
) -> tuple[Scheme, tuple[str, ...] | None] | None:
    """Return the scheme of a checkpoint and the modules it leaves alone; None for a plain one.

    Modules are named in the notations of `memplan.models.skips`; None instead of a list means
    that the default of transformers holds. Groups of layers in other schemes are in `parts`.
    Raises UnsupportedModelError for a method whose sizes follow from its files only, and
    BadModelError for numbers that make no sense.
    """
    found = _section(config)
    if found is None:
        return None
    method = str(found.get("quant_method") or "").lower().replace("_", "-")
    if not method and ("quant_algo" in found or "config_groups" in found):
        method = "modelopt"
    rule = _RULES.get(method)
    if rule is None:
        raise UnsupportedModelError(
            f"the sizes of {method or 'this'} checkpoints are only in their files",
            hint="name a folder with the safetensors files (headers suffice)",
        )
    scheme = rule({**found, "expert_dtype": found.get("expert_dtype", config.get("expert_dtype"))})
    return None if scheme is None else (scheme, _skips(found, method))


def _section(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the part about quantization, which composites may keep with their text model."""
    for part in (config, text_config(config)):
        for key in ("quantization_config", "compression_config"):
            value = part.get(key)
            if isinstance(value, Mapping) and value:
                return value
    return None


def _skips(found: Mapping[str, Any], method: str) -> tuple[str, ...] | None:
    if method == "fp8" and found.get("quantized_layers"):
        return None  # the list is that of the second format, not of FP8
    names = tuple(name for key in _SKIP_KEYS for name in words(found, key) or ())
    if method in _DEFAULT_LIST:
        return names if found.get("lm_head") else ("lm_head", *names)
    if method in _CLOSED_LIST:
        return names
    return names or None


_CLOSED_LIST = ("compressed-tensors", "modelopt", "modelopt-fp4")
"""Methods whose list is complete, also when it is empty."""


def _fp8(found: Mapping[str, Any]) -> Scheme | None:
    """Fine-grained FP8; DeepSeek-V4 keeps its experts in FP4, modelopt names layers in NVFP4."""
    block = found.get("weight_block_size")
    if block is not None and not _is_block(block):
        raise BadModelError(
            f"config.json: weight_block_size is {block!r}, not two numbers of 1 or more",
            hint="check the config file",
        )
    static = found.get("activation_scheme") == "static"
    scheme = replace(parse_scheme("fp8-tensor"), static=static)
    if block is not None:
        scale = 1 if found.get("scale_fmt") == "ue8m0" else 4
        scheme = replace(parse_scheme("fp8"), group=block[0], scale_bytes=scale, static=static)
    if found.get("quantized_layers"):
        mixed = modelopt(found)
        return None if mixed is None else replace(scheme, parts=mixed.parts)
    if found.get("expert_dtype") == "fp4":
        return replace(scheme, parts=((_EXPERTS, _mx("mxfp4")),))
    return scheme


def _is_block(block: Any) -> bool:
    if not isinstance(block, list) or len(block) != 2:
        return False
    return all(isinstance(side, int) and 0 < side < _MAX_GROUP for side in block)


def _mx(name: str) -> Scheme:
    return Scheme(name=name, family="mx-packed", bits=4, group=32, scale_bytes=1)


def _integer(family: str, found: Mapping[str, Any]) -> Scheme:
    bits = number(found, "bits", "w_bit", default=4)
    group = found.get("group_size", found.get("q_group_size", 128))
    valid = isinstance(group, int) and -1 <= group < _MAX_GROUP and group != 0
    if bits not in (2, 3, 4, 8) or not valid:
        raise BadModelError(
            f"config.json: {family} of {bits!r} bits, group {group!r}",
            hint="check the config file",
        )
    suffix = f"-g{group}" if group > 0 else ""
    name = f"{family}-{bits}bit{suffix}"
    return Scheme(name=name, family=family, bits=bits, group=max(group, 0), symmetric=False)


def _bitsandbytes(found: Mapping[str, Any]) -> Scheme:
    if found.get("load_in_8bit") or found.get("_load_in_8bit"):
        return parse_scheme("int8")
    kind = "nf4" if found.get("bnb_4bit_quant_type") == "nf4" else "fp4"
    double = "-dq" if found.get("bnb_4bit_use_double_quant") else ""
    return parse_scheme(kind + double)


def _hqq(found: Mapping[str, Any]) -> Scheme:
    inner = found.get("quant_config")
    numbers = inner.get("weight_quant_params") if isinstance(inner, Mapping) else None
    if not isinstance(numbers, Mapping) or "nbits" not in numbers:
        raise UnsupportedModelError(
            "the config does not say the bits of its HQQ layers",
            hint="name a folder with the safetensors files (headers suffice)",
        )
    bits = number(numbers, "nbits")
    group = number(numbers, "group_size", default=0)
    if bits not in (1, 2, 3, 4, 8) or group >= _MAX_GROUP:
        raise BadModelError(
            f"config.json: HQQ of {bits} bits, group {group}", hint="check the config file"
        )
    return Scheme(name=f"hqq-{bits}bit-g{group}", family="hqq", bits=bits, group=group)


def _torchao(found: Mapping[str, Any]) -> Scheme:
    """Read the type's name out of its text or its nested JSON."""
    text = re.sub(r"[^a-z0-9]", "", repr(found.get("quant_type")).lower())
    if "int8weightonly" in text or "int8dynamicactivationint8weight" in text:
        return parse_scheme("torchao-int8")
    if "float8weightonly" in text or "float8dynamicactivationfloat8weight" in text:
        return parse_scheme("torchao-float8")
    if "int4weightonly" in text:
        size = re.search(r"groupsize(\d{1,4})", text + repr(found.get("quant_type_kwargs")))
        group = int(size[1]) if size and int(size[1]) > 0 else 128
        return Scheme(name=f"torchao-int4-g{group}", family="torchao-int4", bits=4, group=group)
    raise UnsupportedModelError(
        "the sizes of this torchao type are only in its files",
        hint="name a folder with the safetensors files (headers suffice)",
    )


def _quanto(found: Mapping[str, Any]) -> Scheme:
    weights = str(found.get("weights"))
    if weights not in ("int8", "int4", "int2"):
        raise UnsupportedModelError(
            f"quanto weights {weights[:20]!r} have no known layout", hint="use int8, int4 or int2"
        )
    return parse_scheme(f"quanto-{weights}")


def _named(name: str) -> Callable[[Mapping[str, Any]], Scheme | None]:
    return lambda _: parse_scheme(name)


_RULES: dict[str, Callable[[Mapping[str, Any]], Scheme | None]] = {
    "fp8": _fp8,
    "fbgemm-fp8": _named("fp8-channel"),
    "gptq": lambda found: _integer("gptq", found),
    "awq": lambda found: _integer("awq", found),
    "bitsandbytes": _bitsandbytes,
    "mxfp4": _named("mxfp4"),
    "modelopt": modelopt,
    "modelopt-fp4": modelopt,
    "compressed-tensors": compressed,
    "hqq": _hqq,
    "torchao": _torchao,
    "quanto": _quanto,
    "eetq": _named("eetq"),
    "bitnet": _named("bitnet"),
}
