"""Model folders for tests: header-only safetensors, configs, and tiny real checkpoints."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

LLAMA_7B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
    "dtype": "float16",
}

TINY: dict[str, Any] = {
    **LLAMA_7B,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "vocab_size": 128,
    "dtype": "float32",
}


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def write_safetensors(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> Path:
    """Write a sparse file: a real header, and data that takes no disk space."""
    sizes = {"F32": 4, "BF16": 2, "F16": 2, "I8": 1}
    entries: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin = end
        count = 1
        for size in shape:
            count *= size
        end += count * sizes[dtype]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + end)
    return path


def llama_tensors(config: dict[str, Any], dtype: str = "F16") -> dict[str, Any]:
    """Return the names and shapes of an untied Llama checkpoint."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = hidden // config["num_attention_heads"]
    keys = head * config["num_key_value_heads"]
    result = {
        "model.embed_tokens.weight": (dtype, (config["vocab_size"], hidden)),
        "lm_head.weight": (dtype, (config["vocab_size"], hidden)),
        "model.norm.weight": (dtype, (hidden,)),
    }
    for i in range(config["num_hidden_layers"]):
        shapes = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        for name, shape in shapes.items():
            result[f"model.layers.{i}.{name}.weight"] = (dtype, shape)
    return result


def write_llama(folder: Path, config: dict[str, Any] = TINY, dtype: str = "F32") -> Path:
    """Write a Llama folder: config.json and one header-only safetensors file."""
    write_config(folder, config)
    write_safetensors(folder / "model.safetensors", llama_tensors(config, dtype))
    return folder


def save_tiny(folder: Path, kind: str) -> Path:
    """Save a tiny real checkpoint with random weights: "llama", "gemma3" (tied) or "mixtral"."""
    import torch
    import transformers

    torch.manual_seed(0)
    common = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "dtype": "float32",
    }
    if kind == "llama":
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**common, tie_word_embeddings=False)
        )
    elif kind == "gemma3":
        model = transformers.Gemma3ForCausalLM(
            transformers.Gemma3TextConfig(
                **common, head_dim=16, sliding_window=32, tie_word_embeddings=True
            )
        )
    elif kind == "mixtral":
        model = transformers.MixtralForCausalLM(
            transformers.MixtralConfig(**common, num_local_experts=4, num_experts_per_tok=2)
        )
    else:
        raise ValueError(kind)
    model.save_pretrained(folder)
    return folder


LLAVA = {
    "model_type": "llava",
    "architectures": ["LlavaForConditionalGeneration"],
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "patch_size": 14,
        "image_size": 56,
        "projection_dim": 64,
    },
    "text_config": {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "vocab_size": 128,
        "max_position_embeddings": 2048,
    },
    "image_token_index": 127,
}
"""A tiny LLaVA, as config.json."""
