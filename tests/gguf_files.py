"""Header-only GGUF files for tests: real metadata and tensor lists, data that takes no disk."""

from __future__ import annotations

import struct

from memplan.formats.ggml import BY_NAME, TYPES, tensor_bytes

IDS = {entry.name: number for number, entry in TYPES.items()}


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value(item):
    if isinstance(item, bool):
        return struct.pack("<I?", 7, item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item, str):
        return struct.pack("<I", 8) + text(item)
    first = item[0]
    kind = 7 if isinstance(first, bool) else 4 if isinstance(first, int) else 8
    kind = 6 if isinstance(first, float) else kind
    head = struct.pack("<IIQ", 9, kind, len(item))
    if kind == 8:
        return head + b"".join(text(entry) for entry in item)
    return head + struct.pack(f"<{len(item)}{'?I f'[kind - 7] if kind != 4 else 'I'}", *item)


def write_gguf(path, metadata, tensors, *, alignment=32, version=3):
    """Write a sparse file. tensors: name -> (ggml type's name, shape as torch has it)."""
    body = b"".join(text(key) + value(item) for key, item in metadata.items())
    offset, infos = 0, []
    for name, (kind, shape) in tensors.items():
        size = tensor_bytes(BY_NAME[kind], shape)
        reverse = tuple(reversed(shape))
        dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reverse)
        infos.append(text(name) + dims + struct.pack("<IQ", IDS[kind], offset))
        offset += -(-size // alignment) * alignment
    header = struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(metadata))
    head = header + body + b"".join(infos)
    start = -(-len(head) // alignment) * alignment
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(start + offset)
    return path


def vocabulary(size):
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(size)],
        "tokenizer.ggml.token_type": [1] * size,
        "tokenizer.ggml.merges": ["t 0"],
    }


def llama(*, layers=32, hidden=4096, heads=32, kv_heads=8, head=128, inner=14336, vocab=128256, kind="q4_k", arch="llama", extra=None, context=131072):
    """Return metadata and tensors of a dense decoder of Llama's shape."""
    meta = {
        "general.architecture": arch,
        f"{arch}.block_count": layers,
        f"{arch}.context_length": context,
        f"{arch}.embedding_length": hidden,
        f"{arch}.feed_forward_length": inner,
        f"{arch}.attention.head_count": heads,
        f"{arch}.attention.head_count_kv": kv_heads,
        f"{arch}.attention.key_length": head,
        f"{arch}.attention.value_length": head,
        f"{arch}.rope.dimension_count": head,
        f"{arch}.rope.freq_base": 500000.0,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.vocab_size": vocab,
        **{f"{arch}.{key}": item for key, item in (extra or {}).items()},
        **vocabulary(vocab),
    }
    tensors = {
        "token_embd.weight": (kind, (vocab, hidden)),
        "output_norm.weight": ("f32", (hidden,)),
        "output.weight": ("q6_k" if kind == "q4_k" else kind, (vocab, hidden)),
    }
    for i in range(layers):
        tensors |= {
            f"blk.{i}.attn_norm.weight": ("f32", (hidden,)),
            f"blk.{i}.ffn_norm.weight": ("f32", (hidden,)),
            f"blk.{i}.attn_q.weight": (kind, (heads * head, hidden)),
            f"blk.{i}.attn_k.weight": (kind, (kv_heads * head, hidden)),
            f"blk.{i}.attn_v.weight": (kind, (kv_heads * head, hidden)),
            f"blk.{i}.attn_output.weight": (kind, (hidden, heads * head)),
            f"blk.{i}.ffn_gate.weight": (kind, (inner, hidden)),
            f"blk.{i}.ffn_up.weight": (kind, (inner, hidden)),
            f"blk.{i}.ffn_down.weight": (kind, (hidden, inner)),
        }
    return meta, tensors
