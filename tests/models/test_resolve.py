"""memplan.models: what a MODEL argument becomes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from checkpoints import (
    LLAMA_7B,
    TINY,
    llama_tensors,
    save_tiny,
    write_config,
    write_llama,
    write_safetensors,
)

from memplan.errors import BadModelError, ModelNotFoundError, UnsupportedModelError
from memplan.models.resolve import resolve


def test_a_config_alone_is_built_on_the_meta_device_to_the_byte(tmp_path):
    """7B in float16: equal to the sum over the built model."""
    import torch
    import transformers

    spec = resolve(str(write_config(tmp_path, LLAMA_7B)))
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA_7B))
    expected = sum(p.numel() * 2 for p in model.parameters())
    assert spec.weight_bytes == expected == 13_476_831_232
    assert spec.parameters == 6_738_415_616
    assert spec.source == "config"
    assert spec.exact_modules


def test_a_folder_is_the_same_as_its_config(tmp_path):
    """Folder or file: one model."""
    write_config(tmp_path, TINY)
    assert resolve(str(tmp_path)).tensors == resolve(str(tmp_path / "config.json")).tensors


def test_the_second_call_needs_no_torch(tmp_path):
    """The inventory is kept by the config's content."""
    write_config(tmp_path, TINY)
    first = resolve(str(tmp_path))
    program = (
        "import sys; from memplan.models.resolve import resolve; "
        "print(resolve(sys.argv[1]).weight_bytes, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(first.weight_bytes), "False"]


def test_a_changed_config_is_built_anew(tmp_path):
    """Content is the key, not the path."""
    write_config(tmp_path, TINY)
    before = resolve(str(tmp_path)).weight_bytes
    write_config(tmp_path, {**TINY, "num_hidden_layers": 3})
    assert resolve(str(tmp_path)).weight_bytes > before


def test_headers_of_one_file_give_the_weights_without_torch(tmp_path):
    """A safetensors folder is read in milliseconds."""
    write_llama(tmp_path)
    program = (
        "import sys; from memplan.models.resolve import resolve; "
        "spec = resolve(sys.argv[1]); print(spec.weight_bytes, spec.source, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(resolve(str(tmp_path)).weight_bytes), "safetensors", "False"]


def test_shards_are_read_by_their_index(tmp_path):
    """Two shards and an index are the same model as one file."""
    write_config(tmp_path / "two", TINY)
    tensors = llama_tensors(TINY, "F32")
    names = sorted(tensors)
    shards = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for shard, own in shards.items():
        write_safetensors(tmp_path / "two" / shard, {name: tensors[name] for name in own})
    weight_map = {name: shard for shard, own in shards.items() for name in own}
    index = tmp_path / "two" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    one = resolve(str(write_llama(tmp_path / "one")))
    for argument in (tmp_path / "two", index):
        assert resolve(str(argument)).weight_bytes == one.weight_bytes


def test_a_missing_shard_is_named(tmp_path):
    """Not a stack trace."""
    write_config(tmp_path, TINY)
    index = {"weight_map": {"a": "gone.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelNotFoundError, match=r"gone\.safetensors"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("shard", ["../a.safetensors", "/etc/passwd", "", "..", 3])
def test_an_index_never_reaches_outside_its_folder(tmp_path, shard):
    """Path traversal is refused."""
    index = {"weight_map": {"a": shard}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadModelError, match="outside its folder"):
        resolve(str(tmp_path))


def test_an_index_that_lists_more_than_its_shards_hold_is_refused(tmp_path):
    """A tensor that is in no shard is a damaged download."""
    write_safetensors(tmp_path / "a.safetensors", {"x": ("F32", (2,))})
    index = {"weight_map": {"x": "a.safetensors", "y": "a.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadModelError, match="'y'"):
        resolve(str(tmp_path))


def test_weights_are_counted_in_the_dtype_they_are_loaded_in(tmp_path):
    """float32 files loaded as bfloat16 take half."""
    write_llama(tmp_path)
    full = resolve(str(tmp_path), dtype="float32").weight_bytes
    assert resolve(str(tmp_path), dtype="bfloat16").weight_bytes * 2 == full


@pytest.mark.models
@pytest.mark.parametrize("kind", ["llama", "gemma3", "mixtral"])
def test_headers_and_meta_build_agree_on_real_checkpoints(tmp_path, kind):
    """The file's bytes are the built model's, ties and fused experts included."""
    import transformers

    folder = save_tiny(tmp_path, kind)
    by_headers = resolve(str(folder))
    built = resolve(str(folder), exact_modules=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    expected = sum(p.numel() * p.element_size() for p in model.parameters())
    assert by_headers.weight_bytes == built.weight_bytes == expected
    assert built.exact_modules
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    assert {t.name for t in built.tensors if t.kind == "parameter"} == names
    tied = {t.name for t in built.tensors if t.tied_to}
    assert bool(tied) == (kind == "gemma3")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model_type": "no-such-model"}, UnsupportedModelError, "does not know model type"),
        ({"num_hidden_layers": -1}, BadModelError, "num_hidden_layers is -1"),
        ({"num_hidden_layers": 10**9}, BadModelError, "claims 1000000000 layers"),
        ({"hidden_size": 0}, BadModelError, "hidden size 0"),
        ({"hidden_size": "many"}, BadModelError, "hidden_size is 'many'"),
        ({"num_attention_heads": 2.5}, BadModelError, "num_attention_heads is 2.5"),
    ],
)
def test_a_config_that_makes_no_sense_is_one_clear_error(tmp_path, change, error, message):
    """With a hint, before anything is built."""
    with pytest.raises(error, match=message) as caught:
        resolve(str(write_config(tmp_path, {**TINY, **change})))
    assert caught.value.hint


def test_code_from_the_folder_is_never_run_unasked(tmp_path):
    """A config that needs remote code is refused, and its module is not imported."""
    config = {**TINY, "model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig"}}
    write_config(tmp_path, config)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UnsupportedModelError, match="needs Python code") as caught:
        resolve(str(tmp_path))
    assert "--trust-remote-code" in caught.value.hint
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": NaN}', '{"hidden_size": 1e999}'])
def test_a_damaged_config_is_refused(tmp_path, text):
    """Truncated JSON, a list, NaN."""
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BadModelError):
        resolve(str(tmp_path))


def test_a_huge_config_is_refused_unread(tmp_path):
    """10 GB of JSON is no config."""
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(10 * 10**9)
    with pytest.raises(BadModelError, match="too large"):
        resolve(str(path))


@pytest.mark.parametrize("name", ["nowhere", "model.bin", "empty"])
def test_what_is_no_model_is_refused_with_a_hint(tmp_path, name):
    """Nothing there, a foreign file, an empty folder."""
    (tmp_path / "model.bin").write_bytes(b"PK")
    (tmp_path / "empty").mkdir()
    with pytest.raises((ModelNotFoundError, UnsupportedModelError)) as caught:
        resolve(str(tmp_path / name))
    assert caught.value.hint


def test_a_damaged_inventory_is_built_again(tmp_path, home):
    """The cache is never trusted."""
    write_config(tmp_path, TINY)
    expected = resolve(str(tmp_path))
    (kept,) = (home / "cache" / "inventory").iterdir()
    kept.write_text("{")
    assert resolve(str(tmp_path)) == expected
