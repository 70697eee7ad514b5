"""memplan.models.quantize against models that bitsandbytes really quantized."""

from __future__ import annotations

import pytest

from memplan.errors import UnsupportedModelError, UsageError
from memplan.formats.quantized import bytes_of, parse_scheme
from memplan.models.load import load_model
from memplan.types import ModelSpec, Tensor

LLAMA = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "tie_word_embeddings": False,
    "max_position_embeddings": 128,
}
MODELS = {
    "llama": LLAMA,
    "qwen2": {**LLAMA, "model_type": "qwen2"},
    "tied gemma2": {**LLAMA, "model_type": "gemma2", "head_dim": 32, "tie_word_embeddings": True},
    "gpt2": {"model_type": "gpt2", "n_embd": 128, "n_layer": 2, "n_head": 4, "vocab_size": 512},
    "mixtral": {**LLAMA, "model_type": "mixtral", "num_local_experts": 4},
    "qwen3_moe": {
        **LLAMA,
        "model_type": "qwen3_moe",
        "head_dim": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
    },
}


def save(folder, config):
    import torch
    import transformers

    built = transformers.AutoConfig.for_model(**config)
    model = transformers.AutoModelForCausalLM.from_config(built, dtype=torch.bfloat16)
    model.save_pretrained(folder)


def stored_bytes(model):
    """Return every byte of the parameters and of what bitsandbytes keeps beside them."""
    total, seen = 0, set()
    for parameter in model.parameters():
        tensors = [parameter.data]
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            tensors += [state.absmax, state.code]
            if state.nested:
                tensors += [state.state2.absmax, state.state2.code, state.offset]
        scales = getattr(parameter, "SCB", None)
        tensors += [scales] if scales is not None else []
        for tensor in tensors:
            if tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                total += tensor.numel() * tensor.element_size()
    return total


@pytest.mark.models
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quant", ["int8", "nf4", "nf4-dq", "fp4"])
@pytest.mark.parametrize("name", MODELS)
def test_planned_bytes_are_those_of_a_really_quantized_model(name, quant, tmp_path):
    """Dense and MoE, tied and not: to the byte. Fused experts stay in bfloat16."""
    pytest.importorskip("bitsandbytes")
    import torch
    import transformers

    save(tmp_path, MODELS[name])
    config = transformers.BitsAndBytesConfig(
        load_in_8bit=quant == "int8",
        load_in_4bit=quant != "int8",
        bnb_4bit_quant_type="fp4" if quant == "fp4" else "nf4",
        bnb_4bit_use_double_quant=quant.endswith("-dq"),
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=config, dtype=torch.bfloat16, device_map="cpu"
    )
    spec = load_model(str(tmp_path / "config.json"), dtype="bfloat16", options={"quant": quant})
    assert spec.weight_bytes == stored_bytes(model)


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("int8", 8.00781),
        ("nf4", 4.50003),
        ("nf4-dq", 4.12747),
        ("gptq-4bit-g32", 4.6328),
        ("gptq-4bit-g64", 4.3203),
        ("gptq-4bit-g128", 4.1641),
        ("gptq-4bit", 4.0127),
        ("awq-4bit-g128", 4.15625),
        ("fp8-tensor", 8.0000),
        ("fp8-channel", 8.0078),
        ("fp8", 8.00195),
        ("mxfp4", 4.25),
        ("nvfp4", 4.50000),
        ("hqq-4bit-g64", 4.5),
        ("torchao-int8", 8.00977),
        ("torchao-float8", 8.00781),
        ("torchao-int4-g128", 4.25),
        ("w4a16-g128", 4.12501),
        ("w8a16", 8.00391),
        ("bitnet", 2.0),
        ("exl3-4bpw", 4.0078),
    ],
)
def test_bits_of_a_square_linear_are_those_measured(name, bits):
    """4096 x 4096, from real tensors and published layouts."""
    size = bytes_of(parse_scheme(name), (4096, 4096))
    assert 8 * size / 4096**2 == pytest.approx(bits, abs=0.0006)


def test_an_unknown_quantization_is_refused():
    """With the families in the hint."""
    with pytest.raises(UsageError, match="magic-3bit") as caught:
        parse_scheme("magic-3bit")
    assert "nf4" in caught.value.hint


def test_a_model_without_linears_is_refused():
    """Better than a plan that says 4-bit and divides nothing."""
    from memplan.models.quantize import quantize

    only = Tensor(name="embed_tokens.weight", shape=(8, 8), dtype="bfloat16", bytes=128)
    spec = ModelSpec(
        name="x",
        architecture=None,
        model_type=None,
        source="config",
        path=None,
        tensors=(only,),
        layers=(),
        dtype="bfloat16",
        weight_format="bfloat16",
    )
    with pytest.raises(UnsupportedModelError, match="no module"):
        quantize(spec, None, parse_scheme("nf4"))


def test_a_file_name_pattern_means_no_more_than_it_says():
    """Modelopt writes "model.layers.0*"; as an expression that would be every layer."""
    from memplan.models.skips import ModuleNames

    names = ModuleNames(["model.layers.0*", "model.layers.1.*", "model.layers.7.mlp.shared*"])
    assert names.hold("model.layers.0.mlp.gate_proj.weight")
    assert names.hold("model.layers.1.mlp.gate_proj.weight")
    assert names.hold("model.layers.7.mlp.shared_experts.up_proj.weight")
    assert not names.hold("model.layers.17.mlp.gate_proj.weight")
    assert not names.hold("model.layers.12.mlp.gate_proj.weight")
    assert not names.hold("model.layers.7.mlp.experts.up_proj.weight")
