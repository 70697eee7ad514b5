"""Room for adapters, held against PEFT's own."""

from __future__ import annotations

import pytest
from checkpoints import TINY, save_tiny, write_config

from memplan.errors import UsageError
from memplan.models.load import load_model

SLOTS = {"lora_slots": 3, "lora_rank": 8}


def added(source, **options):
    """Return the bytes that adapters add to a model."""
    plain = load_model(str(source), dtype=None, options={"runtime": options.get("runtime")})
    seen = load_model(str(source), dtype=None, options=options)
    return seen.weight_bytes - plain.weight_bytes, seen


@pytest.mark.models
@pytest.mark.filterwarnings("ignore")  # of peft, about what transformers renames
@pytest.mark.parametrize("kind", ["llama", "gemma3", "mixtral"])
@pytest.mark.parametrize("targets", ["all-linear", "q_proj,v_proj"])
def test_adapters_are_what_peft_makes(tmp_path, kind, targets):
    """Three of them on a really built bfloat16 model: float32, to the byte."""
    peft = pytest.importorskip("peft")
    import torch
    import transformers

    folder = save_tiny(tmp_path / "model", kind)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    before = sum(p.numel() * p.element_size() for p in model.parameters())
    names = targets if targets == "all-linear" else targets.split(",")
    settings = peft.LoraConfig(r=8, target_modules=names)
    wrapped = peft.get_peft_model(model, settings, adapter_name="first")
    for name in ("second", "third"):
        wrapped.add_adapter(name, settings)
    real = sum(p.numel() * p.element_size() for p in wrapped.parameters()) - before
    config = folder / "config.json"
    size, _ = added(config, **SLOTS, lora_targets=targets)
    assert size == real


@pytest.mark.models
def test_vllm_reserves_slots_of_every_linear_in_the_models_dtype(tmp_path):
    """Twice 3 x 8 x (in + out) bytes for each of seven linears and two layers."""
    config = write_config(tmp_path, {**TINY, "dtype": "bfloat16"})
    size, spec = added(config, **SLOTS, runtime="vllm")
    pairs = (64, 64), (64, 32), (64, 32), (64, 64), (64, 112), (64, 112), (112, 64)
    assert size == 2 * 2 * 3 * 8 * sum(a + b for a, b in pairs)
    assert spec.origin.endswith("and 3 adapters of rank 8 in bfloat16")


@pytest.mark.models
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lora_slots": 3}, "a number and a rank"),
        ({"lora_rank": 3}, "a number and a rank"),
        ({**SLOTS, "runtime": "llama.cpp"}, "as their files are"),
        ({**SLOTS, "runtime": "vllm", "lora_targets": "q_proj"}, "every linear"),
        ({**SLOTS, "lora_targets": "nothing"}, "no linear called nothing"),
    ],
)
def test_what_cannot_be_known_is_said(tmp_path, options, words):
    """In one line with a hint."""
    config = write_config(tmp_path, TINY)
    with pytest.raises(UsageError, match=words) as caught:
        load_model(str(config), dtype=None, options=options)
    assert caught.value.hint
