"""memplan.models.catalog: popular models, offline and to the byte."""

from __future__ import annotations

import json

import pytest
from checkpoints import LLAMA_7B, write_config

from memplan.errors import ModelNotFoundError
from memplan.models import catalog
from memplan.models.load import load_model


def test_there_are_at_least_sixty_models_with_their_sources():
    """Every line has names of its own, a source, tensors and layers."""
    lines = [json.loads(line) for line in catalog._lines()]
    names = [name for line in lines for name in line["names"]]
    assert len(lines) >= 60
    assert len(set(names)) == len(names)
    for line in lines:
        assert all((line["source"], line["layers"], line["shapes"])), line["names"]
        assert "/tmp" not in json.dumps(line)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-3.1-8b", 8_030_261_248),
        ("Meta-Llama/Meta-Llama-3.1-8B", 8_030_261_248),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("deepseek-v3", 671_026_404_352),
        ("gpt-oss-20b", 20_914_757_184),
        ("GPT OSS 120B", 116_829_156_672),
    ],
)
def test_a_model_has_the_parameters_that_its_card_tells(name, parameters):
    """By any of its names, whatever the case."""
    assert catalog.find_model(name).parameters == parameters


def test_every_model_can_be_read():
    """All of them: tensors, layers, active parameters."""
    for name in catalog.catalog_names():
        spec = catalog.find_model(name)
        assert spec.weight_bytes > 0
        assert len(spec.layers) > 0
        assert spec.active_parameters is None or 0 < spec.active_parameters <= spec.parameters


def test_a_dtype_casts_plain_weights():
    """float32 doubles bfloat16; packed weights stay."""
    plain = catalog.find_model("llama-3.1-8b")
    assert catalog.find_model("llama-3.1-8b", dtype="float32").weight_bytes == (
        2 * plain.weight_bytes
    )
    packed, cast = (catalog.find_model("deepseek-v3", dtype=d) for d in (None, "float32"))
    experts = [t for t in packed.tensors if ".experts." in t.name]
    assert experts == [t for t in cast.tensors if ".experts." in t.name]


@pytest.mark.models
def test_an_entry_is_the_model_that_its_config_builds(tmp_path):
    """What the script writes is read back as the same tensors and layers."""
    spec = load_model(str(write_config(tmp_path, LLAMA_7B)), dtype=None, options={})
    entry = catalog.entry_of(spec, names=["Llama 7B"], hub=None, source="by hand")
    again = catalog._spec(json.loads(json.dumps(entry)), None)
    assert again.tensors == spec.tensors
    assert again.layers == spec.layers
    assert again.name == "llama-7b"


def test_a_file_of_the_same_name_wins(tmp_path, monkeypatch):
    """A folder called like a model of the catalogue is the folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama-3.1-8b").mkdir()
    with pytest.raises(ModelNotFoundError):
        load_model("llama-3.1-8b", dtype=None, options={})
