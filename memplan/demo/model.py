"""Makes a real Llama of about 100 million parameters with random weights, in two shards.

python -m memplan.demo.model FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from memplan.errors import MissingDependencyError

__all__ = ["SHARD_BYTES", "make_model"]

SHARD_BYTES = 240_000_000
"""Largest shard; the model has 400 MB."""


def make_model(folder: Path) -> None:
    """Write config.json, two safetensors shards and their index.

    99,958,400 parameters in float32: 12 layers, hidden 640, 10 heads on 5 key/value heads,
    vocabulary 32,000, untied. Raises MissingDependencyError without torch and transformers.
    """
    try:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM, logging
    except ImportError as error:
        raise MissingDependencyError(
            f"the demo needs torch and transformers ({error})",
            hint="pip install 'memplan[models]'",
        ) from error
    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=640,
        intermediate_size=1920,
        num_hidden_layers=12,
        num_attention_heads=10,
        num_key_value_heads=5,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        dtype="float32",
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size=SHARD_BYTES)


if __name__ == "__main__":
    make_model(Path(sys.argv[1]))
