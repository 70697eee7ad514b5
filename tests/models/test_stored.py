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
