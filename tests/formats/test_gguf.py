"""memplan.formats.gguf and the GGUF models: exact keys, arrays, split files, unknown types."""

from __future__ import annotations

import struct

import gguf_files
import pytest

from memplan.errors import BadModelError, ModelNotFoundError
from memplan.formats.ggml import BY_NAME, TYPES, row_bytes, tensor_bytes
from memplan.formats.gguf import Counted
from memplan.models.gguf import LocalFile, read_files, read_local
from memplan.models.gguf_layers import gguf_facts
from memplan.models.resolve import resolve

SMALL = {"layers": 2, "hidden": 256, "heads": 4, "kv_heads": 2, "key": 64, "inner": 512}


def facts(metadata, tensors=()):
    return gguf_facts(metadata, tensors)


def test_a_file_is_read_to_the_byte(tmp_path):
    """Shapes as torch has them, bytes of each type's blocks, the vocabulary only counted."""
    meta, tensors = gguf_files.llama(**SMALL, vocab=1000, kind="q4_k")
    path = gguf_files.write_gguf(tmp_path / "m.gguf", meta, tensors)
    model = read_local(path)
    assert len(model.tensors) == len(tensors)
    by_name = {t.name: t for t in model.tensors}
    assert by_name["token_embd.weight"].shape == (1000, 256)
    assert by_name["token_embd.weight"].bytes == 1000 * 144
    assert by_name["blk.1.attn_norm.weight"].bytes == 1024
    words = model.metadata["tokenizer.ggml.tokens"]
    assert isinstance(words, Counted)
    assert words == 1000
    spec = resolve(str(path))
    assert (spec.source, spec.hidden, spec.vocab, len(spec.layers)) == ("gguf", 256, 1000, 2)
    assert spec.weight_bytes == sum(t.bytes for t in model.tensors)


def test_only_keys_of_the_architecture_count():
    """leading_dense_block_count is no block_count, original_context_length no context_length."""
    meta, tensors = gguf_files.deepseek3(layers=4, dense=3, vocab=64)
    meta |= {"deepseek2.rope.scaling.original_context_length": 7, "other.block_count": 99}
    del tensors
    found = facts(meta)
    assert len(found.layers) == 4
    assert found.max_context == 131072


def test_heads_may_differ_from_layer_to_layer():
    """An array of key/value heads; 0 = no attention."""
    meta, _ = gguf_files.llama(**SMALL, vocab=64)
    meta["llama.attention.head_count_kv"] = [2, 0]
    assert [layer.kv_heads for layer in facts(meta).layers] == [2, 0]
    assert facts(meta).layers[1].kind == "none"


def test_an_old_file_of_deepseek_caches_whole_heads():
    """Without the MLA split: 128 heads of 192 and 128."""
    split = facts(gguf_files.deepseek3(layers=1, vocab=64)[0]).layers[0]
    old = facts(gguf_files.deepseek3(layers=1, vocab=64, mla=False)[0]).layers[0]
    assert (split.kind, split.key_dim + split.value_dim) == ("mla", 576)
    assert (old.kind, old.kv_heads * (old.key_dim + old.value_dim)) == ("full_attention", 40_960)


def test_the_shards_of_a_split_file_are_one_model(tmp_path):
    """The first shard is named; a missing one is an error."""
    meta, tensors = gguf_files.llama(**SMALL, vocab=64, kind="q8_0")
    names = list(tensors)
    for number, part in ((1, names[:9]), (2, names[9:])):
        own = meta if number == 1 else {"general.architecture": "llama"}
        path = tmp_path / f"m-{number:05d}-of-00002.gguf"
        gguf_files.write_gguf(path, own, {name: tensors[name] for name in part})
    first = tmp_path / "m-00001-of-00002.gguf"
    assert [t.name for t in read_local(first).tensors] == names
    assert resolve(str(tmp_path)).weight_bytes == resolve(str(first)).weight_bytes
    with pytest.raises(BadModelError, match="shard 2 of 2"):
        read_local(tmp_path / "m-00002-of-00002.gguf")
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(ModelNotFoundError):
        read_local(first)


def test_an_unknown_type_is_sized_by_the_next_offset(tmp_path):
    """A type of tomorrow: its bytes are those up to the next tensor."""
    tensors = {"a.weight": ("q8_0", (4, 64)), "b.weight": ("f32", (8,))}
    path = gguf_files.write_gguf(tmp_path / "m.gguf", {"general.architecture": "x"}, tensors)
    data = bytearray(path.read_bytes())
    at = data.index(b"a.weight") + 8 + 4 + 16
    assert data[at : at + 4] == struct.pack("<I", 8)
    data[at : at + 4] = struct.pack("<I", 999)
    path.write_bytes(bytes(data))
    first, _ = read_local(path).tensors
    assert (first.dtype, first.bytes) == ("ggml_type_999", 4 * 68 + 16)


def test_the_same_tensor_twice_is_refused(tmp_path):
    """Two files that both have it are no split model."""
    meta, tensors = gguf_files.llama(**SMALL, vocab=64)
    path = gguf_files.write_gguf(tmp_path / "m.gguf", meta, tensors)
    files = [("a", LocalFile(path)), ("b", LocalFile(path))]
    with pytest.raises(BadModelError, match="twice"):
        read_files(files)
    for _, file in files:
        file.close()


def test_types_have_the_bits_of_the_specification():
    """Bits per weight of the common types."""
    bits = {"q4_0": 4.5, "q8_0": 8.5, "q4_k": 4.5, "q6_k": 6.5625, "iq4_xs": 4.25, "mxfp4": 4.25}
    for name, expected in bits.items():
        entry = BY_NAME[name]
        assert 8 * entry.bytes / entry.block == expected
    assert len(BY_NAME) == len(TYPES)
    assert row_bytes(BY_NAME["q8_0"], 576) == 18 * 34
    assert tensor_bytes(BY_NAME["f16"], (3, 5)) == 30
