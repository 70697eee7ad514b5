"""memplan.placement.units and mapping: pieces and maps of real models."""

from __future__ import annotations

from dataclasses import replace

import pytest
from checkpoints import TINY, save_tiny, write_llama

from memplan.models.resolve import resolve
from memplan.placement.mapping import device_map, uncovered
from memplan.placement.units import PLAIN_NAMES, cut
from memplan.types import Tensor


def spread(pieces, devices=("cpu", "disk")):
    return {piece.position: devices[i % len(devices)] for i, piece in enumerate(pieces)}


@pytest.mark.models
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gemma3", "mixtral"])
def test_a_map_covers_every_tensor_and_names_no_module_twice(tmp_path, kind, exact):
    """Complete and prefix-free, however the pieces are spread, by headers and by meta build."""
    folder = save_tiny(tmp_path, kind)
    spec = resolve(str(folder), exact_modules=exact)
    built = resolve(str(folder), exact_modules=True)
    pieces = cut(spec)
    for where in (
        spread(pieces),
        spread(pieces, ("cpu",)),
        spread(pieces, ("disk", "disk", "cpu")),
    ):
        keys = device_map(pieces, where)
        missing = uncovered(keys, built)
        rotary = {name for name in missing if "rotary" in name}
        assert set(missing) == (rotary if kind == "mixtral" and not exact else set())
        for key in keys:
            assert not any(other.startswith(f"{key}.") for other in keys)
    assert sum(piece.weight_bytes for piece in pieces) == spec.weight_bytes


@pytest.mark.models
def test_tied_weights_share_one_piece(tmp_path):
    """Embedding and head of a tied model go to one device."""
    spec = resolve(str(save_tiny(tmp_path, "gemma3")), exact_modules=True)
    (shared,) = [piece for piece in cut(spec) if len(piece.names) > 1]
    assert set(shared.names) == {"model.embed_tokens", "lm_head"}
    assert shared.weight_bytes == 128 * 64 * 4


@pytest.mark.models
def test_fused_experts_are_one_piece_that_is_reloaded_whole(tmp_path):
    """Transformers 5 keeps all experts of a layer in one module."""
    spec = resolve(str(save_tiny(tmp_path, "mixtral")), exact_modules=True)
    experts = [piece for piece in cut(spec) if piece.names[0].endswith("mlp.experts")]
    assert len(experts) == 3
    assert all(piece.reload_bytes == piece.weight_bytes for piece in experts)


@pytest.mark.models
def test_a_layer_whose_inside_is_unknown_is_one_piece(tmp_path):
    """The file of a Mixtral names experts that the built model does not have."""
    spec = resolve(str(save_tiny(tmp_path, "mixtral")))
    layers = [piece for piece in cut(spec) if piece.layer is not None]
    assert [piece.names for piece in layers] == [(f"model.layers.{i}",) for i in range(3)]


def test_a_module_with_own_tensors_and_children_is_one_piece(tmp_path):
    """A map must not name a module and its parent."""
    spec = resolve(str(write_llama(tmp_path)))
    tensors = (
        Tensor(name="v.gate", shape=(2,), dtype="float32", bytes=8),
        Tensor(name="v.inner.a.weight", shape=(4,), dtype="float32", bytes=16),
        Tensor(name="v.inner.b.weight", shape=(1,), dtype="float32", bytes=4),
        Tensor(name="root_scale", shape=(1,), dtype="float32", bytes=4),
    )
    pieces = cut(replace(spec, tensors=tensors, exact_modules=True))
    assert [piece.names for piece in pieces] == [("v",), ("root_scale",)]
    assert pieces[0].weight_bytes == 28
    assert pieces[0].reload_bytes == 24


def test_a_model_that_was_cut_lately_is_not_cut_again(tmp_path):
    """Also when others were cut in between; after many of them it is, with the same pieces."""
    spec = resolve(str(write_llama(tmp_path)))
    pieces = cut(spec)
    others = [replace(spec, vocab=spec.vocab + i) for i in range(1, 12)]
    for other in others[:3]:
        cut(other)
    assert cut(spec) is pieces
    for other in others:
        cut(other)
    assert cut(spec) is not pieces
    assert cut(spec) == pieces


def test_pieces_stand_in_the_order_of_the_model(tmp_path):
    """Embedding, layers by number, norm and head, although a file sorts by name."""
    config = {**TINY, "num_hidden_layers": 11}
    pieces = cut(resolve(str(write_llama(tmp_path, config))))
    layers = [piece.layer for piece in pieces if piece.layer is not None]
    assert layers == sorted(layers)
    assert pieces[0].names == ("model.embed_tokens",)
    assert {pieces[-1].names[0], pieces[-2].names[0]} == {"lm_head", "model.norm"}


@pytest.mark.models
@pytest.mark.parametrize("model_type", sorted(PLAIN_NAMES))
def test_types_whose_file_names_are_trusted_save_them_so(tmp_path, model_type):
    """Each type in the table: the names in a saved file are those of the built model."""
    import torch
    import transformers
    from safetensors import safe_open

    small = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = transformers.AutoConfig.for_model(model_type, **small)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        stored = set(file.keys())
    assert stored <= {name for name, _ in model.named_parameters(remove_duplicate=False)}
