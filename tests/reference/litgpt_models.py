"""The models of litgpt's published fine-tuning peaks, built by litgpt's own code (0.5.13).

`training.jsonl` names them, such as "litgpt_models:tiny_llama_full". Each is one training step of
litgpt's script: forward(input_ids, labels) is the loss. What is taken over from that script, each
a rule of its code and no figure fitted to a row:

- weights, adapters and arithmetic in bfloat16 ("bf16-true"), adapters' dropout 0.05, the last
  matrix in chunks of 128 tokens, the loss chunk by chunk (finetune/lora.py, utils.py);
- Fabric converts the logits to float32, and the loop's variable keeps them until the next ones
  are there (lightning/fabric/wrappers.py; `fit` in finetune/lora.py);
- with bitsandbytes every linear is packed, the last one too; its paged AdamW is the optimizer;
  its autograd function of that time (0.42, autograd/_functions.py, MatMul4Bit) keeps its input as
  an attribute, which the backward pass does not free: the loop's variable, which keeps the logits
  and so their graph, keeps one pass's inputs beside the next one's. It unpacks to float16 before
  it casts. The trainable embedding of October 2024 (pull request 1770) came after these rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from litgpt.config import Config
from litgpt.lora import GPT as LORA_GPT
from litgpt.lora import Config as LoraConfig
from litgpt.lora import mark_only_lora_as_trainable
from litgpt.model import GPT
from litgpt.utils import chunked_cross_entropy

from memplan.formats.quantized import bytes_of, parse_scheme
from memplan.trace.quantised import packed_linear

_CHUNK = 128
_ATTENTION = ("query", "value")
_ALL = ("query", "key", "value", "projection", "mlp", "head")


@contextmanager
def _half() -> Iterator[None]:
    """Make tensors in bfloat16, as Fabric does around a model's init and its forward."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Step(torch.nn.Module):
    """One micro-batch of litgpt's loop."""

    def __init__(self, gpt: Any) -> None:
        super().__init__()
        self.gpt = gpt
        self._logits: list[Any] = []

    def forward(self, input_ids: Any, labels: Any) -> Any:
        """Return the loss of (batch, tokens) ids."""
        logits = self._converted(input_ids)
        self._logits = logits
        logits[-1] = logits[-1][..., :-1, :]
        return chunked_cross_entropy(logits, labels[..., 1:])

    def _converted(self, input_ids: Any) -> list[Any]:
        """Return the logits of each chunk in float32; those in bfloat16 end with this call."""
        with _half():
            chunks = self.gpt(input_ids, lm_head_chunk_size=_CHUNK)
        return [chunk.float() for chunk in chunks]


def _pack(gpt: Any, quant: str) -> None:
    """Replace every linear, as lightning's BitsandbytesPrecision does."""
    scheme = parse_scheme(quant)
    for path, module in list(gpt.named_modules()):
        if type(module) is torch.nn.Linear:
            shape = (module.out_features, module.in_features)
            size = bytes_of(scheme, shape)
            parent, _, name = path.rpartition(".")
            packed = packed_linear(shape, size, module.bias, compute="bfloat16", keeps_input=True)
            setattr(gpt.get_submodule(parent), name, packed)


def _step(
    name: str,
    *,
    tokens: int = 512,
    rank: int = 0,
    targets: tuple[str, ...] = (),
    quant: str | None = None,
) -> Step:
    settings: dict[str, Any] = {f"lora_{target}": True for target in targets}
    if not rank:
        settings = {}
    else:
        settings |= {"lora_r": rank, "lora_alpha": 16, "lora_dropout": 0.05}
    config = (LoraConfig if rank else Config).from_name(name, **settings)
    config.block_size = tokens  # what `fit` sets by max_seq_length: the length of the angles' table
    with _half():
        gpt = (LORA_GPT if rank else GPT)(config)
        if rank:
            mark_only_lora_as_trainable(gpt)
        if quant:
            _pack(gpt, quant)
    return Step(gpt)


_MODELS = {
    "tiny_llama": ("tiny-llama-1.1b", 32, _ALL, 512),
    "llama_2_7b": ("Llama-2-7b-hf", 32, _ATTENTION, 512),
    "llama_3_8b": ("Llama-3-8B", 32, _ATTENTION, 512),
    "llama_3_1_8b": ("Llama-3.1-8B", 32, _ATTENTION, 512),
    "llama_3_2_1b": ("Llama-3.2-1B", 32, _ATTENTION, 512),
    "llama_3_2_3b": ("Llama-3.2-3B", 32, _ATTENTION, 512),
    "mistral_7b": ("Mistral-7B-v0.1", 32, _ATTENTION, 512),
    "falcon_7b": ("falcon-7b", 32, _ATTENTION, 512),
    "gemma_2b": ("Gemma-2b", 8, _ALL, 512),
    "gemma_7b": ("Gemma-7b", 16, _ALL, 512),
    "gemma2_2b": ("Gemma-2-2b", 8, _ALL, 512),
    "phi_2": ("phi-2", 8, _ALL, 512),
    "phi_3": ("Phi-3-mini-4k-instruct", 8, _ALL, 512),
    "stablelm_base_alpha_3b": ("stablelm-base-alpha-3b", 32, _ATTENTION, 512),
    "alpaca_llama_2_7b": ("Llama-2-7b-hf", 8, _ATTENTION, 1304),
    "alpaca_llama_2_13b": ("Llama-2-13b-hf", 8, _ATTENTION, 1304),
}
"""litgpt's name, rank, targets and longest batch: config_hub/finetune at 2685705, the last two
tutorials/resource-tables.md."""


def __getattr__(name: str) -> Any:
    """Return the function that builds one set-up: a name of _MODELS and its method."""
    methods = {"full": None, "lora": None, "qlora": "nf4", "qlora_dq": "nf4-dq"}
    for method, quant in methods.items():
        short = name.removesuffix(f"_{method}")
        if short != name and short in _MODELS:
            own, rank, targets, tokens = _MODELS[short]
            rank = 0 if method == "full" else rank
            return partial(_step, own, tokens=tokens, rank=rank, targets=targets, quant=quant)
    raise AttributeError(name)
