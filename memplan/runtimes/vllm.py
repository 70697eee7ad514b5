"""vLLM: pages of a pool, states in pages of equal size, an activation peak found by profiling.

Rules: vLLM 0.33, v1/kv_cache_interface.py, v1/core/kv_cache_planning.py and
layers/mamba/mamba_utils.py. What is planned is what the given sequences need; vLLM itself fills
all that is left of the card with pages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from memplan.errors import UnsupportedModelError
from memplan.footprint.lines import band_line, exact_line
from memplan.footprint.overhead import Cost, cost_line
from memplan.footprint.tower import beside_tower
from memplan.types import Layer, Line, ModelSpec, Workload
from memplan.units import DTYPE_BITS, GIB, MIB

__all__ = [
    "BLOCK_TOKENS",
    "NAME",
    "activation_line",
    "cache_lines",
    "layer_cache_bytes",
    "overhead_line",
]

NAME = "vllm"

BLOCK_TOKENS = 16
"""Tokens in one page."""

BATCHED_TOKENS = 2048
"""max_num_batched_tokens where nobody sets it (chunked prefill, below H100 class)."""

PROFILED_SEQUENCES = 256
"""Sequences whose logits the profile run samples (max_num_seqs)."""

LARGEST_BATCH = 1024
"""max_num_seqs on H100-class cards."""
_SORT_BYTES = 20
"""float32 logits, probabilities and sorted copies, and int64 positions, of one logit."""

_FLOAT32_STATES = (
    *("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"),
    *("kimi_linear", "nemotron_h"),
)
"""Families whose recurrent states stay in float32: by mamba_ssm_dtype in their config.json, or
(KDA) always. All others follow mamba_ssm_cache_dtype "auto": the model's dtype (mamba_utils.py)."""

_NO_CACHE = ("shared_kv", "encoder_only", "none", "state")
_LATENT = ("mla", "sliding_mla")
_INDEX_BYTES = 132
"""One indexer key: 128 B in fp8 and a float32 scale (models/deepseek_v32/attention.py)."""
_FP8_LATENT_BYTES = 656
"""fp8_ds_mla: 512 e4m3, 4 float32 scales, 64 bfloat16."""
_POOLED_BYTES = 584
"""One pooled entry of DeepSeek V4: 448 + 128 + 8."""


def cache_lines(spec: ModelSpec, workload: Workload) -> list[Line]:
    """Return pages and states of the given sequences, with what equal pages waste.

    Hybrid models keep attention and states in one pool, so the attention block grows until its
    page holds a state, and the state's page is padded to the attention's.

    Raises UnsupportedModelError for a layer without a rule.
    """
    block = block_tokens(spec, workload)
    grown = sum(_kv_bytes(layer, workload, block) for layer in spec.layers)
    bare = _copies(workload) * sum(_state_bytes(spec, x, workload) for x in spec.layers)
    fixed = sum(_state_page(spec, layer, workload, block) for layer in spec.layers)
    lines = []
    if grown:
        lines.append(exact_line("kv_cache", grown, f"pages of {block} tokens"))
    if fixed:
        waste = fixed - bare
        note = f", {waste} B of it padding to the attention's page" if waste else ""
        lines.append(exact_line("state_cache", fixed, f"one page a sequence and layer{note}"))
    return lines


def layer_cache_bytes(spec: ModelSpec, layer: Layer, workload: Workload) -> int:
    """Return one layer's share of `cache_lines`."""
    block = block_tokens(spec, workload)
    return _kv_bytes(layer, workload, block) + _state_page(spec, layer, workload, block)


def block_tokens(spec: ModelSpec, workload: Workload) -> int:
    """Return the tokens in one page: 16, or more where a state must fit in one page."""
    states = [_state_bytes(spec, layer, workload) // workload.batch for layer in spec.layers]
    tokens = [_token_bytes(layer, workload) for layer in spec.layers if layer.kind != "state"]
    largest, least = max(states, default=0), min((t for t in tokens if t), default=0)
    if not largest or not least:
        return BLOCK_TOKENS
    needed = -(-largest // least)
    return max(BLOCK_TOKENS, -(-needed // BLOCK_TOKENS) * BLOCK_TOKENS)


def _element(workload: Workload) -> int:
    name = workload.kv_dtype or workload.dtype
    return 1 if name.startswith(("fp8", "float8")) else DTYPE_BITS[name] // 8


def _heads(layer: Layer, workload: Workload) -> int:
    """Return the heads of one rank: max(1, n / tp)."""
    return max(1, layer.kv_heads // workload.tp)


def _token_bytes(layer: Layer, workload: Workload) -> int:
    if layer.kind in _NO_CACHE:
        return 0
    if layer.kind == "compressed_attention":
        return _POOLED_BYTES
    element = _element(workload)
    if layer.kind in _LATENT:
        latent = (layer.key_dim + layer.value_dim) * element
        size = _FP8_LATENT_BYTES if element == 1 and layer.key_dim == 512 else latent
        return size + (_INDEX_BYTES if layer.index_dim else 0)
    return _heads(layer, workload) * (layer.key_dim + layer.value_dim) * element


def _kv_bytes(layer: Layer, workload: Workload, block: int) -> int:
    """Return the pages of one layer for all sequences.

    Sliding: ceil(min(W - 1 + in flight, S) / block) + 1 pages; chunked: ceil(min(chunk + in
    flight, S) / block); others ceil(S / block), and never more than those. In flight: two batches
    of max_num_batched_tokens, as scheduling is asynchronous (pp + 1; issue 54703).
    """
    if layer.kind in _NO_CACHE:
        return 0
    tokens = workload.context or 0
    flight = (workload.pp + 1) * (workload.prefill_chunk or BATCHED_TOKENS)
    blocks = -(-tokens // block)
    if layer.kind in ("sliding_attention", "sliding_mla") and layer.window:
        blocks = min(-(-min(layer.window - 1 + flight, tokens) // block) + 1, blocks)
    elif layer.kind == "chunked_attention" and layer.window:
        blocks = -(-min(layer.window + flight, tokens) // block)
    elif layer.kind == "compressed_attention":
        kept = min(tokens, layer.window or 0) + (tokens // layer.compress if layer.compress else 0)
        blocks = -(-kept // block)
    size = blocks * block * _token_bytes(layer, workload)
    if layer.cross_tokens is not None:
        encoder = layer.cross_tokens or tokens
        heads = _heads(layer, workload) * (layer.key_dim + layer.value_dim)
        size += -(-encoder // block) * block * heads * _element(workload)
    return workload.batch * size


def _state_bytes(spec: ModelSpec, layer: Layer, workload: Workload) -> int:
    """Return the states of one layer: d_conv - 1 inputs and the state, in the model's dtype.

    Drafting n tokens widens the convolution by n (and keeps 1 + n pages, see `_state_page`).
    The state is in float32 for the families of `_FLOAT32_STATES`. Held against logged page sizes:
    Qwen3-Next 1,097,728 B, Qwen3.5-0.8B 1,085,440 B, Qwen3.5-9B on two ranks 1,073,152 B.
    """
    element = DTYPE_BITS[workload.dtype] // 8 if workload.dtype in DTYPE_BITS else 2
    size = 0
    for state in layer.states:
        share = state.elements // workload.tp
        if state.kind == "conv":
            size += share * (max(state.kernel - 1, 1) + (workload.draft_tokens or 0)) * element
        else:
            wide = state.kind == "recurrent" and spec.model_type in _FLOAT32_STATES
            size += share * (4 if wide else element)
    return workload.batch * size


def _copies(workload: Workload) -> int:
    """Return the pages of one state: one, and one for each drafted token to go back to."""
    return 1 + (workload.draft_tokens or 0)


def _state_page(spec: ModelSpec, layer: Layer, workload: Workload, block: int) -> int:
    if not layer.states:
        return 0
    own = _state_bytes(spec, layer, workload)
    tokens = Counter(_token_bytes(x, workload) for x in spec.layers if x.kind not in _NO_CACHE)
    if not tokens:
        return _copies(workload) * own
    return _copies(workload) * max(own, workload.batch * block * min(tokens))


def activation_line(spec: ModelSpec, workload: Workload) -> Line:
    """Return the peak of the profile run: max_num_batched_tokens through the widest layer.

    T·(3f + 4h)·b: gate and up together, their product, residual, normed and attention buffers; or
    the sampler's float32 logits of 256 sequences, three times. Band: 0.6 to 3 times, and at the
    upper end the sampler's sort of 1024 sequences (20 B a logit). Published peaks over the
    estimate: 1.0 (Qwen2.5-1.5B), 1.4 (Llama-3-8B), 5 (gpt-oss-20b on an H100). With images the
    tower's peak comes on top (`memplan.footprint.tower`).
    """
    element = DTYPE_BITS[workload.dtype] // 8 if workload.dtype in DTYPE_BITS else 2
    tokens = workload.prefill_chunk or BATCHED_TOKENS
    inner = max((layer.intermediate for layer in spec.layers), default=0) // workload.tp
    if not spec.hidden:
        raise UnsupportedModelError(f"{spec.name}: its shapes are not known")
    layer = tokens * (3 * inner + 4 * spec.hidden) * element
    logits = 3 * min(PROFILED_SEQUENCES, tokens) * spec.vocab * 4 // workload.tp
    size = max(layer, logits)
    text = band_line(
        "activations",
        size,
        low=int(0.6 * size),
        high=3 * size + LARGEST_BATCH * spec.vocab * _SORT_BYTES + 64 * MIB,
        source=f"profile run of {tokens} tokens",
    )
    return beside_tower(spec, workload, text, batched=tokens)


def overhead_line(
    kind: Literal["gpu", "cpu"], baseline: int | None = None, costs: Sequence[Cost] = ()
) -> Line:
    """Return context, libraries and CUDA graphs.

    Published: non-torch memory 0.05 to 3.6 GiB (one to two GPUs), graphs 0.1 to 0.7 GiB.
    """
    del baseline
    if kind == "gpu" and costs:
        return cost_line(costs)
    return band_line(
        "overhead",
        int(1.0 * GIB),
        low=int(0.2 * GIB),
        high=int(4.3 * GIB),
        source="CUDA context, NCCL and CUDA graphs, published range",
        basis="assumed",
    )
