"""What llama.cpp's quantization mixes give each tensor: "q4_k_m" is not one type.

Source: llama-quant.cpp of llama.cpp 0c1e570, without an importance matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

from memplan.formats.ggml import BY_NAME, GgmlType

__all__ = ["MIXES", "MixContext", "mix_type"]

MIXES: dict[str, str] = {
    "f32": "f32",
    "f16": "f16",
    "bf16": "bf16",
    "q1_0": "q1_0",
    "q2_0": "q2_0",
    "q4_0": "q4_0",
    "q4_1": "q4_1",
    "q5_0": "q5_0",
    "q5_1": "q5_1",
    "q8_0": "q8_0",
    "q2_k": "q2_k",
    "q2_k_s": "q2_k",
    "q3_k_s": "q3_k",
    "q3_k_m": "q3_k",
    "q3_k_l": "q3_k",
    "q4_k_s": "q4_k",
    "q4_k_m": "q4_k",
    "q5_k_s": "q5_k",
    "q5_k_m": "q5_k",
    "q6_k": "q6_k",
    "iq1_s": "iq1_s",
    "iq1_m": "iq1_m",
    "iq2_xxs": "iq2_xxs",
    "iq2_xs": "iq2_xs",
    "iq2_s": "iq2_xs",
    "iq2_m": "iq2_s",
    "iq3_xxs": "iq3_xxs",
    "iq3_xs": "iq3_s",
    "iq3_s": "iq3_s",
    "iq3_m": "iq3_s",
    "iq4_nl": "iq4_nl",
    "iq4_xs": "iq4_xs",
    "tq1_0": "tq1_0",
    "tq2_0": "tq2_0",
    "mxfp4_moe": "mxfp4",
}
"""Mix -> its base type."""

_FLOATS = ("f32", "f16", "bf16")
_TINY = ("iq2_xxs", "iq2_xs", "iq1_s", "iq2_s", "iq2_m", "iq1_m")
_MIDDLE = ("iq2_s", "iq2_m")
_OUTPUT_Q5 = ("iq2_xxs", "iq2_xs", "iq3_xxs", "iq1_s", "iq2_s", "iq2_m", "iq1_m")
_OUT_Q5_8_EXPERTS = (
    *("q2_k", "iq3_xs", "iq3_xxs", "q3_k_s", "q3_k_m", "iq4_nl", "q4_k_s", "q4_k_m"),
    *("iq3_s", "iq3_m", "iq4_xs"),
)
_GROUPED = 4
"""Query heads per key head from which the value matrix gets more bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixContext:
    """What the choice of a type depends on beside the tensor's role."""

    layer: int
    """Index of the decoder layer."""
    layers: int
    """Decoder layers."""
    groups: int
    """Query heads per key head."""
    experts: int
    """Routed experts, 0 for a dense model."""
    tied: bool
    """The output matrix is the embedding."""
    falcon: bool = False
    """Falcon keeps its own choices."""
    big: bool = False
    """A Llama of 80 layers ("70B")."""


def mix_type(mix: str, role: str, row: int, context: MixContext) -> GgmlType:
    """Return the type of one tensor.

    Args:
        mix: one of MIXES.
        role: "output", "embedding", "q", "k", "v" (also fused qkv and MLA's kv_b), "attn_out",
            "up", "gate", "down", "expert_*" for routed ones, "other".
        row: elements of one row (the input dimension).
        context: the rest.
    """
    if mix in _FLOATS:
        return BY_NAME[mix]
    name = _wanted(mix, role.removeprefix("expert_"), role.startswith("expert_"), row, context)
    return _fitting(BY_NAME[name], row)


def _wanted(mix: str, role: str, routed: bool, row: int, context: MixContext) -> str:  # noqa: FBT001
    base = MIXES[mix]
    if role == "output" or (role == "embedding" and context.tied):
        return _output(mix, base, row, context)
    if mix == "mxfp4_moe":
        return "mxfp4" if routed else "q8_0"
    if role == "embedding":
        return _embedding(mix, base)
    if mix in _TINY:
        return _tiny(mix, base, role, context)
    rules = {"v": _value, "k": _key, "q": _query, "down": _down, "attn_out": _attention_output}
    if role in rules:
        return rules[role](mix, base, context)
    inner = context.layers // 8 <= context.layer < 7 * context.layers // 8
    if role in ("up", "gate") and mix == "iq3_xs" and inner:
        return "iq3_xxs"
    return base


def _more_bits(context: MixContext) -> bool:
    """First eighth, last eighth, every third between."""
    layer, count = context.layer, context.layers
    return layer < count // 8 or layer >= 7 * count // 8 or (layer - count // 8) % 3 == 2


def _output(mix: str, base: str, row: int, context: MixContext) -> str:
    if mix == "mxfp4_moe" or context.falcon or row % BY_NAME[base].block:
        return "q8_0"
    if mix in _OUTPUT_Q5:
        return "q5_k"
    return base if base == "q8_0" else "q6_k"


def _embedding(mix: str, base: str) -> str:
    if mix in ("iq2_xxs", "iq2_xs", "iq1_s", "iq1_m"):
        return "q2_k"
    if mix in ("iq2_s", "iq2_m", "iq3_xxs"):
        return "iq3_s"
    return "q4_k" if mix in ("tq1_0", "tq2_0", "q2_0") else base


def _tiny(mix: str, base: str, role: str, context: MixContext) -> str:
    middle = mix in _MIDDLE
    if role == "v":
        if context.groups >= _GROUPED or context.experts >= _GROUPED:
            return "q4_k"
        return "iq3_s" if middle else "q2_k"
    eight = context.experts == 8
    if role == "k" and eight:
        return "q4_k"
    if role == "down" and context.layer < context.layers // 8:
        return "iq3_s" if middle else "q2_k"
    if role == "attn_out":
        if eight:
            return "q5_k"
        return "iq2_xxs" if mix in ("iq1_s", "iq1_m") else "iq3_s" if middle else base
    return base


def _value(mix: str, base: str, context: MixContext) -> str:
    grouped = context.groups >= _GROUPED
    choices = {
        "q2_k": "q4_k" if grouped else "q3_k",
        "q2_k_s": "q4_k" if grouped else base,
        "iq3_xxs": "q4_k" if grouped else "iq3_s",
        "iq3_xs": "q4_k" if grouped else base,
        "iq3_s": "q4_k" if grouped else base,
        "iq3_m": "q4_k",
        "q3_k_m": "q5_k" if context.layer < 2 else "q4_k",
        "q3_k_l": "q5_k",
        "iq4_nl": "q5_k" if grouped else base,
        "iq4_xs": "q5_k" if grouped else base,
        "q4_k_m": "q6_k" if _more_bits(context) else base,
        "q5_k_m": "q6_k" if _more_bits(context) else base,
        "q4_k_s": "q5_k" if context.layer < 4 else base,
    }
    name = choices.get(mix, base)
    if context.big and name in ("q3_k", "q4_k"):
        name = "q5_k"
    return "q8_0" if context.experts == 8 else name


def _key(mix: str, base: str, context: MixContext) -> str:
    if context.experts == 8:
        return "q8_0"
    return {"iq3_xs": "iq3_xxs", "iq3_xxs": "iq2_s"}.get(mix, base)


def _query(mix: str, base: str, context: MixContext) -> str:
    del context
    return {"iq3_xs": "iq3_xxs", "iq3_xxs": "iq2_s"}.get(mix, base)


def _down(mix: str, base: str, context: MixContext) -> str:
    layer, count = context.layer, context.layers
    first = layer < count // 8
    more = _more_bits(context)
    if mix == "q4_k_m" and context.falcon:
        return "q6_k" if layer < count // 16 else "q5_k" if more else "q4_k"
    middle = "q4_k" if not context.falcon or more else "q3_k"
    eight = context.experts == 8
    choices = {
        "q2_k": "q3_k",
        "q2_k_s": "q4_k" if first else base,
        "iq3_xxs": "q4_k" if first else "q3_k",
        "q3_k_m": "q5_k" if layer < count // 16 else middle,
        "iq3_m": "q4_k" if first or (eight and more) else base,
        "q3_k_l": "q4_k" if context.falcon else "q5_k",
        "q4_k_m": "q6_k" if more else base,
        "iq4_nl": "q5_k" if first else base,
        "iq4_xs": "q5_k" if first else base,
        "q5_k_m": "q6_k" if more else base,
        "q4_k_s": "q5_k" if first and not context.falcon else base,
    }
    return choices.get(mix, base)


def _attention_output(mix: str, base: str, context: MixContext) -> str:
    if context.falcon:
        return "q4_k" if mix == "q3_k_l" else base
    if context.experts == 8:
        return "q5_k" if mix in _OUT_Q5_8_EXPERTS else base
    choices = {
        "q2_k": "q3_k",
        "iq3_xxs": "iq3_s",
        "q3_k_m": "q4_k",
        "q3_k_l": "q5_k",
        "iq3_m": "q4_k",
    }
    return choices.get(mix, base)


_FALLBACK = {
    **dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s"), "iq4_nl"),
    **dict.fromkeys(("iq3_xxs", "iq3_s", "iq4_xs"), "iq4_nl"),
    **dict.fromkeys(("q1_0", "q2_0", "q2_k", "q3_k", "tq1_0", "tq2_0"), "q4_0"),
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
}
"""What takes the place of a type whose block does not divide the row."""


def _fitting(kind: GgmlType, row: int) -> GgmlType:
    if row % kind.block == 0:
        return kind
    other = BY_NAME[_FALLBACK.get(kind.name, "f16")]
    return other if row % other.block == 0 else BY_NAME["f16"]
