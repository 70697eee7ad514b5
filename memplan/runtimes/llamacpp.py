"""llama.cpp: padded caches, windows with room for a micro-batch, one compute buffer.

Held against llama.cpp 0c1e570: `llama-fit-params`, its own dry run, on header-only files
(tests/runtimes/test_llamacpp.py). Caches are exact; the compute buffer is a formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from memplan.errors import UnsupportedModelError, UsageError
from memplan.footprint.lines import band_line, exact_line
from memplan.footprint.overhead import Cost, cost_line
from memplan.formats.ggml import BY_NAME, GgmlType, row_bytes
from memplan.types import Layer, Line, ModelSpec, Workload
from memplan.units import MIB

__all__ = [
    "CACHE_TYPES",
    "NAME",
    "activation_line",
    "attention_bytes",
    "cache_lines",
    "compute_bytes",
    "layer_cache_bytes",
    "layer_state_bytes",
    "mask_bytes",
    "micro_batch",
    "overhead_line",
]

NAME = "llama.cpp"

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
"""What -ctk and -ctv take."""

DEFAULT_UBATCH = 512
_PAD = 256
_FLOAT = 4

_SLIDING_TYPES = (
    *("gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "gemma4", "gemma4_text"),
    *("cohere2", "exaone4", "exaone_moe", "gpt_oss", "llama4", "llama4_text", "mimo_v2_flash"),
    *("olmo3", "afmoe", "smallthinker", "step3p5", "plamo3", "lfm2", "lfm3"),
)
"""transformers' types that llama.cpp keeps in windowed caches; it keeps all of the context for
every other one, whatever window the model has (Mistral, Phi-3, Qwen2, StarCoder2)."""

_NO_CACHE = ("shared_kv", "encoder_only", "none", "state")
_LATENT = ("mla", "sliding_mla")
_WINDOWED = ("sliding_attention", "chunked_attention", "sliding_mla")


def cache_lines(spec: ModelSpec, workload: Workload) -> list[Line]:
    """Return the KV cache and the recurrent state of all streams, exact.

    Raises UnsupportedModelError for a layer without a rule and UsageError for a cache type that
    llama.cpp does not have.
    """
    grown = sum(_kv_bytes(spec, layer, workload) for layer in spec.layers)
    fixed = sum(layer_state_bytes(layer, workload) for layer in spec.layers)
    lines = []
    if grown:
        cells = _cells(workload.context or 0)
        kind = _cache_type(workload).name
        source = f"{workload.batch} streams of {cells} cells in {kind}"
        lines.append(exact_line("kv_cache", grown, source))
    if fixed:
        lines.append(exact_line("state_cache", fixed, "float32 rows, one a sequence"))
    return lines


def layer_cache_bytes(spec: ModelSpec, layer: Layer, workload: Workload) -> int:
    """Return one layer's share of `cache_lines`."""
    return _kv_bytes(spec, layer, workload) + layer_state_bytes(layer, workload)


def _cache_type(workload: Workload) -> GgmlType:
    names = {"float16": "f16", "bfloat16": "bf16", "float32": "f32"}
    name = names.get(workload.kv_dtype or "f16", workload.kv_dtype or "f16")
    if name not in CACHE_TYPES:
        raise UsageError(
            f"llama.cpp has no cache of type {name!r}", hint="one of: " + ", ".join(CACHE_TYPES)
        )
    return BY_NAME[name]


def _cells(tokens: int) -> int:
    """Return n_ctx of one stream: padded to 256 (llama-context.cpp)."""
    return -(-tokens // _PAD) * _PAD


def _ubatch(workload: Workload) -> int:
    return workload.prefill_chunk or DEFAULT_UBATCH


def _layer_cells(spec: ModelSpec, layer: Layer, workload: Workload) -> int:
    """Return the cells of one layer: pad256(min(n_ctx, W + n_ubatch)) where it slides.

    Source: llama-kv-cache-iswa.cpp; the prompt's micro-batch needs room beside the window.
    """
    cells = _cells(workload.context or 0)
    if not layer.window or layer.kind not in _WINDOWED or not _slides(spec):
        return cells
    return _cells(min(cells, layer.window + _ubatch(workload)))


def _slides(spec: ModelSpec) -> bool:
    return spec.weight_format.startswith("gguf") or (spec.model_type or "") in _SLIDING_TYPES


def _kv_bytes(spec: ModelSpec, layer: Layer, workload: Workload) -> int:
    """Return K and V of one layer: rows of n_head_kv x head size, padded to the type's block.

    MLA keeps one row of latent and rotary part and no V (llama-kv-cache.cpp, has_v).
    """
    if layer.kind in _NO_CACHE:
        return 0
    if layer.kind == "compressed_attention":
        raise UnsupportedModelError(
            "memplan has no rule for DeepSeek V4's pooled cache in llama.cpp",
            hint="use --runtime transformers",
        )
    kind = _cache_type(workload)
    cells = _layer_cells(spec, layer, workload) * workload.batch
    if layer.kind in _LATENT:
        size = cells * row_bytes(kind, layer.key_dim + layer.value_dim)
        return size + cells * row_bytes(kind, layer.index_dim)
    keys = row_bytes(kind, layer.kv_heads * layer.key_dim)
    widest = layer.kv_heads * layer.value_dim
    if workload.attention == "eager":
        widest = max(x.kv_heads * x.value_dim for x in spec.layers if x.kind not in _LATENT)
    return cells * (keys + row_bytes(kind, widest))


def layer_state_bytes(layer: Layer, workload: Workload) -> int:
    """Return one layer's recurrent rows, float32: d_conv - 1 inputs and the state.

    Drafting keeps a copy for each drafted token, to go back to: 1 + n rows (llama-hparams.cpp).
    """
    total = 0
    for state in layer.states:
        rows = state.kernel - 1 if state.kind == "conv" else 1
        total += state.elements * rows
    copies = 1 + (workload.draft_tokens or 0)
    return workload.batch * copies * total * _FLOAT


def compute_bytes(spec: ModelSpec, workload: Workload) -> int:
    """Return the compute buffer: the highest of three moments of one micro-batch, in float32.

    Logits: ub·(V + 2h). Feed-forward: ub·(3f + 4h) and the mask. Attention: with flash attention
    the mask in float16, ub·2 B a cell; without it the scores and a float32 mask, ub·cells·(n + 1),
    and ub·(4h + q + 2k + 2v). MLA's absorbed queries: ub·n·(2·rank + rope + 2·d) + 3h.
    Formula fitted to the dry run of llama.cpp 0c1e570 on 16 shapes: within 4 % for dense models,
    7 % for mixtures of experts with a vocabulary.
    """
    ubatch = micro_batch(workload)
    hidden = spec.hidden
    moments = [ubatch * _FLOAT * (spec.vocab + 2 * hidden)]
    mask = mask_bytes(spec, workload)
    for layer in set(spec.layers):
        inner = 3 * layer.intermediate + 4 * hidden
        channels = max((s.elements for s in layer.states if s.kind == "conv"), default=0)
        inner = max(inner, 5 * channels + 2 * hidden if channels else 0)
        moments.append(ubatch * _FLOAT * inner + (mask if workload.attention != "eager" else 0))
        if attention := attention_bytes(spec, layer, workload):
            moments.append(attention + mask)
    return max(moments)


def micro_batch(workload: Workload) -> int:
    """Return the tokens of one micro-batch: never more than the context of all sequences."""
    return min(_ubatch(workload), _cells(workload.context or 0) * workload.batch)


def mask_bytes(spec: ModelSpec, workload: Workload) -> int:
    """Return the masks of one micro-batch: float16 with flash attention, else float32."""
    element = _FLOAT if workload.attention == "eager" else 2
    return micro_batch(workload) * sum(_mask_cells(spec, workload)) * element


def attention_bytes(spec: ModelSpec, layer: Layer, workload: Workload) -> int:
    """Return one layer's attention without its mask, 0 for a layer that has none."""
    if layer.kind in (*_NO_CACHE, "compressed_attention"):
        return 0
    size = micro_batch(workload) * _FLOAT * _attention_width(spec, layer)
    if workload.attention == "eager":
        cells = _layer_cells(spec, layer, workload)
        size += micro_batch(workload) * _FLOAT * (layer.heads or spec.heads) * cells
    return size


def _mask_cells(spec: ModelSpec, workload: Workload) -> list[int]:
    """Return the cells of each mask: one for the whole context, one for the window."""
    kept = {
        _layer_cells(spec, layer, workload) for layer in spec.layers if layer.kind not in _NO_CACHE
    }
    return sorted(kept)


def _attention_width(spec: ModelSpec, layer: Layer) -> int:
    heads = layer.heads or spec.heads
    if layer.kind in _LATENT:
        absorbed = 2 * layer.key_dim + layer.value_dim
        return heads * (absorbed + 2 * spec.head_dim) + 3 * spec.hidden
    keys = layer.kv_heads * (layer.key_dim + layer.value_dim)
    return 4 * spec.hidden + heads * layer.key_dim + 2 * keys


def activation_line(spec: ModelSpec, workload: Workload) -> Line:
    """Return the compute buffer and the logits of one token a sequence (output buffer, V·4 B)."""
    compute = compute_bytes(spec, workload)
    output = spec.vocab * _FLOAT * workload.batch
    total = compute + output
    flash = "off" if workload.attention == "eager" else "on"
    unseen = "; the mmproj file and its buffers come on top" if workload.images else ""
    scale = 1.55 if flash == "off" else 1.25  # older builds do not soften scores in place
    return band_line(
        "activations",
        total,
        low=int(0.8 * total),
        high=int(scale * total) + _routed_bytes(spec, workload) + 32 * MIB,
        source=f"compute buffer, micro-batch {_ubatch(workload)}, flash attention {flash}{unseen}",
    )


def _routed_bytes(spec: ModelSpec, workload: Workload) -> int:
    """Return what a mixture of experts may add: the outputs of all chosen experts, twice."""
    return 2 * (spec.experts_per_token or 0) * spec.hidden * _ubatch(workload) * _FLOAT


def overhead_line(
    kind: Literal["gpu", "cpu"], baseline: int | None = None, costs: Sequence[Cost] = ()
) -> Line:
    """Return what the process takes beside its buffers.

    On a GPU the context and cuBLAS: 133 MiB to 1.31 GiB as published, 320 MiB measured by
    Unsloth. On the host the program and the vocabulary.
    """
    del baseline
    if kind == "gpu" and costs:
        return cost_line(costs)
    if kind == "gpu":
        return band_line(
            "overhead",
            400 * MIB,
            low=133 * MIB,
            high=1341 * MIB,
            source="CUDA context and cuBLAS, published range",
            basis="assumed",
        )
    return band_line(
        "overhead",
        96 * MIB,
        low=16 * MIB,
        high=320 * MIB,
        source="the program and its vocabulary",
        basis="assumed",
    )
