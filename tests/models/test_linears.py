"""memplan.models.linears and skips: names and shapes tell what transformers' own classes are."""

from __future__ import annotations

import pytest

from memplan.formats.quantized import parse_scheme
from memplan.models.linears import is_router, linear_kind, module_of
from memplan.models.meta import module_tensors
from memplan.models.quantize import quantize
from memplan.models.skips import ModuleNames, default_skips
from memplan.types import ModelSpec, Tensor

TYPES = [
    *("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "phi3", "phi", "gpt2"),
    *("gpt_neox", "opt", "falcon", "bloom", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3"),
    *("gpt_oss", "olmo2", "glm4", "granite", "starcoder2", "mamba", "jamba", "qwen3_next", "lfm2"),
    *("afmoe", "deepseek_v4", "llama4_text", "phimoe", "longcat_flash", "jetmoe", "zamba2"),
    *("granitemoe", "nemotron_h", "bitnet", "gpt_bigcode", "codegen", "mpt", "stablelm"),
]


def spec_of(model, model_type):
    config = model.config.get_text_config(decoder=True)
    return ModelSpec(
        name=model_type,
        architecture=type(model).__name__,
        model_type=model_type,
        source="config",
        path=None,
        tensors=module_tensors(model),
        layers=(),
        dtype="bfloat16",
        weight_format="bfloat16",
        hidden=getattr(config, "hidden_size", 0),
    )


def eligible_for_bitsandbytes(model):
    """Return the weights that replace_with_bnb_linear takes, by its own three conditions."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    skip = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if (type(module) is nn.Linear or isinstance(module, Conv1D))
        and should_convert_module(name, skip)
    }


@pytest.mark.models
@pytest.mark.parametrize("model_type", TYPES)
def test_what_bitsandbytes_takes_is_told_by_names(model_type):
    """Routers, embeddings, convolutions and subclasses of nn.Linear stay; all else goes."""
    import oracle

    model = oracle.build(oracle.default_config(model_type))
    spec = spec_of(model, model_type)
    wanted = eligible_for_bitsandbytes(model)
    if not wanted:
        pytest.skip("it has no nn.Linear of its own (FalconLinear is a subclass)")
    packed = quantize(spec, None, parse_scheme("nf4"))
    tied = {t.name for t in spec.tensors if t.tied_to}
    assert {t.name for t in packed.tensors if t.dtype == "nf4"} == wanted - tied
    assert packed.parameters == spec.parameters


@pytest.mark.models
@pytest.mark.sweep
def test_classes_of_every_causal_model_are_told_by_names():
    """nn.Linear, Conv1D and subclasses, of every type that builds."""
    import oracle
    from torch import nn
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from transformers.pytorch_utils import Conv1D

    seen = 0
    for model_type in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        try:
            model = oracle.build(oracle.default_config(model_type))
        except Exception:  # noqa: BLE001 (test_sweep.py lists those that do not build)
            continue
        seen += 1
        classes = {}
        for name, module in model.named_modules():
            if isinstance(module, Conv1D):
                classes[f"{name}.weight"] = {"conv1d"}
            elif isinstance(module, nn.Linear):
                exact = type(module) is nn.Linear
                classes[f"{name}.weight"] = {"linear"} if exact else {"subclass", "grouped"}
        for tensor in module_tensors(model):
            if tensor.kind == "parameter":
                want = classes.get(tensor.name, {"none", "experts"})
                assert linear_kind(tensor, model_type) in want, (model_type, tensor.name)
    assert seen > 150


@pytest.mark.models
@pytest.mark.parametrize("model_type", ["qwen3_moe", "deepseek_v3", "llama4_text", "mixtral"])
def test_fine_grained_fp8_takes_fused_experts(model_type):
    """Every byte of what transformers' own FP8 modules hold, on the meta device."""
    import oracle
    import torch
    import transformers
    from transformers.integrations.finegrained_fp8 import replace_with_fp8_linear
    from transformers.quantizers.base import HfQuantizer

    config = oracle.default_config(model_type)
    model = oracle.build(config)
    spec = spec_of(model, model_type)
    skip = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    settings = transformers.FineGrainedFP8Config()
    replace_with_fp8_linear(model, modules_to_not_convert=skip, quantization_config=settings)
    expected = sum(
        p.numel() * (2 if p.dtype == torch.float32 and "scale" not in name else p.element_size())
        for name, p in model.named_parameters()
    )
    packed = quantize(spec, None, parse_scheme("fp8"))
    assert packed.weight_bytes == expected
    assert packed.parameters == spec.parameters


def tensor(name, *shape, **more):
    count = 2
    for size in shape:
        count *= size
    return Tensor(name=name, shape=shape, dtype="bfloat16", bytes=count, **more)


def small_spec(*tensors, **changes):
    fields = {
        "name": "x",
        "architecture": None,
        "model_type": None,
        "source": "config",
        "path": None,
        "tensors": tensors,
        "layers": (),
        "dtype": "bfloat16",
        "weight_format": "bfloat16",
        "hidden": 64,
    }
    return ModelSpec(**{**fields, **changes})


def changed(spec, name, **options):
    packed = quantize(spec, None, parse_scheme(name), **options)
    pairs = zip(spec.tensors, packed.tensors, strict=True)
    return {new.name for old, new in pairs if new != old}


DENSE = small_spec(
    tensor("model.embed_tokens.weight", 512, 64),
    tensor("model.layers.0.self_attn.q_proj.weight", 64, 64),
    tensor("model.layers.0.self_attn.q_proj.bias", 64),
    tensor("model.layers.0.mlp.down_proj.weight", 64, 128),
    tensor("model.layers.0.mlp.shared_expert_gate.weight", 1, 64),
    tensor("model.layers.0.mlp.gate.weight", 4, 64),
    tensor("model.layers.0.mlp.experts.gate_up_proj", 4, 128, 64),
    tensor("model.layers.0.mlp.experts.down_proj", 4, 64, 64),
    tensor("model.norm.weight", 64),
    tensor("lm_head.weight", 512, 64),
)
Q = "model.layers.0.self_attn.q_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"
SHARED = "model.layers.0.mlp.shared_expert_gate.weight"
EXPERTS = {"model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"}


def test_families_take_what_they_replace():
    """At load linears only; checkpoints also experts, but no router and no odd sizes."""
    assert changed(DENSE, "nf4") == {Q, DOWN, SHARED}
    assert changed(DENSE, "hqq-4bit-g64") == {Q, DOWN, SHARED}
    assert changed(DENSE, "gptq-4bit-g64") == {Q, DOWN, *EXPERTS}
    assert changed(DENSE, "nvfp4") == {Q, DOWN, *EXPERTS}
    assert changed(DENSE, "fp8") == {Q, DOWN, SHARED, *EXPERTS}
    assert changed(DENSE, "torchao-int4-g128") == {DOWN}
    assert changed(DENSE, "nvfp4-online") == {DOWN}
    assert changed(DENSE, "mxfp4") == EXPERTS
    assert changed(DENSE, "exl3-4bpw") == {Q, DOWN, *EXPERTS, "lm_head.weight"}


def test_a_list_replaces_the_default_and_awq_adds():
    """With a list of their own, lm_head is quantized too."""
    assert "lm_head.weight" in changed(DENSE, "nf4", skip=["self_attn.q_proj"])
    assert Q not in changed(DENSE, "nf4", skip=["self_attn.q_proj"])
    assert changed(DENSE, "awq-4bit-g64", skip=["mlp"]) == {Q, *EXPERTS, DOWN}
    assert changed(DENSE, "awq-4bit-g64", skip=["re:.*experts"]) == {Q, DOWN}


def test_the_last_parameter_and_ties_stay():
    """Both sides of a tie; the last module only when the order is that of the model."""
    last = tensor("model.head_proj.weight", 64, 64)
    spec = small_spec(*DENSE.tensors[:3], last)
    assert changed(spec, "nf4") == {Q}
    assert changed(small_spec(*spec.tensors, exact_modules=False), "nf4") == {Q, last.name}
    tied = tensor("other.proj.weight", 64, 64, tied_to=Q)
    assert default_skips(small_spec(*spec.tensors[:2], tied)) == (
        "model.layers.0.self_attn.q_proj",
        "other.proj",
    )


def test_exl3_gives_a_tied_head_its_own_matrix():
    """Six bits, while the embedding stays as it is."""
    head = tensor("lm_head.weight", 512, 64, tied_to="model.embed_tokens.weight")
    packed = quantize(small_spec(*DENSE.tensors[:3], head), None, parse_scheme("exl3-4bpw"))
    assert packed.tensors[-1].tied_to is None
    assert packed.tensors[-1].bytes == 512 * 64 * 6 // 8 + 2 * (512 + 64)
    assert packed.tensors[0] == DENSE.tensors[0]


def test_gpt_oss_keeps_the_biases_of_experts_in_float32():
    """And nothing but experts is packed."""
    bias = tensor("model.layers.0.mlp.experts.down_proj_bias", 4, 64)
    spec = small_spec(*DENSE.tensors, bias, model_type="gpt_oss")
    packed = {t.name: t for t in quantize(spec, None, parse_scheme("mxfp4")).tensors}
    assert packed[bias.name].bytes == 4 * 4 * 64
    assert packed["model.layers.0.mlp.experts.down_proj"].bytes == 4 * 64 * (32 + 2)
    assert packed[Q] == DENSE.tensors[1]


def test_none_changes_nothing():
    """The name of the default."""
    assert quantize(DENSE, None, parse_scheme("none")) is DENSE


@pytest.mark.parametrize(
    ("pattern", "name", "meant"),
    [
        ("lm_head", "lm_head.weight", True),
        ("language_model.lm_head", "lm_head.weight", True),
        ("model.layers.1", "model.layers.1.mlp.up_proj.weight", True),
        ("model.layers.1", "model.layers.11.mlp.up_proj.weight", False),
        ("mlp.gate", "model.layers.1.mlp.gate.weight", True),
        ("mlp.gate", "model.layers.1.mlp.gate_proj.weight", False),
        ("model.layers.*.self_attn", "model.layers.3.self_attn.q_proj.weight", True),
        ("model.layers.1.*", "model.layers.1.mlp.up_proj.weight", True),
        ("*.mlp.shared_expert.*", "model.layers.1.mlp.shared_expert.up_proj.weight", True),
        ("re:.*self_attn.*", "model.layers.1.self_attn.q_proj.weight", True),
        (r"re:.*mlp\.(gate|up)_proj.*", "model.layers.1.mlp.experts.gate_up_proj", False),
        ("re:.*experts.*", "model.layers.1.mlp.experts.gate_up_proj", True),
        (r"re:.*experts\.\d+\.down_proj", "model.layers.1.mlp.experts.down_proj", True),
        (
            "language_model.model.layers.1.mlp",
            "model.language_model.layers.1.mlp.up_proj.weight",
            True,
        ),
        ("layers.3.ffn.experts", "model.layers.3.mlp.experts.gate_up_proj", True),
        ("re:(", "model.layers.1.mlp.up_proj.weight", False),
        ("(((*", "model.layers.1.mlp.up_proj.weight", False),
    ],
)
def test_three_notations_of_module_names(pattern, name, meant):
    """Of transformers, compressed-tensors and modelopt, with the first parts of either side."""
    assert ModuleNames([pattern]).hold(name) is meant


def test_parts_of_routers_are_known():
    """Checkpoints keep them plain."""
    for module in ("a.mlp.gate", "a.router.layer", "a.mlp.shared_expert_gate"):
        assert is_router(module)
    assert not is_router("a.mlp.gate_proj")
    assert module_of("a.b.weight") == "a.b"
