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
    kind, code = {bool: (7, "?"), int: (5, "i"), float: (6, "f"), str: (8, "")}[type(item[0])]
    head = struct.pack("<IIQ", 9, kind, len(item))
    if kind == 8:
        return head + b"".join(text(entry) for entry in item)
    return head + struct.pack(f"<{len(item)}{code}", *item)


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


def header(arch, *, layers, hidden, heads, kv_heads, key, inner, vocab, value_length=None, **extra):
    """Return the metadata of a decoder; extra keys get the architecture's prefix, __ is a dot."""
    named = {
        "block_count": layers,
        "context_length": 131072,
        "embedding_length": hidden,
        "feed_forward_length": inner,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": key,
        "attention.value_length": value_length or key,
        "rope.dimension_count": key,
        "rope.freq_base": 500000.0,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "vocab_size": vocab,
    }
    named |= {name.replace("__", "."): item for name, item in extra.items()}
    keys = {f"{arch}.{name}": item for name, item in named.items()}
    return {"general.architecture": arch, **keys, **vocabulary(vocab)}


def around(hidden, vocab, kind, *, tied=False):
    tensors = {
        "token_embd.weight": (kind, (vocab, hidden)),
        "output_norm.weight": ("f32", (hidden,)),
    }
    return tensors if tied else {**tensors, "output.weight": (kind, (vocab, hidden))}


def attention(i, *, hidden, heads, kv_heads, key, kind):
    return {
        f"blk.{i}.attn_norm.weight": ("f32", (hidden,)),
        f"blk.{i}.attn_q.weight": (kind, (heads * key, hidden)),
        f"blk.{i}.attn_k.weight": (kind, (kv_heads * key, hidden)),
        f"blk.{i}.attn_v.weight": (kind, (kv_heads * key, hidden)),
        f"blk.{i}.attn_output.weight": (kind, (hidden, heads * key)),
    }


def head_norms(i, key):
    return {
        f"blk.{i}.attn_q_norm.weight": ("f32", (key,)),
        f"blk.{i}.attn_k_norm.weight": ("f32", (key,)),
    }


def gated(i, *, hidden, inner, kind, suffix=""):
    return {
        f"blk.{i}.ffn_gate{suffix}.weight": (kind, (inner, hidden)),
        f"blk.{i}.ffn_up{suffix}.weight": (kind, (inner, hidden)),
        f"blk.{i}.ffn_down{suffix}.weight": (kind, (hidden, inner)),
    }


def experts(i, *, hidden, inner, count, kind):
    return {
        f"blk.{i}.ffn_gate_inp.weight": ("f32", (count, hidden)),
        f"blk.{i}.ffn_gate_exps.weight": (kind, (count, inner, hidden)),
        f"blk.{i}.ffn_up_exps.weight": (kind, (count, inner, hidden)),
        f"blk.{i}.ffn_down_exps.weight": (kind, (count, hidden, inner)),
    }


def llama(
    *,
    layers=32,
    hidden=4096,
    heads=32,
    kv_heads=8,
    key=128,
    inner=14336,
    vocab=128256,
    kind="q4_0",
    arch="llama",
    **extra,
):
    """Return metadata and tensors of a dense decoder; the defaults are Llama-3.1-8B."""
    sizes = {"hidden": hidden, "heads": heads, "kv_heads": kv_heads, "key": key}
    meta = header(arch, layers=layers, inner=inner, vocab=vocab, **sizes, **extra)
    tensors = around(hidden, vocab, kind)
    for i in range(layers):
        tensors |= attention(i, **sizes, kind=kind)
        tensors |= gated(i, hidden=hidden, inner=inner, kind=kind)
        tensors[f"blk.{i}.ffn_norm.weight"] = ("f32", (hidden,))
    return meta, tensors


def mixtral(*, layers=32, hidden=4096, inner=14336, count=8, vocab=32000, kind="q4_0"):
    """Return metadata and tensors; the defaults are Mixtral-8x7B."""
    sizes = {"hidden": hidden, "heads": 32, "kv_heads": 8, "key": 128}
    extra = {"expert_count": count, "expert_used_count": 2}
    meta = header("llama", layers=layers, inner=inner, vocab=vocab, **sizes, **extra)
    tensors = around(hidden, vocab, kind)
    for i in range(layers):
        tensors |= attention(i, **sizes, kind=kind)
        tensors |= experts(i, hidden=hidden, inner=inner, count=count, kind=kind)
        tensors[f"blk.{i}.ffn_norm.weight"] = ("f32", (hidden,))
    return meta, tensors


def q4_k_m(model):
    """Return a model in the mix of types that llama-quantize calls Q4_K_M, nearly.

    The output, and attn_v and ffn_down of an eighth of the layers at each end and every third
    between, have q6_k; so layers differ in size.
    """
    meta, tensors = model
    layers = meta[f"{meta['general.architecture']}.block_count"]
    mixed = {}
    for name, (kind, shape) in tensors.items():
        index = int(name.split(".")[1]) if name.startswith("blk.") else 0
        more = index < layers // 8 or index >= 7 * layers // 8 or index % 3 == 2
        wide = name == "output.weight" or (more and ("attn_v" in name or "ffn_down" in name))
        small = kind == "f32" or shape[-1] % 256
        mixed[name] = (kind if small else "q6_k" if wide else "q4_k", shape)
    return meta, mixed


def gemma3(
    *,
    layers=62,
    hidden=5376,
    heads=32,
    kv_heads=16,
    key=128,
    inner=21504,
    vocab=262208,
    window=1024,
    kind="q4_0",
):
    """Return metadata and tensors; the defaults are Gemma-3-27B."""
    sizes = {"hidden": hidden, "heads": heads, "kv_heads": kv_heads, "key": key}
    extra = {"attention__sliding_window": window}
    meta = header("gemma3", layers=layers, inner=inner, vocab=vocab, **sizes, **extra)
    tensors = around(hidden, vocab, kind, tied=True)
    for i in range(layers):
        tensors |= attention(i, **sizes, kind=kind) | head_norms(i, key)
        tensors |= gated(i, hidden=hidden, inner=inner, kind=kind)
        for norm in ("ffn_norm", "post_attention_norm", "post_ffw_norm"):
            tensors[f"blk.{i}.{norm}.weight"] = ("f32", (hidden,))
    return meta, tensors


def qwen3moe(
    *,
    layers=48,
    hidden=2048,
    heads=32,
    kv_heads=4,
    key=128,
    inner=6144,
    expert=768,
    count=128,
    used=8,
    vocab=151936,
    kind="q4_0",
):
    """Return metadata and tensors; the defaults are Qwen3-30B-A3B."""
    sizes = {"hidden": hidden, "heads": heads, "kv_heads": kv_heads, "key": key}
    extra = {"expert_count": count, "expert_used_count": used}
    extra |= {"expert_feed_forward_length": expert}
    meta = header("qwen3moe", layers=layers, inner=inner, vocab=vocab, **sizes, **extra)
    tensors = around(hidden, vocab, kind)
    for i in range(layers):
        tensors |= attention(i, **sizes, kind=kind) | head_norms(i, key)
        tensors |= experts(i, hidden=hidden, inner=expert, count=count, kind=kind)
        tensors[f"blk.{i}.ffn_norm.weight"] = ("f32", (hidden,))
    return meta, tensors


def deepseek3(*, layers=61, dense=3, hidden=7168, heads=128, vocab=129280, kind="q4_0", mla=True):
    """Return metadata and tensors; the defaults are DeepSeek-V3 with the MLA split."""
    rank, rope, nope, value_dim, query = 512, 64, 128, 128, 1536
    extra = {
        "leading_dense_block_count": dense,
        "attention__q_lora_rank": query,
        "attention__kv_lora_rank": rank,
        "expert_count": 256,
        "expert_used_count": 8,
        "expert_shared_count": 1,
        "expert_feed_forward_length": 2048,
        "expert_weights_scale": 2.5,
        "expert_gating_func": 2,
        "rope__dimension_count": rope,
    }
    sizes = {"key": nope + rope, "value_length": value_dim, "kv_heads": heads}
    if mla:
        extra |= {"attention__key_length_mla": nope + rope}
        extra |= {"attention__value_length_mla": value_dim}
        sizes = {"key": rank + rope, "value_length": rank, "kv_heads": 1}
    meta = header(
        "deepseek2", layers=layers, hidden=hidden, heads=heads, inner=18432, vocab=vocab,
        **sizes, **extra,
    )  # fmt: skip
    tensors = around(hidden, vocab, kind)
    for i in range(layers):
        tensors |= {
            f"blk.{i}.attn_norm.weight": ("f32", (hidden,)),
            f"blk.{i}.ffn_norm.weight": ("f32", (hidden,)),
            f"blk.{i}.attn_q_a_norm.weight": ("f32", (query,)),
            f"blk.{i}.attn_kv_a_norm.weight": ("f32", (rank,)),
            f"blk.{i}.attn_q_a.weight": (kind, (query, hidden)),
            f"blk.{i}.attn_q_b.weight": (kind, (heads * (nope + rope), query)),
            f"blk.{i}.attn_kv_a_mqa.weight": (kind, (rank + rope, hidden)),
            f"blk.{i}.attn_output.weight": (kind, (hidden, heads * value_dim)),
        }
        if mla:
            tensors[f"blk.{i}.attn_k_b.weight"] = (kind, (heads, rank, nope))
            tensors[f"blk.{i}.attn_v_b.weight"] = (kind, (heads, value_dim, rank))
        else:
            tensors[f"blk.{i}.attn_kv_b.weight"] = (kind, (heads * (nope + value_dim), rank))
        if i < dense:
            tensors |= gated(i, hidden=hidden, inner=18432, kind=kind)
        else:
            tensors |= experts(i, hidden=hidden, inner=2048, count=256, kind=kind)
            tensors |= gated(i, hidden=hidden, inner=2048, kind=kind, suffix="_shexp")
            tensors[f"blk.{i}.exp_probs_b.bias"] = ("f32", (256,))
    return meta, tensors


def qwen3next(*, layers=48, hidden=2048, vocab=151936, kind="q4_0", used=10):
    """Return metadata and tensors; the defaults are Qwen3-Next-80B-A3B."""
    heads, kv_heads, key, count, expert = 16, 2, 256, 512, 512
    state, groups, value_heads = 128, 16, 32
    key_dim, value_dim = state * groups, state * value_heads
    extra = {
        "expert_count": count,
        "expert_used_count": used,
        "expert_feed_forward_length": expert,
        "expert_shared_feed_forward_length": expert,
        "ssm__conv_kernel": 4,
        "ssm__inner_size": value_dim,
        "ssm__state_size": state,
        "ssm__time_step_rank": value_heads,
        "ssm__group_count": groups,
        "rope__dimension_count": 64,
    }
    sizes = {"hidden": hidden, "heads": heads, "kv_heads": kv_heads, "key": key}
    meta = header("qwen3next", layers=layers, inner=5120, vocab=vocab, **sizes, **extra)
    tensors = around(hidden, vocab, kind)
    for i in range(layers):
        if (i + 1) % 4 == 0:
            tensors |= attention(i, **sizes, kind=kind) | head_norms(i, key)
            tensors[f"blk.{i}.attn_q.weight"] = (kind, (2 * heads * key, hidden))
        else:
            tensors |= {
                f"blk.{i}.attn_norm.weight": ("f32", (hidden,)),
                f"blk.{i}.attn_qkv.weight": (kind, (2 * key_dim + value_dim, hidden)),
                f"blk.{i}.attn_gate.weight": (kind, (value_dim, hidden)),
                f"blk.{i}.ssm_conv1d.weight": ("f32", (2 * key_dim + value_dim, 4)),
                f"blk.{i}.ssm_dt.bias": ("f32", (value_heads,)),
                f"blk.{i}.ssm_a": ("f32", (value_heads,)),
                f"blk.{i}.ssm_ba.weight": (kind, (2 * value_heads, hidden)),
                f"blk.{i}.ssm_norm.weight": ("f32", (state,)),
                f"blk.{i}.ssm_out.weight": (kind, (hidden, value_dim)),
            }
        tensors[f"blk.{i}.post_attention_norm.weight"] = ("f32", (hidden,))
        tensors |= experts(i, hidden=hidden, inner=expert, count=count, kind=kind)
        tensors |= gated(i, hidden=hidden, inner=expert, kind=kind, suffix="_shexp")
        tensors[f"blk.{i}.ffn_gate_inp_shexp.weight"] = ("f32", (hidden,))
    return meta, tensors


def gptoss(*, layers=24, count=32, kind="mxfp4"):
    """Return metadata and tensors; the defaults are gpt-oss-20b."""
    hidden, heads, kv_heads, key, expert, vocab = 2880, 64, 8, 64, 2880, 201088
    extra = {
        "expert_count": count,
        "expert_used_count": 4,
        "expert_feed_forward_length": expert,
        "attention__sliding_window": 128,
    }
    sizes = {"hidden": hidden, "heads": heads, "kv_heads": kv_heads, "key": key}
    meta = header("gpt-oss", layers=layers, inner=expert, vocab=vocab, **sizes, **extra)
    tensors = around(hidden, vocab, "q8_0")
    for i in range(layers):
        tensors |= attention(i, **sizes, kind="q8_0")
        tensors |= experts(i, hidden=hidden, inner=expert, count=count, kind=kind)
        tensors |= {
            f"blk.{i}.post_attention_norm.weight": ("f32", (hidden,)),
            f"blk.{i}.attn_sinks.weight": ("f32", (heads,)),
            f"blk.{i}.attn_output.bias": ("f32", (hidden,)),
            f"blk.{i}.ffn_gate_inp.bias": ("f32", (count,)),
            f"blk.{i}.ffn_gate_exps.bias": ("f32", (count, expert)),
            f"blk.{i}.ffn_up_exps.bias": ("f32", (count, expert)),
            f"blk.{i}.ffn_down_exps.bias": ("f32", (count, hidden)),
        }
        for name in ("q", "k", "v"):
            rows = tensors[f"blk.{i}.attn_{name}.weight"][1][0]
            tensors[f"blk.{i}.attn_{name}.bias"] = ("f32", (rows,))
    return meta, tensors
