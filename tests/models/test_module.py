"""memplan.models.module: a model that the user's own code builds."""

from __future__ import annotations

import pytest

from memplan.errors import BadModelError, ModelNotFoundError
from memplan.models.load import load_model
from memplan.models.module import is_callable_name

CODE = """
import torch

def plain():
    return torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))

def llama():
    import transformers
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=100,
    )
    return transformers.LlamaForCausalLM(config)

def number():
    return 7

def broken():
    raise RuntimeError("no weights today")
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(CODE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return name


def load(argument, dtype=None):
    return load_model(argument, dtype=dtype, options={})


@pytest.mark.models
def test_any_module_has_its_parameters_counted(code):
    """8·4 + 4 + 4·2 + 2 elements, in torch's default dtype or another."""
    assert load(f"{code}:plain").weight_bytes == 46 * 4
    assert load(f"{code}:plain", "bfloat16").weight_bytes == 46 * 2


@pytest.mark.models
def test_a_model_with_a_config_has_layers_and_caches(code):
    """Transformers' models bring their config."""
    spec = load(f"{code}:llama")
    assert (spec.source, spec.architecture, len(spec.layers)) == ("module", "LlamaForCausalLM", 2)
    assert spec.layers[0].kv_heads == 2


@pytest.mark.models
@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("number", BadModelError, "no nn.Module"),
        ("broken", BadModelError, "no weights today"),
        ("nothing", ModelNotFoundError, "nothing"),
    ],
)
def test_what_is_no_model_is_one_clear_error(code, name, error, text):
    """With what the code said."""
    with pytest.raises(error, match=text):
        load(f"{code}:{name}")
    with pytest.raises(ModelNotFoundError):
        load("no_such_module_anywhere:build")


def test_paths_and_hub_names_are_no_callables():
    """Only dotted names around one colon."""
    assert is_callable_name("package.module:build")
    for other in ("org/name", "C:\\\\models", "hf:gpt2", "a:b:c", "model.gguf", "1a:b"):
        assert not is_callable_name(other)
