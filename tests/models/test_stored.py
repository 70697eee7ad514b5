"""memplan.models.stored: checkpoints that say in their config how they are quantized."""

from __future__ import annotations

import json

import pytest

from memplan.errors import BadModelError, UnsupportedModelError
from memplan.models.load import load_model
from memplan.models.stored import stored_scheme

BASE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 512,
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
}
LINEARS = 2 * (4 * 256 * 256 + 3 * 256 * 512)


def scheme(**quantization):
    found = stored_scheme({"quantization_config": quantization})
    return None if found is None else found[0]


def int4(strategy, group):
    weights = {"num_bits": 4, "type": "int", "strategy": strategy, "group_size": group}
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": weights}},
    }


@pytest.mark.parametrize(
    ("quantization", "name"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "fp8"}, "fp8-tensor"),
        ({"quant_method": "fbgemm_fp8"}, "fp8-channel"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq-4bit-g128"),
        ({"quant_method": "gptq", "bits": 3, "group_size": -1}, "gptq-3bit"),
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, "awq-4bit-g64"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
        (
            {
                "quant_method": "bitsandbytes",
                "load_in_4bit": True,
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_use_double_quant": True,
            },
            "nf4-dq",
        ),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        (int4("group", 128), "w4a16-g128"),
        (int4("channel", None), "w4a16"),
    ],
)
def test_the_method_is_read(quantization, name):
    """The names of published configs."""
    assert scheme(**quantization).name == name


def test_a_plain_checkpoint_has_none():
    """No key, or an empty one."""
    assert stored_scheme({}) is None
    assert stored_scheme({"quantization_config": {}}) is None


def test_a_method_without_closed_form_asks_for_the_files():
    """AQLM's codebooks are in the file only."""
    with pytest.raises(UnsupportedModelError, match="only in their files"):
        scheme(quant_method="aqlm")
    with pytest.raises(BadModelError, match="bits"):
        scheme(quant_method="gptq", bits=77)


@pytest.mark.models
def test_a_config_is_planned_in_its_checkpoints_layout(tmp_path):
    """FP8 of all linears but those in the list, whose names may be patterns."""
    skips = ["lm_head", "re:.*layers\\.1\\.mlp\\..*", "model.layers.0.self_attn"]
    quantization = {"quant_method": "fp8", "modules_to_not_convert": skips}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**BASE, "quantization_config": quantization}), encoding="utf-8")
    spec = load_model(str(path), dtype=None, options={})
    packed = [t for t in spec.tensors if t.dtype == "fp8-tensor"]
    assert len(packed) == 3 + 4
    assert not any("layers.1.mlp" in t.name or "layers.0.self_attn" in t.name for t in packed)
    assert spec.parameters == LINEARS + 2 * 512 * 256 + 5 * 256
    assert spec.weight_format == "fp8-tensor"


@pytest.mark.parametrize(
    ("quantization", "name", "family"),
    [
        ({"quant_method": "eetq"}, "eetq", "eetq"),
        ({"quant_method": "bitnet"}, "bitnet", "bitnet"),
        ({"quant_method": "quanto", "weights": "int4"}, "quanto-int4", "quanto"),
        (
            {
                "quant_method": "hqq",
                "quant_config": {"weight_quant_params": {"nbits": 3, "group_size": 64}},
            },
            "hqq-3bit-g64",
            "hqq",
        ),
        (
            {"quant_method": "torchao", "quant_type": "int8_weight_only"},
            "torchao-int8",
            "torchao-int8",
        ),
        (
            {
                "quant_method": "torchao",
                "quant_type": {
                    "default": {"_type": "Int4WeightOnlyConfig", "_data": {"group_size": 32}}
                },
            },
            "torchao-int4-g32",
            "torchao-int4",
        ),
        (
            {"quant_algo": "FP8", "producer": {"name": "modelopt"}, "ignore": ["lm_head"]},
            "fp8-tensor",
            "fp8-tensor",
        ),
        ({"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"}, "fp8", "fp8"),
    ],
)
def test_more_methods_are_read(quantization, name, family):
    """Those whose layout follows from their config."""
    found = scheme(**quantization)
    assert (found.name, found.family) == (name, family)


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "hqq"},
        {"quant_method": "torchao", "quant_type": "uintx"},
        {"quant_method": "quanto", "weights": "float8"},
        {"quant_method": "vptq"},
    ],
)
def test_what_a_config_does_not_tell_needs_the_files(quantization):
    """The hint says which."""
    with pytest.raises(UnsupportedModelError):
        scheme(**quantization)


def test_lists_are_those_of_each_method():
    """GPTQ adds lm_head, compressed-tensors lists all, the others replace the default."""

    def skips(**quantization):
        return stored_scheme({"quantization_config": quantization})[1]

    assert skips(quant_method="gptq") == ("lm_head",)
    assert skips(quant_method="gptq", lm_head=True) == ()
    assert skips(quant_method="fp8") is None
    assert skips(quant_method="fp8", modules_to_not_convert=["gate"]) == ("gate",)
    assert skips(**int4("group", 32)) == ()
    assert skips(**int4("group", 32), ignore=["re:.*self_attn.*"]) == ("re:.*self_attn.*",)


def test_a_composite_keeps_its_section_with_the_text_model():
    """As Kimi-K2.5 does."""
    found = stored_scheme({"text_config": {"quantization_config": int4("group", 32)}})
    assert found is not None
    assert found[0].name == "w4a16-g32"


def test_floats_of_compressed_tensors():
    """Scales have the dtype of the weight; four bits are NVFP4 or MXFP4 by their group."""

    def weights(**fields):
        groups = {"g": {"targets": ["Linear"], "weights": {"type": "float", **fields}}}
        return scheme(quant_method="compressed-tensors", config_groups=groups)

    channel = weights(num_bits=8, strategy="channel")
    assert (channel.family, channel.scale_bytes) == ("fp8-channel", 2)
    assert weights(num_bits=8, strategy="tensor").family == "fp8-tensor"
    assert weights(num_bits=8, strategy="block", block_structure=[64, 64]).group == 64
    assert weights(num_bits=4, group_size=16).family == "nvfp4"
    assert weights(num_bits=4, group_size=32).family == "mx-packed"
    with pytest.raises(BadModelError, match="bits"):
        weights(num_bits=99)


def test_mixed_checkpoints_have_parts():
    """Each layer is named with its algorithm; what is not named stays."""
    found = scheme(
        quant_method="modelopt",
        quant_algo="MIXED_PRECISION",
        quantized_layers={
            "model.layers.0.self_attn.q_proj": {"quant_algo": "FP8"},
            "model.layers.0.mlp.experts": {"quant_algo": "W4A16_NVFP4", "group_size": 16},
        },
    )
    assert found.name == "mixed"
    assert not found.default
    assert [part.family for _, part in found.parts] == ["fp8-tensor", "nvfp4"]
    assert [part.static for _, part in found.parts] == [True, False]


def test_deepseek_v4_keeps_its_experts_in_four_bits():
    """The config's expert_dtype, and scales of one byte."""
    found = stored_scheme(
        {
            "expert_dtype": "fp4",
            "quantization_config": {
                "quant_method": "fp8",
                "weight_block_size": [128, 128],
                "scale_fmt": "ue8m0",
            },
        }
    )
    assert found is not None
    assert found[0].scale_bytes == 1
    assert [part.name for _, part in found[0].parts] == ["mxfp4"]


@pytest.mark.models
def test_parts_are_planned_layer_by_layer(tmp_path):
    """FP8 attention, NVFP4 elsewhere in the list, the rest in bfloat16."""
    layers = {
        "model.layers.0.self_attn.q_proj": {"quant_algo": "FP8"},
        "model.layers.1.mlp.up_proj": {"quant_algo": "NVFP4"},
    }
    quantization = {"quant_method": "modelopt", "quantized_layers": layers}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**BASE, "quantization_config": quantization}), encoding="utf-8")
    spec = load_model(str(path), dtype=None, options={})
    sizes = {t.name: t.bytes for t in spec.tensors if t.dtype not in ("bfloat16", "float32")}
    assert sizes == {
        "model.layers.0.self_attn.q_proj.weight": 256 * 256 + 8,
        "model.layers.1.mlp.up_proj.weight": 512 * 256 // 2 + 512 * 256 // 16 + 8,
    }
    assert spec.weight_format == "mixed"
